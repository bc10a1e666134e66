"""Faults of the machine: each is told by its own name, with the file."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from condainer import errors
from condainer.commands.progress import Board
from condainer.errors import BuildError, MountError
from condainer.fuse import attach
from condainer.mounting import namespace
from condainer.pipeline import space
from condainer.pipeline.events import Failed, Progress, Stage, StageStarted, Unit
from condainer.pipeline.installers import failures

if TYPE_CHECKING:
    from pathlib import Path


def test_what_the_system_says_is_named() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/a/b")
    assert errors.named(full).message == "/a/b: No space left on device"
    again = BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
    assert "ulimit -u" in errors.named(again).hint
    assert "ulimit -u" in errors.named(RuntimeError("can't start new thread")).hint
    assert errors.named(MemoryError()).message == "out of memory"
    pipe = BrokenPipeError(errno.EPIPE, "Broken pipe")
    assert errors.named(pipe).message == "Broken pipe"
    assert "bug in condainer" in errors.named(ZeroDivisionError()).hint
    own = MountError("x")
    assert errors.named(own) is own


@pytest.mark.parametrize(
    "why",
    [
        "  OS can't spawn worker thread: Resource temporarily unavailable (os error 11)",
        "  error sending request: Too many open files (os error 24)",
    ],
)
def test_what_this_machine_refuses_is_not_the_fault_of_a_channel(why: str) -> None:
    told = failures.unreadable(why, ["https://example.org/channel"])
    assert "the channel" not in told.message
    assert "ulimit" in told.hint
    other = failures.unreadable("  404 Not Found", ["https://example.org/channel"])
    assert "cannot read the channel https://example.org/channel" in other.message


def test_what_is_full_is_the_place_of_the_file_that_is_named(tmp_path: Path) -> None:
    places = [
        space.Destination(tmp_path / name, name, 1 << 62) for name in ("prefix", "cache", "tmp")
    ]
    error = BuildError(f"failed to unpack {tmp_path}/cache/x: No space left on device")
    told = space.explain(error, places)
    assert told is not None
    assert f"no space left for cache in {tmp_path}/cache" in told.message
    named = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "tmp" / "y"))
    told = space.explain(named, places)
    assert told is not None
    assert f"no space left for tmp in {tmp_path}/tmp" in told.message


@pytest.mark.parametrize(
    ("release", "version"),
    [
        ("6.1.0-18-amd64", (6, 1)),
        ("6.1-rc3", (6, 1)),
        ("6", (6, 0)),
        ("5.2+", (5, 2)),
        ("odd", (0, 0)),
        ("", (0, 0)),
    ],
)
def test_the_release_of_a_kernel(release: str, version: tuple[int, int]) -> None:
    assert attach.kernel_version(release) == version


@pytest.mark.parametrize(("user", "inode"), [(9999, 0), (-1, 1)])
def test_a_namespace_that_cannot_be_entered_takes_no_descriptors(user: int, inode: int) -> None:
    """It is looked for again and again."""
    own = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    try:
        place = namespace.Place(
            os.getpid(), user, own, inode or os.fstat(own).st_ino, namespace.here()
        )
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        for _ in range(5):
            with pytest.raises(MountError):
                place.open()
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    finally:
        os.close(own)


def test_a_failed_project_is_on_the_board_no_more() -> None:
    board = Board()
    for project in ("a", "b"):
        board.update(StageStarted(project, Stage.SOLVE), 1.0)
        board.update(Progress(project, Stage.SOLVE, 1, 2, Unit.PACKAGES), 2.0)
    board.update(Failed("a"), 3.0)
    lines = board.render(4.0, 80)
    assert len(lines) == 1
    assert " b: " in lines[0]
