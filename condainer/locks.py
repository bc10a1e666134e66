"""Lock files in a directory of this user's own, on this node.

The kernel drops a lock however its holder ends, so nothing here has to be cleaned up by hand. The
directory lies in a shared place such as /tmp, so it is trusted only where it is a real directory,
owned by this user and closed to everybody else. Every `exec` comes through here, so nothing is
imported that takes long.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time

from condainer.errors import CondainerError

TYPE_CHECKING = False  # importing `typing` takes as long as all of this does
if TYPE_CHECKING:
    from pathlib import Path

_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.02
_ATTEMPTS = 100


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
    directory = os.path.dirname(path)
    if not os.path.lexists(directory):
        return False
    ensure_directory(directory)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
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
        os.unlink(path)
    except OSError:
        pass
    os.close(descriptor)
    tidy(os.path.dirname(path))


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


def tidy(directory: str | Path) -> None:
    """Remove the directory of the locks once nothing is left in it."""
    try:
        os.rmdir(directory)
    except OSError:
        pass


def ensure_directory(directory: str | Path) -> None:
    """Make the directory of the locks, or check that it is what it should be.

    Raises:
        CondainerError: where it cannot be made, or belongs to somebody else.
    """
    try:
        status = os.lstat(directory)
    except FileNotFoundError:
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:  # made by another process
            pass
        except OSError as error:
            raise CondainerError(
                f"cannot make the directory {directory}: {error.strerror}",
                f"mount_base_directory ({os.path.dirname(directory)}) must exist and be writable",
            ) from error
        try:
            status = os.lstat(directory)
        except FileNotFoundError:
            return  # tidied by another process this very moment: the caller tries again
    except OSError as error:
        raise CondainerError(f"cannot look at {directory}: {error.strerror}") from error
    private = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
    if not private or status.st_mode & 0o077:
        raise CondainerError(
            f"{directory} is not a directory that only you can use",
            "somebody else may have made it; ask its owner or an administrator to remove it",
        )
    if status.st_mode & 0o700 != 0o700:  # noqa: PLR2004
        try:
            set_mode(directory, 0o700)
        except FileNotFoundError:
            pass


def set_mode(path: str | Path, mode: int) -> None:
    """Give what this user has made its mode, whatever an odd umask has left of it.

    What somebody else has put in its place meanwhile is left alone.

    Raises:
        OSError: where that cannot be done.
    """
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if os.fstat(descriptor).st_uid == os.getuid():
            os.chmod(f"/proc/self/fd/{descriptor}", mode)
    finally:
        os.close(descriptor)


def check_base(base: str | Path) -> None:
    """See that what this user makes in a directory stays this user's.

    Raises:
        CondainerError: where everybody may rename and replace it.
    """
    status = os.stat(base)
    if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        raise CondainerError(
            f"in mount_base_directory {base} everybody may replace what is yours: it is writable "
            "for all and has no sticky bit",
            f"run 'chmod +t {base}', or choose another mount_base_directory in condainer.yml",
        )


def _open(path: str | Path) -> int:
    for _ in range(_ATTEMPTS):
        ensure_directory(os.path.dirname(path))
        try:
            return _open_own(path)
        except FileNotFoundError:
            continue  # another process tidied the directory in between
        except OSError as error:
            raise CondainerError(f"cannot open {path}: {error.strerror}") from error
    raise CondainerError(f"cannot open {path}: its directory keeps vanishing")


def _open_own(path: str | Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags, 0o600)
    except PermissionError:  # made this very moment, by a process with an odd umask
        set_mode(path, 0o600)
        descriptor = os.open(path, flags, 0o600)
    if os.fstat(descriptor).st_mode & 0o600 != 0o600:  # noqa: PLR2004
        os.fchmod(descriptor, 0o600)
    return descriptor


def is_current(path: str | Path, descriptor: int) -> bool:
    """Whether a descriptor is of the file that has this name now."""
    mine = os.fstat(descriptor)
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        return False
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)
