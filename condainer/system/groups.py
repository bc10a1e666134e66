"""Acts on whole process groups: ends them, or lets them yield the processors to others."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from condainer.system import processtable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from anyio import Event

GRACE = 3.0
"""Seconds between SIGTERM and SIGKILL."""

_POLL = 0.02
_LOOK = 0.2
"""Seconds between two looks at the table of all processes, which takes longer."""
_NICENESS, _TRIES = 10, 20
_RETRY = 0.2
"""Seconds: the kernel takes no more than ten changes of a session's niceness a second."""
_PR_SET_CHILD_SUBREAPER = 36
"""prctl(2)."""


def send(group: int, signum: signal.Signals) -> None:
    """Send a signal to a process group; does nothing if all of it has ended.

    Args:
        group: number of the group.
        signum: the signal.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signum)


async def end(group: int) -> None:
    """End a process group: SIGTERM first, then SIGKILL for what is left of it.

    Args:
        group: number of the group.
    """
    if not _runs(group):
        return
    for signum in (signal.SIGTERM, signal.SIGKILL):
        send(group, signum)
        if await has_ended(group, GRACE):
            return


async def has_ended(group: int, seconds: float) -> bool:
    """Wait for a process group to end.

    Args:
        group: number of the group.
        seconds: how long to wait at most.

    Returns:
        Whether it has ended.
    """
    import anyio

    deadline = anyio.current_time() + seconds
    look = anyio.current_time() + _LOOK
    while _exists(group):
        now = anyio.current_time()
        if now > look or now > deadline:
            if not _runs(group):
                return True
            look = now + _LOOK
        if now > deadline:
            return False
        await anyio.sleep(_POLL)
    return True


def _exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _runs(group: int) -> bool:
    """Whether a process of a group still runs.

    A process that has ended stays in the table until its parent waits for it. The first process of
    some containers never does.
    """
    return _exists(group) and any(
        each.group == group and each.state not in {"Z", "X"} for each in processtable.entries()
    )


async def stand_aside(session: int, until: Event) -> None:
    """Let the session that a program leads yield the processors for a while: sched(7), autogroup.

    Not with nice(2): an ordinary user cannot take that back, and on a busy machine such a program
    would hardly run, even when the build needs the processors for nothing else any more. A kernel
    without groups of sessions lets the program run as usual.

    Args:
        session: number of the session.
        until: ends that while.
    """
    group = Path(f"/proc/{session}/autogroup")
    with contextlib.suppress(OSError):  # it has ended, or there are no such groups
        await _set_niceness(group, _NICENESS)
        await until.wait()
        await _set_niceness(group, 0)


async def _set_niceness(group: Path, niceness: int) -> None:
    import anyio

    for _ in range(_TRIES):
        try:
            group.write_text(str(niceness), encoding="ascii")
        except BlockingIOError:
            await anyio.sleep(_RETRY)
        else:
            return


@contextlib.asynccontextmanager
async def adopting() -> AsyncIterator[None]:
    """At the end, end what programs have left running in sessions of their own.

    Meanwhile orphans below this process become its children. A process that already has other
    children could not tell them apart, and neither could the first process of a container: they
    leave everything as it is.
    """
    import anyio

    if os.getpid() == 1 or processtable.children():
        yield
        return
    _be_subreaper(on=True)
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await _end_children()
        _be_subreaper(on=False)


def _be_subreaper(*, on: bool) -> None:
    """Let orphans below this process become its children, if the kernel can do that."""
    import ctypes

    zero = ctypes.c_ulong(0)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(on), zero, zero, zero)


async def _end_children() -> None:
    """SIGTERM to all children, and to those of theirs that become ours then; then SIGKILL."""
    import anyio

    for signum in (signal.SIGTERM, signal.SIGKILL):
        told: set[int] = set()
        deadline = anyio.current_time() + GRACE
        while (children := processtable.children()) and anyio.current_time() < deadline:
            _signal(children - told, signum)
            told |= children
            await anyio.sleep(_POLL)
            _collect(children)


def _signal(pids: Iterable[int], signum: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signum)


def _collect(pids: Iterable[int]) -> None:
    """Take those that have ended out of the process table."""
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
