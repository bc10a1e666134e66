"""Asks a mount something, and does not wait for an answer for ever.

What serves a mount may be stopped, or may itself wait for a file server that is gone. The kernel
then holds whoever asks; once the request has been read, not even SIGKILL ends that. So somebody
else asks, and this process looks on. A thread does where one of the daemon's is just waiting for
requests: that takes next to no time. Otherwise another process does, which is left behind where it
does not come back: this one could not end as long as a thread of its own is held.

Every `exec` comes through here, so nothing is imported that takes long.
"""

from __future__ import annotations

import _signal  # `signal` makes enumerations of it, which take long
import _thread
import errno
import os
import time

from condainer.errors import CondainerError

TYPE_CHECKING = False  # importing `typing` takes as long as all of this does
if TYPE_CHECKING:
    from collections.abc import Callable

    Answer = tuple[int, int]

PATIENCE = 30.0
"""Seconds to wait for an answer."""
_PATIENCE_IF_STOPPED = 3.0
"""Seconds to wait for a process that is stopped to be continued."""
_LOOK = 0.5
"""Seconds between two looks at that process."""
_WAITS = b"fuse_dev_do_read"
"""Where in the kernel a daemon is that waits for requests: proc(5), wchan."""
_LONGEST = 64
"""Bytes of an answer."""

_left_behind: list[int] = []
"""Processes that have not come back with an answer."""


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

    def question() -> Answer:
        _statvfs(prefix)
        return 0, 0

    _ask(question, prefix, daemon)


def root_of(prefix: str, daemon: int) -> Answer:
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

    def question() -> Answer:
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
    how = _ask_by_thread if _waits_for_requests(daemon) else _ask_by_process
    answer = how(question, prefix, daemon)
    if isinstance(answer, OSError):
        raise answer
    return answer


def _ask_by_thread(question: Callable[[], Answer], prefix: str, daemon: int) -> Answer | OSError:
    outcome: list[Answer | OSError] = []
    asked = _thread.allocate_lock()
    asked.acquire()

    def ask() -> None:
        try:
            outcome.append(question())
        except OSError as error:
            outcome.append(error)
        finally:
            asked.release()

    _thread.start_new_thread(ask, ())
    _wait(lambda seconds: asked.acquire(timeout=seconds), prefix, daemon)
    return outcome[0]


def _ask_by_process(question: Callable[[], Answer], prefix: str, daemon: int) -> Answer | OSError:
    import select

    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _answer(question, writer)
    os.close(writer)
    try:
        poll = select.poll()
        poll.register(reader, select.POLLIN)
        try:
            _wait(lambda seconds: bool(poll.poll(seconds * 1000)), prefix, daemon)
        except StuckError:
            _left_behind.append(child)
            raise
        words = os.read(reader, _LONGEST).split()
    finally:
        os.close(reader)
    _reap(child)
    numbers = [int(word) for word in words]
    if len(numbers) == 1:
        return OSError(numbers[0], os.strerror(numbers[0]), prefix)
    if len(numbers) != 2:  # noqa: PLR2004  (device and inode)
        return OSError(errno.EIO, "it could not be asked", prefix)
    return numbers[0], numbers[1]


def _answer(question: Callable[[], Answer], writer: int) -> None:
    """In the child, which holds nothing of its parent's: it may never come to an end."""
    try:
        os.dup2(writer, 0)
        os.closerange(1, os.sysconf("SC_OPEN_MAX"))
        try:
            numbers: tuple[int, ...] = question()
        except OSError as error:
            numbers = (error.errno or errno.EIO,)
        os.write(0, " ".join(map(str, numbers)).encode())
    finally:
        os._exit(0)


def _reap(child: int) -> None:
    """Take leave of a child, and of those that have come back late; nobody else hears of them."""
    for each in (child, *_left_behind):
        try:
            if os.waitpid(each, 0 if each == child else os.WNOHANG)[0] and each != child:
                _left_behind.remove(each)
        except ChildProcessError:  # where the caller ignores SIGCHLD
            continue
    if _signal.SIGCHLD in _signal.pthread_sigmask(_signal.SIG_BLOCK, ()):
        _signal.sigtimedwait((_signal.SIGCHLD,), 0)  # it is ours, not the command's


def _wait(has_come: Callable[[float], bool], prefix: str, daemon: int) -> None:
    began = time.monotonic()
    stopped_since = began
    while not has_come(_LOOK):
        now = time.monotonic()
        state = _state(daemon)
        if not is_stopped(daemon):
            stopped_since = now
        if now - stopped_since > _PATIENCE_IF_STOPPED or now - began > PATIENCE:
            raise _stuck(prefix, daemon, state, now - began)


def _waits_for_requests(daemon: int) -> bool:
    """Whether a daemon has a thread that will take the next request at once."""
    try:
        for thread in os.listdir(f"/proc/{daemon}/task") if daemon else ():
            with open(f"/proc/{daemon}/task/{thread}/wchan", "rb") as file:
                if file.read() == _WAITS and not is_stopped(daemon):
                    return True
    except OSError:
        return False
    return False


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


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped, by a signal or by who traces it."""
    return _state(pid) in {b"T", b"t"}


def _state(pid: int) -> bytes:
    """The state of a process, as proc(5) has it; empty where there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1]
    except OSError:
        return b""
