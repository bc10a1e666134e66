"""Mounts an image and serves it until it is unmounted: threads, signals, and idle time.

SIGTERM, SIGINT and SIGHUP ask to unmount. That is done when nobody uses the file system any more.
After SIGTERM it waits for 5 seconds only, since SIGKILL mostly comes next, and a dead mount serves
nobody. Then it takes the mount from the directory tree, as `squashfuse_ll` does. Whatever programs
have open is served until the last of them has closed it.
"""

from __future__ import annotations

import _thread
import errno
import os
import signal
import time
from typing import TYPE_CHECKING

from condainer.fuse import attach, kernel
from condainer.fuse.log import Log
from condainer.fuse.protocol import OF_OPEN_FILES

if TYPE_CHECKING:
    from collections.abc import Callable

    from condainer.fuse.options import Options
    from condainer.squashfs import FileSystem

_ENDING = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
_OVER = signal.SIGUSR1
"""A thread sends it to the first one if there is nothing more to answer."""
_MOST_THREADS = 8
_PATIENCE = 0.25
"""Seconds between two attempts to unmount what is in use."""
_COURTESY = 5.0
"""Seconds that users have after SIGTERM before the mount goes from the directory tree."""


def threads() -> int:
    """How many threads answer: one for each processor, and one that waits for the next request."""
    return min(len(os.sched_getaffinity(0)) + 1, _MOST_THREADS)


def serve(files: FileSystem, options: Options, on_ready: Callable[[], None]) -> None:
    """Mount, and answer requests until the file system has been unmounted.

    Args:
        files: what is served.
        options: how.
        on_ready: called once the mount is live.

    Raises:
        AttachError: If it cannot be mounted.
        OSError: If /dev/fuse fails.
    """
    ending = _hold_signals()
    wanted = attach.Wanted(options.fsname, options.mountpoint, options.flags, _words(options))
    descriptor = attach.attach(wanted)
    mount = attach.Mount(options.mountpoint, attach.device_at(options.mountpoint))
    session = kernel.Session(
        descriptor,
        files,
        uid=options.uid,
        gid=options.gid,
        asks_to_open=options.allow_root,
        on_ready=on_ready,
        watch=_watcher(options),
    )
    problems: list[Exception] = []
    if _start(session, 1 if options.single else threads(), problems):
        _wait(session, mount, ending, options.timeout)
    else:
        attach.detach(mount)
        problems.append(attach.AttachError("no thread can be started"))
    # The descriptor stays open: the other threads may not have seen the end yet.
    if problems:
        raise problems[0]


def _hold_signals() -> set[signal.Signals]:
    """Keep the signals that end the program for `_wait`; gives these.

    All threads inherit that. So one that comes while it mounts is heeded as well, and no dead mount
    is left behind. A signal that the caller has this process ignore, as nohup does, stays ignored.
    """
    ending = {number for number in _ENDING if signal.getsignal(number) != signal.SIG_IGN}
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the end of fusermount has to be heard of
    signal.pthread_sigmask(signal.SIG_BLOCK, {*ending, _OVER})
    return ending


def _start(session: kernel.Session, count: int, problems: list[Exception]) -> int:
    """Start threads that answer, fewer if no more may be had; gives how many there are."""

    def answer() -> None:
        try:
            session.serve()
        except Exception as error:  # noqa: BLE001  (`serve` raises it)
            problems.append(error)
        finally:
            os.kill(os.getpid(), _OVER)

    for number in range(count):
        try:
            _thread.start_new_thread(answer, ())
        except RuntimeError:
            return number
    return count


def _wait(
    session: kernel.Session, mount: attach.Mount, ending: set[signal.Signals], timeout: int
) -> None:
    """Wait for the end, and bring it about if a signal asks for it or nobody comes any more."""
    awaited = {*ending, _OVER}
    asked: dict[int, float] = {}
    seen = -1
    while True:
        if asked:
            received = signal.sigtimedwait(awaited, _PATIENCE)
        elif timeout:
            received = signal.sigtimedwait(awaited, timeout)
        else:
            received = signal.sigwaitinfo(awaited)
        number = received.si_signo if received is not None else 0
        if number == _OVER:
            return
        if number and number not in asked:
            asked[number] = time.monotonic()
            continue  # a program that has just started may be about to open what it needs
        if asked or session.requests == seen:
            term = asked.get(signal.SIGTERM, time.monotonic())
            attach.detach(mount, in_use=time.monotonic() - term > _COURTESY)
        seen = session.requests


def _words(options: Options) -> tuple[str, ...]:
    words = []
    if options.allow_other or options.allow_root:
        words.append("allow_other")
    if options.default_permissions:
        words.append("default_permissions")
    return tuple(words)


def _watcher(options: Options) -> Callable[[int, bytes], None] | None:
    """Looks at each request for `debug` and `allow_root`; None if neither is asked for."""
    users = {0, os.getuid()}
    log = Log()

    def watch(operation: int, request: bytes) -> None:
        if options.debug:
            log.add(f"operation {operation}, {len(request)} bytes")
        is_asking = options.allow_root and operation not in OF_OPEN_FILES
        if is_asking and kernel.caller(request) not in users:
            raise PermissionError(errno.EACCES, "only for the owner and root")

    return watch if options.debug or options.allow_root else None
