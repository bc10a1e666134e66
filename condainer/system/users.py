"""Finds out who uses a mount: looks at this user's processes in /proc (proc(5))."""

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
    """A process that uses a mount.

    Attributes:
        pid: its number.
        command: its name.
    """

    pid: int
    command: str


def users_of(mountpoint: Path, use_lock: Path) -> list[User]:
    """Find the processes that run, map or have open anything in a mount, or hold its lock.

    Processes of other users cannot be looked at, but a FUSE mount is closed to them anyway.

    Args:
        mountpoint: of the mount.
        use_lock: the lock file of the mount.

    Returns:
        The processes, by number. This process is not among them.
    """
    top = str(mountpoint.parent.resolve() / mountpoint.name)
    lock = str(use_lock.parent.resolve() / use_lock.name)

    def is_of_mount(path: str) -> bool:
        return path in {lock, top} or path.startswith(top + "/")

    own = str(os.getpid())
    others = [e for e in Path("/proc").iterdir() if e.name.isdigit() and e.name != own]
    found = [User(int(e.name), _command(e)) for e in others if any(map(is_of_mount, _paths(e)))]
    return sorted(found, key=lambda user: user.pid)


def claimants(mountpoint: Path) -> list[str]:
    """Find the other users who have mounted something over a directory, each in a namespace.

    They lock a file beside it that has their number in its name. Files of other owners are ignored.

    Args:
        mountpoint: the directory.

    Returns:
        The users, in words.
    """
    found = []
    for path in mountpoint.parent.glob(f"{mountpoint.name}.*"):
        with contextlib.suppress(OSError):
            found.append(_claimant(path))
    return [name for name in found if name]


def _claimant(path: Path) -> str:
    """The owner of a file that is locked and has the owner's number in its name; else empty.

    Raises:
        OSError: If it cannot be opened.
    """
    descriptor = os.open(path, OPEN_FOREIGN)
    try:
        status = os.fstat(descriptor)
        if str(status.st_uid) == path.name.rpartition(".")[2]:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return describe_owner(status)
    finally:
        os.close(descriptor)
    return ""


def describe(users: list[User], most: int = 8) -> str:
    """Name processes in a message.

    Args:
        users: the processes.
        most: number of processes to name at most.
    """
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
