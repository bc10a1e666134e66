"""The wheel and the sdist: what is in them, and that they are the same bytes each time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

import pytest

from tests.support import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("hatchling")

UNPACKAGED = (".*", "__pycache__", "dist", "demo-project", "benchmark-results")


def checkout(directory: Path, mode: int, time: int) -> Path:
    """Copy the repository, with other modes and times, as another clone has them."""
    shutil.copytree(REPOSITORY, directory, ignore=shutil.ignore_patterns(*UNPACKAGED))
    shutil.copy(REPOSITORY / ".gitignore", directory)
    for path in directory.rglob("*"):
        if path.is_file():
            path.chmod(path.stat().st_mode & ~0o77 | mode)
            os.utime(path, (time, time))
    return directory


def build(source: Path) -> dict[str, bytes]:
    """Build both, as the release does, and give their bytes by name."""
    command = [sys.executable, "-m", "hatchling", "build"]
    variables = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    subprocess.run(command, cwd=source, env=variables, check=True, capture_output=True)
    return {path.name: path.read_bytes() for path in sorted((source / "dist").iterdir())}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which both are built."""
    made = checkout(tmp_path_factory.mktemp("one") / "condainer", 0o55, 1_600_000_000)
    build(made)
    return made


def test_two_builds_give_the_same_bytes(source: Path, tmp_path: Path) -> None:
    """Whatever the directory, the times and the modes."""
    other = build(checkout(tmp_path / "elsewhere" / "clone", 0, 1_650_000_000))
    assert {path.name: path.read_bytes() for path in (source / "dist").iterdir()} == other


def test_the_wheel_has_the_whole_package(source: Path) -> None:
    (file,) = (source / "dist").glob("*.whl")
    names = set(zipfile.ZipFile(file).namelist())
    package = {
        str(path.relative_to(source)) for path in source.glob("condainer/**/*") if path.is_file()
    }
    assert "condainer/mounting/probe.squashfs" in package
    assert {name for name in names if name.startswith("condainer/")} == package
    programs = {name.rpartition("/")[2] for name in names if "/scripts/" in name}
    assert programs == {"condainer", "cnd"}


def test_a_wheel_can_be_built_from_the_sdist(source: Path, tmp_path: Path) -> None:
    (file,) = (source / "dist").glob("*.tar.gz")
    subprocess.run(["tar", "-C", str(tmp_path), "-xf", str(file)], check=True)
    (unpacked,) = tmp_path.iterdir()
    (wheel,) = (source / "dist").glob("*.whl")
    assert build(unpacked)[wheel.name] == wheel.read_bytes()
