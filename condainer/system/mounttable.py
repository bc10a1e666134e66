"""Reads the mount table of the kernel: /proc/self/mountinfo (proc(5))."""

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
        identity: the kernel's number of the mount.
        mountpoint: the directory where it is mounted.
        kind: file system type, such as `fuse.squashfuse_ll` or `squashfs`.
        source: what was mounted, in the words of the program that mounted it.
        owner: number of the user who mounted it, for FUSE; otherwise None.
    """

    identity: int
    mountpoint: Path
    kind: str
    source: str
    owner: int | None


def mounts_at_or_below(path: Path) -> list[Mount]:
    """Find what is mounted at a path or below it, the newest last.

    Args:
        path: absolute; links in the directories above it are followed, as the kernel does.
    """
    top = str(path.parent.resolve() / path.name)
    below = f"{top.rstrip('/')}/"
    # Anybody may mount at a path with a carriage return in it, which the kernel does not escape.
    path = Path("/proc/self/mountinfo")
    with path.open(encoding="utf-8", errors="surrogateescape", newline="\n") as table:
        found = [_parsed(line.rstrip("\n")) for line in table]
    return [each for each in found if f"{each.mountpoint}/".startswith(below)]


def _parsed(line: str) -> Mount:
    before, _, after = line.partition(" - ")
    fields = before.split(" ")
    kind, source, options = [*after.split(" "), "", "", ""][:3]
    match = _USER_ID.search(options)
    owner = int(match[1]) if match else None
    return Mount(int(fields[0]), Path(_unescape(fields[4])), kind, _unescape(source), owner)


def mount_at(path: Path) -> Mount | None:
    """Find the newest mount at exactly this path; None if there is none.

    Args:
        path: absolute, as for `mounts_at_or_below`.
    """
    name = str(path.parent.resolve() / path.name)
    there = [mount for mount in mounts_at_or_below(path) if str(mount.mountpoint) == name]
    return there[-1] if there else None


def _unescape(text: str) -> str:
    """Undo the octal escapes that the kernel writes for space, tab, newline and backslash."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
