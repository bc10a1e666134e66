"""Faults of the machine: each is told by its own name, with the file, and as nobody else's."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from condainer.errors import NEEDS_PROC
from condainer.pipeline.events import Failed
from tests import support
from tests.support import CONDAINER, REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support import Workshop

PROBE = REPOSITORY / "condainer/mounting/probe.squashfs"
WITHOUT_PROC = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh")
AS_ROOT = pytest.mark.skipif(os.getuid() != 0, reason="only root can hide /proc")
FAILING = """\
import errno, mfusepy, os, stat, sys
class Failing(mfusepy.Operations):
    use_ns = True
    text = open(sys.argv[1], "rb").read()
    def getattr(self, path, fh=None):
        if path.endswith(".squashfs"):
            raise mfusepy.FuseOSError(int(sys.argv[3]))
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o755}
        if path == "/condainer.yml":
            return {"st_mode": stat.S_IFREG | 0o644, "st_size": len(self.text)}
        raise mfusepy.FuseOSError(errno.ENOENT)
    def read(self, path, size, offset, fh):
        return self.text[offset : offset + size]
mfusepy.FUSE(Failing(), sys.argv[2], foreground=True, ro=True)
"""


def image_that_fails(workshop: Workshop, number: int, where: Path) -> Iterator[Path]:
    """A project on a file system that fails where the image is looked at."""
    where.mkdir()
    config = str(workshop.directory / "condainer.yml")
    argv = [sys.executable, "-c", FAILING, config, str(where), str(number)]
    with subprocess.Popen(argv) as server:
        support.wait_for(lambda: (where / "condainer.yml").exists() or server.poll() is not None)
        yield where
        subprocess.run(["fusermount3", "-u", str(where)], check=True)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_an_image_that_cannot_be_looked_at_is_not_missing(
    workshop: Workshop, tmp_path: Path, number: int
) -> None:
    for project in image_that_fails(workshop, number, tmp_path / "project"):
        words = os.strerror(number)
        found = json.loads(workshop.run("-d", str(project), "status", "--json").stdout)["image"]
        assert found["exists"]
        assert words in found["problem"]
        for command, status in ((("exec", "--", "true"), 125), (("cache",), 1), (("mount",), 1)):
            told = workshop.run("-d", str(project), *command, status=status).stderr
            assert f"{workshop.uuid}.squashfs: {words}" in told
            assert "there is no image" not in told


def test_a_project_at_a_path_that_is_not_utf_8_is_built(
    workshop: Workshop, hard_channel: Path
) -> None:
    workshop.environment("hard-text=1", channel=hard_channel)
    odd = workshop.copy(workshop.directory.parent / "odd\udcff")
    odd.run("build", "-q")
    assert odd.image.is_file()


def test_a_path_that_is_not_utf_8_is_no_reason_to_blame_the_keeper(workshop: Workshop) -> None:
    directory = workshop.directory.parent / "odd\udcff"
    directory.mkdir()
    shutil.copy(workshop.directory / "condainer.yml", directory)
    data = bytearray(PROBE.read_bytes())
    data[96:] = bytes(len(data) - 96)
    (directory / f"{workshop.uuid}.squashfs").write_bytes(data)
    told = subprocess.run(
        [*CONDAINER, "mount", "--backend", "extract"],
        cwd=directory,
        env=workshop.variables,
        capture_output=True,
        check=False,
    )
    assert told.returncode == 1
    assert b"cannot read " in told.stderr
    assert b"was killed" not in told.stderr


@pytest.mark.parametrize("most", [7, 10])
@pytest.mark.parametrize("command", [("status",), ("exec", "--", "true")])
def test_too_few_descriptors_are_named(
    workshop: Workshop, command: tuple[str, ...], most: int
) -> None:
    shutil.copy(PROBE, workshop.image)
    limit = f'ulimit -n {most}; exec "$@"'
    done = subprocess.run(
        ["bash", "-c", limit, "bash", *CONDAINER, *command],
        cwd=workshop.directory,
        env=workshop.variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "bug in condainer" not in done.stderr
    assert "was killed" not in done.stderr
    if command[0] == "exec":
        assert "Too many open files" in done.stderr
    workshop.run("-q", "gc")  # an empty mountpoint, where not even that could be looked into


def test_a_build_that_fails_leaves_the_board_while_others_go_on(workshop: Workshop) -> None:
    from condainer.pipeline import run
    from condainer.pipeline.plan import BuildOptions
    from condainer.project import project

    (workshop.directory / "environment.yml").write_text("dependencies: [[]]\n")
    seen: list[object] = []
    code = project.open_projects([workshop.directory])
    failed = run.build_all(code, BuildOptions(), os.cpu_count() or 1, seen.append)
    assert [each.project.directory for each in failed] == [workshop.directory]
    assert Failed(workshop.directory.name) in seen


@AS_ROOT
@pytest.mark.parametrize("command", ["status", "prereq", "exec true", "umount", "gc"])
def test_a_machine_without_proc_is_told_so(workshop: Workshop, command: str) -> None:
    shutil.copy(PROBE, workshop.image)
    done = subprocess.run(
        [*WITHOUT_PROC, *CONDAINER, *command.split()],
        cwd=workshop.directory,
        env=workshop.variables,
        capture_output=True,
        text=True,
        check=False,
    )
    told = done.stdout + done.stderr
    assert re.search("/proc/self/[a-z0-9/]+: No such file", told)
    assert "bug in condainer" not in told
    if command != "status":
        assert done.returncode != 0
        assert NEEDS_PROC in told
    workshop.run("-q", "gc")  # the directory for locks, where a command has made it already


@AS_ROOT
def test_nothing_is_called_safe_where_proc_does_not_tell_what_is_mounted(tmp_path: Path) -> None:
    script = f"from condainer.system import trust; trust.find_stranger({str(tmp_path)!r}, {{0}})"
    done = subprocess.run(
        [*WITHOUT_PROC, sys.executable, "-c", script],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "CondainerError: cannot read /proc/self/mountinfo" in done.stderr
