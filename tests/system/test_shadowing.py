"""Modules in the working directory, and where PYTHON* variables lead: no program of ours runs them.

Others may write to the one, and the other belongs to the Python that the caller works with.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import building, support
from tests.localchannel.package import SITE_PACKAGES, Package, put
from tests.wheels import make_wheel

if TYPE_CHECKING:
    from tests.support import Workshop

ISOLATED = (sys.executable, "-I", "-c", "from condainer.start import entry; entry()")
"""`condainer`, of which nothing is taken from elsewhere; what it starts is what is tested."""

NAMES = (
    *("condainer", "condainer/fuse", "pip", "compileall", "zstandard", "yaml", "anyio", "json"),
    *("runpy", "pathlib", "ctypes", "sysconfig", "struct", "importlib", "encodings", "fuse"),
    *("sitecustomize", "usercustomize", "email"),
)


class Trap:
    """A directory full of modules that take note where they are run.

    Args:
        directory: to be made.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._note = directory.with_name("sprung")
        for name in NAMES:
            code = f"open({str(self._note)!r}, 'a').write({name!r} + '\\n')\n"
            put(directory, f"{name}/__init__.py", code)
            put(directory, f"{name}/__main__.py", code)

    def spring(self, *argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a program there, and see that it works as it does elsewhere."""
        paths = {
            name: str(self.directory)
            for name in ("PYTHONPATH", "PYTHONUSERBASE", "PYTHONPYCACHEPREFIX")
        }
        done = subprocess.run(
            argv,
            cwd=self.directory,
            env={**variables, **paths, "PYTHONWARNINGS": "error", "PYTHONINSPECT": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert not self._note.exists(), self._note.read_text()
        return done


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    return Trap(tmp_path / "trap")


@pytest.fixture
def project(workshop: Workshop, tmp_path: Path) -> Workshop:
    """A small project, which is not built yet."""

    def recipe(tree: Path) -> Package:
        put(tree, "share/small", "small\n")
        return Package(name="small", version="1.0")

    workshop.environment("small", channel=building.make_channel(tmp_path / "channel", recipe))
    return workshop


def test_modules_that_stand_in_the_way_are_found_by_a_python_that_looks_there(trap: Trap) -> None:
    with pytest.raises(AssertionError, match="json"):
        trap.spring(sys.executable, "-c", "import json")


def test_profile_build_and_mount_run_none_of_them(project: Workshop, trap: Trap) -> None:
    variables = {name: v for name, v in project.variables.items() if name != "PYTHONPATH"}

    def run(*arguments: str) -> str:
        directory = str(project.directory)
        return trap.spring(*ISOLATED, "-d", directory, *arguments, **variables).stdout

    run("build")
    assert run("profile", "--", "cat", f"{project.prefix}/share/small") == "small\n"
    assert "share/small" in (project.directory / f"{project.uuid}.startup.txt").read_text()
    run("build", "--repack")
    run("build", "--force")
    for backend in ("python", "extract"):
        run("mount", "--backend", backend)
        assert (project.prefix / "share/small").read_text() == "small\n"
        run("umount")
    run("prereq")


@building.needs_root
def test_unpacking_without_unsquashfs_runs_none_of_them(ready: Workshop, trap: Trap) -> None:
    script = (
        f"export PYTHONPATH={trap.directory}; cd $PYTHONPATH; "
        f'exec {sys.executable} -I -c "$0" -d "$1" mount --backend extract'
    )
    hide = 'for file in $(type -aP unsquashfs); do mount --bind /dev/null "$file"; done; '
    command = ["unshare", "-m", "bash", "-c", hide + script, ISOLATED[-1], str(ready.directory)]
    trap.spring(*command, **ready.variables)
    ready.run("umount")


@pytest.mark.parametrize("how", [(), ("--no-overlap",)])
def test_compiling_runs_none_of_them(
    workshop: Workshop, trap: Trap, hard_channel: Path, how: tuple[str, ...]
) -> None:
    workshop.environment("python", "hard-modules", channel=hard_channel)
    directory = str(workshop.directory)
    variables = {name: v for name, v in workshop.variables.items() if name != "PYTHONPATH"}
    trap.spring(*ISOLATED, "-d", directory, "build", *how, **variables)
    tree = building.unpack(workshop.image, workshop.directory.parent / "unpacked")
    assert list((tree / SITE_PACKAGES / "hard_modules/__pycache__").glob("plain.*.pyc"))


def test_pip_runs_none_of_them(
    workshop: Workshop, basic_channel: Path, tmp_path: Path, trap: Trap
) -> None:
    """The directory of the project is where pip runs, from which relative paths count."""
    make_wheel(workshop.directory, "cnd_small", "1.0")
    workshop.environment("python", "pip", channel=basic_channel)
    (workshop.directory / "requirements.txt").write_text("./cnd_small-1.0-py3-none-any.whl\n")
    for path in trap.directory.iterdir():
        path.rename(workshop.directory / path.name)
    (workshop.directory / "pip/_internal").mkdir()
    trap.directory = workshop.directory
    variables = {name: v for name, v in workshop.variables.items() if name != "PYTHONPATH"}
    trap.spring(*ISOLATED, "build", "-q", **variables)
    tree = building.unpack(workshop.image, tmp_path / "unpacked")
    assert (tree / SITE_PACKAGES / "cnd_small.py").exists()


def test_a_condainer_that_only_a_path_leads_to_starts_itself(
    ready: Workshop, tmp_path: Path
) -> None:
    """As where it is installed with `pip install --target`, for a user, or by a module file."""
    (tmp_path / "library").mkdir()
    # Some installers make links only.
    source = support.REPOSITORY / "condainer"
    subprocess.run(["cp", "-rs", str(source), str(tmp_path / "library")], check=True)
    variables = {**ready.variables, "PYTHONPATH": str(tmp_path / "library")}
    ready.run("mount", "--backend", "python", variables=variables)
    try:
        (daemon,) = support.daemons_of(ready)
        words = (Path("/proc") / str(daemon) / "cmdline").read_bytes().split(b"\0")
        assert os.fsencode(tmp_path / "library/condainer/system/program.py") in words
    finally:
        ready.run("umount")
