"""Finds processes in /proc, and sets how this one is shown there (proc(5))."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_KEEPER = "condainer-keep"


@dataclass(frozen=True)
class Entry:
    """What /proc/PID/stat says about a process.

    Attributes:
        pid: its number.
        name: its name, at most 15 bytes.
        state: one letter, such as R, S, Z or X.
        parent: number of the process that it is a child of.
        group: number of its process group.
    """

    pid: int
    name: str
    state: str
    parent: int
    group: int


def entries() -> Iterator[Entry]:
    """All processes that this one can see."""
    for number in _numbers():
        with contextlib.suppress(OSError, ValueError):  # it has ended meanwhile
            text = Path("/proc", number, "stat").read_text(encoding="utf-8", errors="replace")
            before, _, after = text.rpartition(") ")
            state, parent, group = after.split()[:3]
            yield Entry(int(number), before.partition("(")[2], state, int(parent), int(group))


def children() -> set[int]:
    """The children of this process, without the keepers of mounts: other programs started those."""
    own = os.getpid()
    return {each.pid for each in entries() if each.parent == own and each.name != _KEEPER}


def running(commands: Sequence[Sequence[str]]) -> list[int]:
    """Find this user's processes that run one of some commands.

    Args:
        commands: each a program and its arguments, all of them.

    Returns:
        Their numbers.
    """
    wanted = {b"\0".join(map(os.fsencode, command)) + b"\0" for command in commands}
    return [pid for pid, line in _own_commands() if line in wanted]


def running_on(word: str) -> list[int]:
    """Find this user's other processes that have a word in their command line.

    Args:
        word: a whole argument, such as a path.

    Returns:
        Their numbers.
    """
    encoded = os.fsencode(word)
    own = os.getpid()
    return [pid for pid, line in _own_commands() if encoded in line.split(b"\0") and pid != own]


def _own_commands() -> Iterator[tuple[int, bytes]]:
    """This user's processes, by number, and their command lines: proc(5), cmdline."""
    for number in _numbers():
        entry = Path("/proc", number)
        with contextlib.suppress(OSError):
            if entry.stat().st_uid == os.getuid():
                yield int(number), (entry / "cmdline").read_bytes()


def _numbers() -> Iterator[str]:
    return filter(str.isdigit, os.listdir("/proc"))  # noqa: PTH208


def name_keeper() -> None:
    """Give this process the name by which `children` recognises the keeper of a mount."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(_KEEPER, encoding="ascii")


def show_as(text: str) -> None:
    """Let `ps` show a text as the command line of this process.

    The kernel reads it from this process's memory: proc(5), arg_start and arg_end.

    Args:
        text: as much of it is shown as the old command line has room for.
    """
    import ctypes

    with contextlib.suppress(OSError, ValueError):
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        start, end = int(fields[45]), int(fields[46])
        room = end - start - 1
        if start > 0 and room > 0:
            ctypes.memmove(start, os.fsencode(text)[:room].ljust(room + 1, b"\0"), room + 1)
