"""Links that lead out of the prefix: nothing that a build does itself follows one.

Here scripts put them there, which run before all that is tested; so might an installer that looks
at no package before it links it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from condainer.system import files
from tests import building
from tests.localchannel.package import SITE_PACKAGES, put
from tests.wheels import make_wheel

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import Workshop

FOREIGN = "of somebody else\n"
OUTSIDE = (
    *("file", "history", "state", "manifest.json", "activation.json", "environment.yml"),
    *("record.json", "clobbered/file", "python3.12/site-packages/x-1.dist-info/METADATA"),
    *("conda/env_vars.d/x.json", "conda/activate.d/x.sh", "activate.d/x.sh", "x.sh"),
)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory that looks like much that a build reads, writes or runs."""
    for name in OUTSIDE:
        put(tmp_path, f"outside/{name}", f"touch {tmp_path}/ran # {FOREIGN}", 0o755)
    put(tmp_path, "outside/record.json", '{"name": "x", "files": ["b", "a"], "link": {}}\n')
    put(tmp_path, "outside/.hostile-post-link.sh", f"touch {tmp_path}/ran\n", 0o755)
    return tmp_path / "outside"


def plant(workshop: Workshop, tmp_path: Path, script: str, *specs: str, channel: str = "") -> None:
    """Want a package that runs a script in the prefix."""
    odd = building.make_channel(tmp_path / "channel", building.odd_package(script))
    workshop.environment(
        *specs,
        "odd",
        channel=f"{odd}\n  - {channel}" if channel else odd,
        more="variables:\n  HERE: there\n",
    )


PLACES = (
    *("conda-meta", "conda-meta/state", "conda-meta/history", "conda-meta/record.json"),
    *(".condainer", "etc", "etc/conda", "etc/conda/activate.d", "etc/conda/activate.d/x.sh"),
    *("etc/conda/env_vars.d", "etc/conda/env_vars.d/x.json", "lib", "lib/python3.12"),
    *("lib/python3.12/site-packages", "__clobbers__", ".messages.txt", "share"),
)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["directory", "file"])
def test_a_link_in_any_place_leads_nowhere(
    workshop: Workshop, tmp_path: Path, outside: Path, place: str, kind: str
) -> None:
    names = [name for name in OUTSIDE if name.endswith(place.rpartition("/")[2])]
    target = outside if kind == "directory" else outside / (names or ["file"])[0]
    script = f'rm -rf "{place}"; mkdir -p "$(dirname "{place}")"; ln -s "{target}" "{place}"'
    plant(workshop, tmp_path, script)
    before = building.picture(outside)
    answer = workshop.run("build", status=None)
    assert building.picture(outside) == before
    assert not (tmp_path / "ran").exists()
    assert "bug in condainer" not in answer.stderr
    assert workshop.left_over() == []
    if answer.returncode == 0:
        tree = building.unpack(workshop.image, tmp_path / "unpacked")
        assert building.holders(FOREIGN.encode(), tree) == []
    else:
        assert place in answer.stderr


@pytest.mark.parametrize("cached", ["__pycache__", "{name}.pyc", "{name}.pyc.new"])
def test_compiling_writes_through_no_link(
    workshop: Workshop, tmp_path: Path, outside: Path, hard_channel: Path, cached: str
) -> None:
    package = f"{SITE_PACKAGES}/hard_modules"
    script = f'cd {package}; tag=$(ls __pycache__/stale.*.pyc | cut -d. -f2); rm -r "__pycache__"\n'
    if cached == "__pycache__":
        script += f"ln -s {outside} __pycache__"
    else:
        name = cached.format(name="plain.$tag")
        script += f"mkdir __pycache__; ln -s {outside}/file __pycache__/{name}"
    script = f"cp -r {package} {package}2\n{script}"
    plant(workshop, tmp_path, script, "python", "hard-modules", channel=str(hard_channel))
    before = building.picture(outside)
    workshop.run("build", "-q")
    assert building.picture(outside) == before
    tree = building.unpack(workshop.image, tmp_path / "unpacked")
    assert list((tree / f"{package}2/__pycache__").glob("plain.*.pyc"))
    if cached != "__pycache__":
        (compiled,) = (tree / package / "__pycache__").glob("plain.*.pyc")
        assert not compiled.is_symlink()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("mv {modules} {outside}/; ln -s {outside}/{python} {modules}", "has its modules outside"),
        ("ln -sf /usr/bin/python3 bin/python", ""),
    ],
)
def test_what_lies_elsewhere_is_not_compiled(
    workshop: Workshop,
    tmp_path: Path,
    outside: Path,
    hard_channel: Path,
    script: str,
    words: str,
) -> None:
    modules = SITE_PACKAGES.rpartition("/")[0]
    script = script.format(modules=modules, python=os.path.basename(modules), outside=outside)  # noqa: PTH119
    script = f"find {modules} -name '*.pyc' -delete\n{script}"
    plant(workshop, tmp_path, script, "python", "hard-modules", channel=str(hard_channel))
    answer = workshop.run("build", "--no-overlap", status=1 if words else 0)
    assert words in answer.stderr
    assert list(outside.rglob("*.pyc")) == []
    if not words:
        assert "no Python to compile for" in answer.stderr


PIP = {
    "modules": "mv {site} {outside}/modules; ln -s {outside}/modules {site}",
    "package": "mkdir -p {outside}/package; ln -s {outside}/package {site}/cnd_small-1.0.dist-info",
    "new file": "ln -s {outside}/new {site}/cnd_small.py",
    "program": "ln -s {outside}/new bin/cnd_small",
    "share": "rm -rf share; ln -s {outside} share",
    "python": "ln -sf /usr/bin/python3 bin/python",
}


@pytest.mark.parametrize("how", PIP)
def test_pip_writes_through_no_link(
    workshop: Workshop, tmp_path: Path, outside: Path, basic_channel: Path, how: str
) -> None:
    make_wheel(workshop.directory, "cnd_small", "1.0")
    (workshop.directory / "requirements.txt").write_text("./cnd_small-1.0-py3-none-any.whl\n")
    script = PIP[how].format(site=SITE_PACKAGES, outside=outside)
    plant(workshop, tmp_path, script, "python", "pip", channel=str(basic_channel))
    answer = workshop.run("build", "--no-overlap", status=1)
    assert "pip would write outside of the environment: " in answer.stderr
    assert list(outside.rglob("cnd_small*")) == []
    assert not (outside / "new").exists()


def test_files_below_a_directory_are_reached_through_no_link(tmp_path: Path) -> None:
    put(tmp_path, "outside/file", "precious\n")
    put(tmp_path, "top/deep/file", "file\n")
    top = tmp_path / "top"
    (top / "away").symlink_to(tmp_path / "outside")
    (top / "deep/link").symlink_to(tmp_path / "outside/file")
    assert files.read(top / "deep/file", within=top) == b"file\n"
    files.write(top / "deep/link", b"new\n", within=top)
    assert (top / "deep/link").read_text() == "new\n"
    assert not (top / "deep/link").is_symlink()
    assert files.names(top / "deep", within=top) == ["file", "link"]
    assert files.names(top / "away", within=top) == []
    assert files.names(top / "nowhere", within=top) == []
    for path in (top / "away/file", top / "deep/../../outside/file", tmp_path / "outside/file"):
        with pytest.raises(OSError, match=r"symbolic link|is not in"):
            files.read(path, within=top)
        with pytest.raises(OSError, match=r"symbolic link|is not in"):
            files.write(path, b"", within=top)
    with pytest.raises(OSError, match="symbolic link"):
        files.make_directory(top / "away", within=top)
    files.make_directory(top / "deep", within=top)
    assert (tmp_path / "outside/file").read_text() == "precious\n"
