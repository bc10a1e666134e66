"""Who uses a mount: found by looking at this user's processes in /proc (proc(5))."""

from __future__ import annotations

import contextlib
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from condainer.system.trust import describe_owner
from condainer.units import foreign

if TYPE_CHECKING:
    from collections.abc import Iterator

OPEN_FOREIGN = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
"""To open what another user may have put in the place of a file."""


@dataclass(frozen=True)
class User:
    """A process that uses a mount."""

    pid: int
    command: str


def users_of(mountpoint: Path, use_lock: Path) -> list[User]:
    """The processes that run, map, or have open something below a mountpoint, or hold its lock.

    Other users' processes cannot be looked at; a FUSE mount is closed to them anyway.
    """
    top = str(mountpoint.parent.resolve() / mountpoint.name)
    lock = str(use_lock.parent.resolve() / use_lock.name)
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            uses = any(path in {lock, top} or path.startswith(top + "/") for path in _paths(entry))
            if uses:
                found.append(User(int(entry.name), _command(entry)))
    return sorted(found, key=lambda user: user.pid)


def claimants(mountpoint: Path) -> list[str]:
    """The other users who have mounted over a directory in a namespace of theirs, in words.

    They lock a file beside it, which has their number. One that is not theirs counts for nothing.
    """
    found = []
    for path in mountpoint.parent.glob(f"{mountpoint.name}.*"):
        user = path.name.rpartition(".")[2]
        with contextlib.suppress(OSError):
            descriptor = os.open(path, OPEN_FOREIGN)
            try:
                status = os.fstat(descriptor)
                if str(status.st_uid) == user:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                found.append(describe_owner(status))
            finally:
                os.close(descriptor)
    return found


def describe(users: list[User], most: int = 8) -> str:
    """Processes in words, for a message."""
    words = [f"{foreign(user.command)} ({user.pid})" for user in users[:most]]
    if len(users) > most:
        words.append(f"{len(users) - most} more")
    return ", ".join(words)


def _paths(process: Path) -> Iterator[str]:
    for link in ("exe", "cwd", "root"):
        try:
            yield os.readlink(process / link)  # noqa: PTH115  (thousands of them)
        except OSError:
            continue
    try:
        for descriptor in os.listdir(process / "fd"):  # noqa: PTH208
            try:
                yield os.readlink(process / "fd" / descriptor)  # noqa: PTH115
            except OSError:
                continue
        # The kernel escapes a newline in a path, and nothing else.
        maps = process / "maps"
        with maps.open(encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
            for line in lines:
                yield "".join(line.rstrip("\n").split(None, 5)[5:]).replace(r"\012", "\n")
    except OSError:
        return


def _command(process: Path) -> str:
    try:
        return (process / "comm").read_text(encoding="utf-8", errors="replace").rstrip("\n")
    except OSError:
        return "?"
