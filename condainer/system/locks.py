"""Lock files in this user's private directory on a node.

The kernel drops a lock when its holder ends, however it ends: nobody has to clean up. `runtime`
opens the files. Every `exec` uses this module, so it imports nothing that takes long.
"""

from __future__ import annotations

import fcntl
import os
import time

from condainer.errors import CondainerError
from condainer.system import runtime

TYPE_CHECKING = False  # importing `typing` takes as long as all of this does
if TYPE_CHECKING:
    from pathlib import Path

_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.02


class BusyError(CondainerError):
    """Another process holds a lock."""


class Turn:
    """A lock that this process holds alone. Its file is removed at the end.

    Args:
        path: the lock file.

    Raises:
        BusyError: If another process holds it.
        CondainerError: If its directory is not this user's own.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = path
        self._descriptor = acquire(path)

    def end(self) -> None:
        """Drop the lock; a second call does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            discard(self._path, descriptor)


def acquire(path: str | Path, *, shared: bool = False, timeout: float = 0.0) -> int:
    """Take a lock.

    Args:
        path: the lock file; it and its directory are made if they are missing.
        shared: whether others may share the lock.
        timeout: seconds to wait at most; 0 means not at all.

    Returns:
        The descriptor that holds the lock; closing it drops the lock.

    Raises:
        BusyError: If another process holds it for all that time.
        CondainerError: If the directory is not this user's own.
    """
    deadline = time.monotonic() + timeout
    pause = _FIRST_PAUSE
    while True:
        descriptor = _open(path)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            if time.monotonic() >= deadline:
                raise BusyError(f"{path} is held by another process") from None
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            continue
        if is_current(path, descriptor):
            return descriptor
        os.close(descriptor)  # removed by its last holder while we waited


def is_held(path: str | Path, *, shared: bool = False) -> bool:
    """Whether another process holds a lock; makes no file.

    Args:
        path: the lock file.
        shared: whether to ignore those who share the lock.

    Raises:
        CondainerError: If the directory is not this user's own.
    """
    try:
        descriptor = runtime.open_file(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise CondainerError(f"cannot open {path}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def discard(path: str | Path, descriptor: int) -> None:
    """Remove a lock file, drop its lock, and remove the directory if it is empty.

    Args:
        path: the lock file.
        descriptor: holds the lock alone.
    """
    try:
        runtime.remove(path)
    except (OSError, CondainerError):
        pass
    os.close(descriptor)
    runtime.tidy(os.path.dirname(path))


def release(path: str | Path, descriptor: int) -> None:
    """Drop a lock, and remove its file if nobody else holds it.

    Args:
        path: the lock file.
        descriptor: holds the lock.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return
    if is_current(path, descriptor):
        discard(path, descriptor)
    else:
        os.close(descriptor)


def _open(path: str | Path) -> int:
    try:
        return runtime.open_file(path, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise CondainerError(f"cannot open {path}: {error.strerror}") from error


def is_current(path: str | Path, descriptor: int) -> bool:
    """Whether a descriptor belongs to the file that has this name now.

    Args:
        path: the lock file.
        descriptor: open on a file that had this name before.

    Raises:
        CondainerError: If the directory is not this user's own.
    """
    there = runtime.status(path)
    return there is not None and os.path.samestat(os.fstat(descriptor), there)
