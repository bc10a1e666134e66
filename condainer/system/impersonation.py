"""Lets root do something as another user: in a process that has become that user.

Whatever that user has planted, it makes the process do nothing that the user could not do anyway.
The process keeps no file of its parent open, and what it can say is limited.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import select
import signal
import time
from typing import TYPE_CHECKING, NoReturn

from condainer.errors import CondainerError
from condainer.system import detach
from condainer.system.trust import user_name
from condainer.units import foreign

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 120.0
"""Seconds for which it may take."""
_MOST = 1 << 20
"""Bytes that it may say."""
_NOBODY = 65534
_DONE = "\0done"
"""The last line; no line that is said begins like it."""
_ENDING, _POLL = 5.0, 0.02
"""Seconds for a process that was killed to end, and between two looks."""
_LOOK = 0.5
"""Seconds between two looks whether what says nothing still goes on."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def run_as(uid: int, work: Callable[[Callable[[str], None]], None]) -> list[str]:
    """Do something as another user.

    Args:
        uid: number of the user.
        work: what to do; it is given a function that takes a line to report.

    Returns:
        The lines that it reported.

    Raises:
        CondainerError: If this process is not root's, or if the work did not finish.
    """
    if os.getuid() != 0:
        raise CondainerError(f"only root can do that for {user_name(uid)}", "run it with sudo")
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        _work_and_end(uid, sender, work)
    os.close(sender)
    try:
        said = _receive(receiver, child, time.monotonic() + PATIENCE)
        stopped = _is_stopped(child)
    finally:
        os.close(receiver)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        how = _reap(child)
    if stopped:
        how = f"process {child} was stopped, and has been ended; that user can do that to it"
    lines = said.decode("utf-8", "replace").removesuffix("\n").split("\n")
    if lines.pop() != _DONE:
        raise CondainerError(
            f"the work for {user_name(uid)} did not finish: {how}",
            "check that user's mounts and processes on this node",
        )
    return [foreign(line) for line in lines]


def _reap(child: int) -> str:
    """Wait for a child that was killed, but not for ever; gives what became of it."""
    deadline = time.monotonic() + _ENDING
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return f"process {child} ended with status {os.waitstatus_to_exitcode(status)}"
        time.sleep(_POLL)
    return f"process {child} waits for a mount that does not answer, and cannot be ended"


def _receive(receiver: int, child: int, deadline: float) -> bytes:
    """What the child reports, until it has ended, is stopped, or has taken too long."""
    said = b""
    while len(said) < _MOST and time.monotonic() < deadline:
        ready, _, _ = select.select([receiver], [], [], _LOOK)
        chunk = os.read(receiver, 1 << 16) if ready else b""
        if (ready and not chunk) or (not ready and _is_stopped(child)):
            break
        said += chunk
    return said


def _is_stopped(child: int) -> bool:
    """Whether a child is stopped: the user that it has become can do that to it."""
    try:
        return os.waitid(os.P_PID, child, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # the caller has all children reaped by the kernel
        return False


def _work_and_end(uid: int, sender: int, work: Callable[[Callable[[str], None]], None]) -> NoReturn:
    status = 1
    try:
        os.setpgid(0, 0)
        pipe = detach.detach(None, sender, umask=0o077)
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, signal.SIG_DFL)
        _become(uid)

        def say(text: str) -> None:
            line = text.replace("\n", " ").replace("\0", " ").encode("utf-8", "backslashreplace")
            os.write(pipe, line + b"\n")

        work(say)
        os.write(pipe, f"{_DONE}\n".encode())
        status = 0
    finally:
        os._exit(status)


def _become(uid: int) -> None:
    """Become the user, for good: all ids and groups, and none of root's variables."""
    try:
        entry = pwd.getpwuid(uid)
        name, gid, home = entry.pw_name, entry.pw_gid, entry.pw_dir
        os.initgroups(name, gid)
    except KeyError:
        name, gid, home = str(uid), _NOBODY, "/"
        os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid):
        raise PermissionError(f"cannot become user {uid}")
    os.environ.clear()
    os.environ.update({"HOME": home, "USER": name, "LOGNAME": name, "PATH": _PATH, "LC_ALL": "C"})
