"""Asks a mount something, and does not wait for an answer for ever.

What serves a mount may be stopped, or may itself wait for a file server that is gone. The kernel
then holds whoever asks, whatever signals come. So a thread asks, and this process looks on.

Every `exec` comes through here, so nothing is imported that takes long.
"""

from __future__ import annotations

import _thread
import errno
import os
import time

from condainer.errors import CondainerError

TYPE_CHECKING = False  # importing `typing` takes as long as all of this does
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    Answer = TypeVar("Answer")

PATIENCE = 30.0
"""Seconds to wait for an answer."""
_PATIENCE_IF_STOPPED = 3.0
"""Seconds to wait for a process that is stopped to be continued."""
_LOOK = 0.5
"""Seconds between two looks at that process."""


class StuckError(CondainerError):
    """What serves a mount does not answer."""


def see_served(prefix: str, daemon: int) -> None:
    """Ask a mount whether it is served.

    Args:
        prefix: where it is mounted.
        daemon: the process that serves it; 0 where that is not known.

    Raises:
        OSError: if it is not served any more, or cannot be looked at.
        StuckError: if it does not answer.
    """
    _ask(lambda: _statvfs(prefix), prefix, daemon)


def root_of(prefix: str, daemon: int) -> tuple[int, int]:
    """Ask a mount for its root, and whether it is served.

    Args:
        prefix: where it is mounted.
        daemon: the process that serves it; 0 where that is not known.

    Returns:
        device and inode of the root, which tell it from that of another mount.

    Raises:
        OSError: if it is not served any more, or cannot be looked at.
        StuckError: if it does not answer.
    """

    def question() -> tuple[int, int]:
        status = os.stat(prefix)
        _statvfs(prefix)
        return status.st_dev, status.st_ino

    return _ask(question, prefix, daemon)


def _statvfs(prefix: str) -> None:
    """The kernel asks the daemon; to `stat` it may know the answer itself."""
    try:
        os.statvfs(prefix)
    except OSError as error:
        if error.errno != errno.ENOSYS:  # by which the daemon says that it lives and cannot tell
            raise


def _ask(question: Callable[[], Answer], prefix: str, daemon: int) -> Answer:
    outcome: list[Answer] = []
    problems: list[OSError] = []
    asked = _thread.allocate_lock()
    asked.acquire()

    def ask() -> None:
        try:
            outcome.append(question())
        except OSError as error:
            problems.append(error)
        finally:
            asked.release()

    _thread.start_new_thread(ask, ())
    _wait(asked, prefix, daemon)
    if problems:
        raise problems[0]
    return outcome[0]


def _wait(asked: _thread.LockType, prefix: str, daemon: int) -> None:
    began = time.monotonic()
    stopped_since = began
    while not asked.acquire(timeout=_LOOK):
        now = time.monotonic()
        state = _state(daemon)
        if state not in {b"T", b"t"}:
            stopped_since = now
        if now - stopped_since > _PATIENCE_IF_STOPPED or now - began > PATIENCE:
            raise _stuck(prefix, daemon, state, now - began)


def _stuck(prefix: str, daemon: int, state: bytes, seconds: float) -> StuckError:
    if not state:
        return StuckError(
            f"what serves {prefix} has not answered for {seconds:.0f} s",
            f"look for its process ('ps -ef | grep {prefix}'), end it, and try again",
        )
    how = "is stopped" if state in {b"T", b"t"} else f"has not answered for {seconds:.0f} s"
    return StuckError(
        f"process {daemon}, which serves {prefix}, {how}",
        f"'kill -CONT {daemon}' lets it go on; or end it with 'kill -KILL {daemon}', and try again",
    )


def runs(pid: int) -> bool:
    """Whether a process has not ended yet, if only to be waited for."""
    return _state(pid) not in {b"", b"Z", b"X"}


def _state(pid: int) -> bytes:
    """The state of a process, as proc(5) has it; empty where there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1]
    except OSError:
        return b""
