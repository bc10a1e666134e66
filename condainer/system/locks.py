"""Lock files in this user's private directory on a node.

The kernel drops a lock however its holder ends, so nothing here has to be cleaned up by hand. How
the directory is reached is told by `runtime`. Every `exec` comes through here, so nothing is
imported that takes long.
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
    """Somebody else holds a lock."""


class Turn:
    """A lock that this process holds alone, until it is its turn no more; its file goes then.

    Args:
        path: the lock file.

    Raises:
        BusyError: where somebody else holds it.
        CondainerError: where its directory is not this user's own.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = path
        self._descriptor = acquire(path)

    def end(self) -> None:
        """Drop the lock; does nothing the second time."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            discard(self._path, descriptor)


def acquire(path: str | Path, *, shared: bool = False, timeout: float = 0.0) -> int:
    """Take a lock and give the descriptor that holds it; closing it drops the lock.

    Args:
        path: the lock file; it and its directory are made where they are missing.
        shared: several may hold it at once, but nobody alone meanwhile.
        timeout: seconds to wait; 0 means not at all.

    Raises:
        BusyError: where somebody else holds it until the time is over.
        CondainerError: where the directory is not this user's own.
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
    """Whether somebody holds a lock; makes no file.

    Args:
        path: the lock file.
        shared: whether to look only for one who holds it alone.

    Raises:
        CondainerError: where the directory is not this user's own.
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
    """Remove a lock file that this process holds alone, drop the lock, and tidy up behind it."""
    try:
        runtime.remove(path)
    except (OSError, CondainerError):
        pass
    os.close(descriptor)
    runtime.tidy(os.path.dirname(path))


def release(path: str | Path, descriptor: int) -> None:
    """Drop a lock, and remove its file where nobody else holds it."""
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
    """Whether a descriptor is of the file that has this name now.

    Raises:
        CondainerError: if the directory is not this user's own.
    """
    there = runtime.status(path)
    return there is not None and os.path.samestat(os.fstat(descriptor), there)
