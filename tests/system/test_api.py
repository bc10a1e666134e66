"""The Python interface: `import condainer`, as a program uses it that knows nothing else of it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

import condainer
from condainer.system import locks
from tests import support

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support import Workshop


@pytest.fixture(autouse=True)
def _variables(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs that are started have the variables of the test's own home."""
    for name in os.environ.keys() - workshop.variables.keys():
        monkeypatch.delenv(name)
    for name, value in workshop.variables.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def project(built: Workshop) -> Iterator[condainer.Project]:
    """A project with an image; nothing is mounted any more afterwards."""
    yield condainer.open(built.directory)
    built.run("-q", "umount", status=None)


def test_a_project_is_built_and_used(workshop: Workshop, hard_channel: Path) -> None:
    workshop.environment("hard-text", channel=hard_channel)
    project = condainer.open(workshop.directory)
    assert not project.status()["image"]["exists"]
    project.build(jobs=1)
    assert project.image == workshop.image
    assert project.status()["image"]["packages"] == 1
    before = project.image.stat().st_ino
    with pytest.raises(condainer.CondainerError, match="exists already"):
        project.build()
    project.build(force=True)
    assert project.image.stat().st_ino != before


def test_what_a_program_writes_is_kept(project: condainer.Project) -> None:
    script = "echo said; echo cried >&2; exit 3"
    done = project.run(["sh", "-c", script], capture=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, "said\n", "cried\n")
    assert project.run(["hard-activated"], capture=True).stdout == "activated\n"


def test_what_a_program_writes_passes_and_nothing_else(
    project: condainer.Project, capfd: pytest.CaptureFixture[str]
) -> None:
    done = project.run(["sh", "-c", "echo said; kill -9 $$"])
    assert (done.returncode, done.stdout) == (-9, "")
    with project.mounted():
        project.status()
    assert capfd.readouterr() == ("said\n", "")


def test_a_program_that_is_not_there(project: condainer.Project) -> None:
    done = project.run(["no-such-program"], capture=True)
    assert done.returncode == 127
    assert "command not found: no-such-program" in done.stderr


def test_a_program_that_takes_too_long_is_ended(project: condainer.Project) -> None:
    with pytest.raises(condainer.CondainerError, match="did not answer within 1 s"):
        project.run(["sleep", "600"], timeout=1)
    support.wait_for(lambda: not project.status()["mount"].get("users"))


@pytest.mark.parametrize("in_thread", [False, True])
def test_the_image_stays_mounted_for_a_block(
    project: condainer.Project, *, in_thread: bool
) -> None:
    found = []

    def look() -> None:
        with project.mounted() as prefix:
            assert prefix == project.prefix
            found.append((prefix / "bin" / "python").exists())
            assert locks.is_held(project._project.use_lock)  # noqa: SLF001
            users = project.status()["mount"]["users"]
            assert os.getpid() not in [user["pid"] for user in users]

    if in_thread:
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    else:
        look()
    assert found == [True]
    assert not locks.is_held(project._project.use_lock)  # noqa: SLF001


def test_errors_are_those_of_the_commands(workshop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(condainer.CondainerError, match="no condainer project in") as caught:
        condainer.open(tmp_path)
    assert "condainer init" in caught.value.hint
    project = condainer.open(workshop.directory)
    with pytest.raises(condainer.CondainerError, match="there is no image") as caught:
        project.run(["true"])
    with (
        pytest.raises(condainer.CondainerError, match="there is no image") as caught,
        project.mounted(),
    ):
        pass
    assert caught.value.hint == "make one with 'condainer build'"
    workshop.image.write_bytes(b"none")
    with pytest.raises(condainer.CondainerError, match="is not a squashfs image"):
        project.run(["true"], capture=True)


def test_the_example_of_the_readme_runs(
    workshop: Workshop, hard_channel: Path, tmp_path: Path
) -> None:
    workshop.environment("python", channel=hard_channel)
    _, _, rest = (support.REPOSITORY / "README.md").read_text().partition("```python\n")
    code, _, _ = rest.partition("```")
    (tmp_path / "myproject").symlink_to(workshop.directory)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**workshop.variables, "PYTHONPATH": str(support.REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    answer, programs, image = [line for line in done.stdout.splitlines() if line]
    assert answer == "0 42"
    assert "bin/python'" in programs
    assert "'exists': True" in image


def test_importing_it_imports_nothing_else() -> None:
    code = (
        "import sys; before = set(sys.modules); import condainer; print(*set(sys.modules) - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["condainer"]
    assert set(condainer.__all__) <= {*dir(condainer), *condainer.__all__}
    assert not hasattr(condainer, "no_such_name")
