"""What is mounted where, as the kernel tells in /proc/self/mountinfo (proc(5))."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_ESCAPE = re.compile(r"\\([0-7]{3})")
_USER_ID = re.compile(r"(?:^|,)user_id=(\d+)")


@dataclass(frozen=True)
class Mount:
    """One line of the mount table.

    Attributes:
        identity: number by which the kernel tells it from others.
        mountpoint: where.
        kind: file system type, such as `fuse.squashfuse_ll` or `squashfs`.
        source: what the mounter named as source.
        owner: for FUSE, the user id that mounted it; else None.
    """

    identity: int
    mountpoint: Path
    kind: str
    source: str
    owner: int | None


def mounts_at_or_below(path: Path) -> list[Mount]:
    """The mounts whose mountpoint is a path or lies below it, the newest last.

    Args:
        path: absolute; links in the directories above it are followed, as the kernel does.
    """
    top = str(path.parent.resolve() / path.name)
    below = f"{top.rstrip('/')}/"
    found = []
    # Anybody may mount at a path with a carriage return in it, which the kernel does not escape.
    path = Path("/proc/self/mountinfo")
    with path.open(encoding="utf-8", errors="surrogateescape", newline="\n") as table:
        for line in table:
            before, _, after = line.rstrip("\n").partition(" - ")
            fields = before.split(" ")
            where = _unescape(fields[4])
            if where == top or where.startswith(below):
                kind, source, options = [*after.split(" "), "", "", ""][:3]
                match = _USER_ID.search(options)
                owner = int(match[1]) if match else None
                found.append(Mount(int(fields[0]), Path(where), kind, _unescape(source), owner))
    return found


def mount_at(path: Path) -> Mount | None:
    """The newest mount at exactly this path."""
    name = str(path.parent.resolve() / path.name)
    there = [mount for mount in mounts_at_or_below(path) if str(mount.mountpoint) == name]
    return there[-1] if there else None


def _unescape(text: str) -> str:
    """Undo the kernel's octal escapes of space, tab, newline and backslash."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
