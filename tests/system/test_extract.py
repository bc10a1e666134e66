"""Nodes without FUSE: the image is unpacked once, shared, and removed after the last use."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from condainer.mounting import extract
from condainer.project.project import open_project
from condainer.system import removal
from tests import building, support
from tests.keepers import keepers_of, kill_keepers, stop_unpacking, unpackers_of
from tests.support import CONDAINER, wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import Workshop

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can hide /dev/fuse")


def picture(top: Path) -> dict[str, tuple[int, int, int, object]]:
    """All that is below a directory: kind and mode, links, time, and content."""
    found: dict[str, tuple[int, int, int, object]] = {}
    for path in sorted(top.rglob("*")):
        status = path.lstat()
        content: object = None
        if path.is_symlink():
            content = path.readlink()
        elif path.is_file():
            content = path.read_bytes()
        links = 0 if path.is_dir() else status.st_nlink
        mode = status.st_mode & ~0o222 if path.is_dir() else status.st_mode
        found[str(path.relative_to(top))] = (mode, links, int(status.st_mtime), content)
    return found


@needs_root
def test_without_fuse_the_image_is_unpacked(ready: Workshop) -> None:
    script = 'mount --bind /dev/null /dev/fuse; "$@" exec -- hard-activated'
    done = support.without(ready, [], script)
    assert done.stdout == "activated\n", done.stderr
    assert "unpacking" in done.stderr
    ready.wait_until_clean()


@pytest.mark.parametrize("hidden", [[], pytest.param(["unsquashfs"], marks=needs_root)])
def test_what_is_unpacked_is_what_is_mounted(ready: Workshop, hidden: list[str]) -> None:
    ready.run("mount")
    mounted = picture(ready.prefix)
    ready.run("umount")
    done = support.without(ready, hidden, '"$@" mount --backend extract')
    assert done.returncode == 0, done.stderr
    assert not ready.is_mounted()
    assert picture(ready.prefix) == mounted
    ready.run("umount")
    ready.wait_until_clean()


@needs_root
def test_many_at_once_unpack_once(ready: Workshop) -> None:
    ready.run("mount", "--backend", "extract")
    ready.run("umount")
    script = (
        'mount --bind /dev/null /dev/fuse; for i in $(seq 12); do "$@" exec -- '
        'stat -c %i "$PREFIX" & done; wait'
    )
    variables = {**ready.variables, "PREFIX": str(ready.prefix)}
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", script, "bash", *CONDAINER],
        cwd=ready.directory,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    inodes = done.stdout.split()
    assert len(inodes) == 12, done.stderr
    assert len(set(inodes)) == 1
    assert done.stderr.count("unpacking") == 1
    ready.wait_until_clean()


def test_what_is_unpacked_can_be_kept(ready: Workshop) -> None:
    ready.configure(keep_extracted="true", unmount_after=0)
    try:
        ready.run("mount", "--backend", "extract")
        (ready.runtime / f"{ready.uuid}.pin").unlink()
        inode = ready.prefix.stat().st_ino
        ready.run("exec", "--", "true")
        kill_keepers(ready)
        ready.run("exec", "--", "true")
        assert ready.prefix.stat().st_ino == inode
        ready.run("umount")
    finally:
        ready.configure()
    ready.wait_until_clean()


def test_nothing_is_removed_from_under_a_program(ready: Workshop) -> None:
    ready.run("mount", "--backend", "extract")
    with subprocess.Popen(["cat"], cwd=ready.prefix / "bin", stdin=subprocess.PIPE) as user:
        answer = ready.run("umount", status=1)
        assert f"cat ({user.pid})" in answer.stderr
        assert (ready.prefix / "bin").is_dir()
        user.communicate()
    ready.run("umount")
    ready.wait_until_clean()


def test_the_files_cannot_be_removed_by_accident(ready: Workshop) -> None:
    ready.run("mount", "--backend", "extract")
    modes = {path.stat().st_mode & 0o222 for path in ready.prefix.rglob("*") if path.is_dir()}
    assert modes == {0}
    ready.run("umount")


@needs_root
@pytest.mark.parametrize(
    ("options", "words"), [("size=1m", "free, and the image"), ("noexec", "is mounted noexec")]
)
def test_where_there_is_no_room_or_no_program_runs(
    ready: Workshop, options: str, words: str
) -> None:
    with building.mounted_tmpfs(ready.base, options):
        answer = ready.run("mount", "--backend", "extract", status=1)
        assert words in answer.stderr
        assert not list(ready.base.iterdir())


def test_a_killed_unpacking_leaves_nothing_for_long(ready: Workshop) -> None:
    started = ready.start("mount", "--backend", "extract")
    wait_for(lambda: list(ready.base.glob(".condainer-*/*.unpacking")))
    for pid in (*support.running("unsquashfs"), *keepers_of(ready)):
        os.kill(pid, 9)
    started.communicate()
    ready.run("mount", "--backend", "extract")
    assert not list(ready.base.glob(".condainer-*/*.unpacking"))
    ready.run("umount")
    ready.wait_until_clean()


def test_what_a_killed_keeper_had_started_does_not_go_on(ready: Workshop) -> None:
    """It would write among the files of the next one."""
    started = ready.start("mount", "--backend", "extract")
    _, keeper = stop_unpacking(ready)
    os.kill(keeper, signal.SIGKILL)
    out, errors = started.communicate()
    try:
        assert started.returncode == 0, (out, errors)
        assert unpackers_of(ready) == []
    finally:
        for pid in unpackers_of(ready):
            os.kill(pid, signal.SIGKILL)
    ready.run("umount")
    ready.wait_until_clean()


def test_others_wait_for_an_unpacking_whose_command_was_killed(ready: Workshop) -> None:
    started = ready.start("mount", "--backend", "extract")
    unpacker, _ = stop_unpacking(ready)
    started.kill()
    started.communicate()
    other = ready.start("mount", "--backend", "extract")
    with contextlib.suppress(subprocess.TimeoutExpired):
        other.wait(5)  # longer than for a mount that is just going
    os.kill(unpacker, signal.SIGCONT)
    out, errors = other.communicate()
    assert other.returncode == 0, (out, errors)
    ready.run("umount")
    ready.wait_until_clean()


def test_an_image_that_changes_while_it_is_unpacked_leaves_nothing(ready: Workshop) -> None:
    """A tree that nobody has noted would stand in the way of each command, for ever."""
    before = ready.image.stat()
    started = ready.start("mount", "--backend", "extract")
    unpacker, _ = stop_unpacking(ready)
    os.utime(ready.image, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    os.kill(unpacker, signal.SIGCONT)
    _, errors = started.communicate()
    try:
        assert started.returncode == 1
        assert "was replaced while it was being mounted" in errors
        ready.wait_until_clean()
    finally:
        os.utime(ready.image, ns=(before.st_atime_ns, before.st_mtime_ns))
        removal.remove_tree(ready.prefix)


def test_what_is_unpacked_is_noted_before_it_comes_to_its_place(ready: Workshop) -> None:
    """A keeper that is killed just then leaves what the next command knows."""
    project = open_project(ready.directory)
    ready.base.joinpath(f".condainer-{os.getuid()}").mkdir(mode=0o700)
    ready.prefix.mkdir()
    found = []
    extract.unpack(
        project, lambda tree: found.append((tree.stat().st_ino, list(ready.prefix.iterdir())))
    )
    try:
        assert found == [(ready.prefix.stat().st_ino, [])]
    finally:
        removal.remove_tree(ready.prefix)
        ready.runtime.rmdir()
