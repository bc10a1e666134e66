"""What installers say, and which of it explains a failure."""

from __future__ import annotations

import itertools
from pathlib import Path

import anyio
import pytest

from condainer.errors import BuildError, ToolError
from condainer.pipeline.installers import choice, complaints, mamba, patience, solver
from condainer.pipeline.installers.interface import Request
from condainer.project.config import Config

CONFIG = Config(uuid="123e4567-e89b-42d3-a456-426614174000")


@pytest.mark.parametrize("name", ["nowhere", "/nowhere/micromamba", "~nosuchuser/mamba"])
def test_installer_that_was_asked_for_has_to_be_there(name: str) -> None:
    with pytest.raises(ToolError, match=f"'{name}' was not found"):
        choice.choose(CONFIG, name)


def test_configured_path_has_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONDAINER_INSTALLER", raising=False)
    with pytest.raises(ToolError, match="'/nowhere/mamba' was not found"):
        choice.choose(Config(uuid=CONFIG.uuid, conda_exe="/nowhere/mamba"))


def test_channels_without_a_space_are_all_right_for_micromamba() -> None:
    request = Request(("a",), ("conda-forge",), (), Path("/tmp/x"), None)
    mamba.Mamba(Path("/usr/bin/micromamba")).check(request)


def test_slow_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits for as long as something comes each time that it is looked."""
    monkeypatch.setattr(patience, "SILENCE", 0.01)

    async def wait() -> int:
        over, looks = anyio.Event(), itertools.count()

        def signs() -> int:
            look = next(looks)
            if look > 100:
                over.set()
            return look

        await patience.unless_silent(over.wait(), signs, str)
        return next(looks)

    assert anyio.run(wait) > 100


_CONFLICT = """\
Resolving Environment                                                        Done (0.0 sec)
error    libmamba Could not solve for environment specs
    The following packages are incompatible
    ├─ conflicta =* * is installable and it requires
    │  └─ tinydep ==1.0 *, which can be installed;
    └─ conflictb =* * is not installable because it requires
       └─ tinydep >=2.0 *, which conflicts with any installable versions previously reported.
critical libmamba Could not solve for environment specs
"""


_TAMPERED = """\
  Package    Version  Build  Channel
  + tinypkg      1.0  0      /home/user/demo/badchan
  Total download: 707 B
Transaction starting
tinypkg-1.0-0.tar.bz2 tarball has incorrect size
error    libmamba File not valid: file size doesn't match expectation
    Expected: 707
    Actual: 715
    \n\
critical libmamba Found incorrect downloads. Aborting
"""


def test_explanation_of_a_conflict_is_its_tree() -> None:
    lines = _CONFLICT.splitlines()
    expected = ["Could not solve for environment specs", *lines[2:-1]]
    assert complaints.explanation(lines).splitlines() == [f"  {line}" for line in expected]


def test_explanation_leaves_out_the_table_of_packages() -> None:
    assert complaints.explanation(_TAMPERED.splitlines()).splitlines() == [
        "  File not valid: file size doesn't match expectation",
        "      Expected: 707",
        "      Actual: 715",
        "  Found incorrect downloads. Aborting",
    ]


def test_explanation_of_another_program_is_what_it_said_last() -> None:
    lines = ["PackagesNotFoundError: The following packages are missing:", "  - nowhere"]
    assert complaints.explanation(lines) == "\n".join(f"  {line}" for line in lines)


_REPORT = """
# >>>>>>>>>>>>>>>>>>>>>> ERROR REPORT <<<<<<<<<<<<<<<<<<<<<<

    Traceback (most recent call last):
      File "conda/exception_handler.py", line 30, in __call__
        return func(*args, **kwargs)
    AttributeError: 'Index' object has no attribute '_system_packages'

    During handling of the above exception, another exception occurred:

    Traceback (most recent call last):
      File "conda/core/index.py", line 173, in system_packages
        raise RuntimeError("...")
    RuntimeError: the index is locked

`$ /opt/conda/bin/conda create -y -p /tmp/e`

  environment variables:
conda info could not be constructed.

An unexpected error has occurred. Conda has prepared the above report.

If you suspect this error is being caused by a malfunctioning plugin,
consider using the --no-plugins option to turn off plugins.

Example: conda --no-plugins install <package>

Alternatively, you can set the CONDA_NO_PLUGINS environment variable on
the command line to run the command without plugins enabled.

Example: CONDA_NO_PLUGINS=true conda install <package>
"""


_BROKEN = r"""
    package                    |            build
    ---------------------------|-----------------
    hard-text-2.0              |                0           1 KB  file:///tmp/bad
                                           Total:           3 KB
  hard-text          bad/noarch::hard-text-2.0-0
Downloading and Extracting Packages: ...working... done

InvalidArchiveError('Error with archive /tmp/hard-text-2.0-0.conda.  Message was:\n\nno zip file')
"""


_FAILED = """
Rolling back transaction: ...working... done

LinkError: post-link script failed for package hard-post-link-fails-1.0-0
location of failed script: /tmp/e5/bin/.hard-post-link-fails-post-link.sh
==> script messages <==
<None>
==> script output <==
stdout:
stderr: hard-post-link-fails: cannot go on

return code: 3


()

"""


_REPEATED = """
error    libmamba Failed to download package from http://host/x.conda (status 404)
    If you see this message repeatedly, the state of your installation might be corrupted,
    in which case running `mamba clean --all` might fix it.

    If you continue to meet this problem, please search or report an issue
    on  mamba's issue tracker: https://github.com/mamba-org/mamba/issues/
info     libmamba ****************** Backtrace Start ******************
info     libmamba ****************** Backtrace End ********************
"""


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (_REPORT, ["RuntimeError: the index is locked"]),
        (
            _BROKEN,
            [
                "InvalidArchiveError: Error with archive /tmp/hard-text-2.0-0.conda.  Message was:",
                "no zip file",
            ],
        ),
        (
            _FAILED,
            [
                "LinkError: post-link script failed for package hard-post-link-fails-1.0-0",
                "stderr: hard-post-link-fails: cannot go on",
                "return code: 3",
            ],
        ),
        (_REPEATED, ["Failed to download package from http://host/x.conda (status 404)"]),
    ],
)
def test_explanation_is_what_matters(said: str, expected: list[str]) -> None:
    assert complaints.explanation(said.splitlines()).splitlines() == [f"  {x}" for x in expected]


def test_a_list_without_an_end_is_given_up(tmp_path: Path) -> None:
    with (tmp_path / ".tmpGrowing").open("wb") as file:
        file.truncate((4 << 30) + 1)

    async def ask() -> None:
        await patience.unless_silent(anyio.sleep_forever(), lambda: solver.growth(tmp_path), str)

    with pytest.raises(BuildError, match="larger than 4"):
        anyio.run(ask)
