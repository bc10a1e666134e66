"""This user's private directory on a node: locks, records and logs.

It lies in a place that all share, such as /tmp, under a name that all know. So it is opened once,
and looked at through that descriptor: a real directory, this user's own, closed to all others, and
no mount of somebody else's. What lies in it is reached from the descriptor, never by its full
path. The paths of `places` only say which file is meant.

It is not in XDG_RUNTIME_DIR. Only some of a user's processes have that directory: a batch job
mostly has none, and it goes with the last login while jobs still run. Locks hold only where all
processes of a user on a node find the same ones.

Every `exec` comes through here, so nothing is imported that takes long.
"""

from __future__ import annotations

import errno
import os
import stat

from condainer.errors import NEEDS_PROC, CondainerError

TYPE_CHECKING = False  # importing `typing` takes as long as all of this does
if TYPE_CHECKING:
    from pathlib import Path

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_ATTEMPTS = 100
_MOST = 8 << 20
"""Bytes of a file that is read here."""

_opened: dict[str, tuple[int, tuple[int, int]]] = {}
"""The directories that are open: descriptor, device and inode."""


class NotPrivateError(CondainerError):
    """Something else is where this user's private directory should be."""


def open_file(path: str | Path, flags: int, *, mode: int = 0o600) -> int:
    """Open a file in the private directory, which is made where a file is to be made.

    Args:
        path: of the file.
        flags: as for `os.open`; links are not followed.
        mode: of a file that is made.

    Raises:
        FileNotFoundError: if there is no such file.
        OSError: if it cannot be opened.
        CondainerError: if the directory is not this user's own.
    """
    directory, name = os.path.split(path)
    for _ in range(_ATTEMPTS):
        try:
            above = _directory(directory, make=bool(flags & os.O_CREAT))
            return _open_own(name, flags | _FILE, mode, above)
        except FileNotFoundError:
            if not flags & os.O_CREAT:
                raise
        # Another process has removed the empty directory in between.
    raise CondainerError(f"cannot open {path}: its directory keeps vanishing", "try again")


def read(path: str | Path, most: int = _MOST) -> bytes:
    """Read a file of the private directory.

    Args:
        path: of the file.
        most: the bytes it may have.

    Raises:
        OSError: if there is none, or it is something else than a small regular file.
        CondainerError: if the directory is not this user's own.
    """
    with open(open_file(path, os.O_RDONLY), "rb") as file:
        content = file.read(most + 1) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else None
    if content is None or len(content) > most:
        raise OSError(errno.EINVAL, "it is not a small regular file", str(path))
    return content


def publish(path: str | Path, content: bytes) -> None:
    """Put a file with this content in the place of one of that name, if there is one.

    Raises:
        OSError: if it cannot be written; what was there before is still there then.
        CondainerError: if the directory is not this user's own.
    """
    directory, name = os.path.split(path)
    part = f"{name}.{os.urandom(8).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with open(open_file(f"{directory}/{part}", flags), "wb") as file:
        try:
            file.write(content)
            file.flush()
            descriptor = _directory(directory)
            os.replace(part, name, src_dir_fd=descriptor, dst_dir_fd=descriptor)
        except OSError:
            remove(f"{directory}/{part}")
            raise


def remove(path: str | Path) -> None:
    """Remove a file of the private directory, if it is there.

    Raises:
        OSError: if that cannot be done.
        CondainerError: if the directory is not this user's own.
    """
    directory, name = os.path.split(path)
    try:
        os.unlink(name, dir_fd=_directory(directory))
    except FileNotFoundError:
        pass


def exists(path: str | Path) -> bool:
    """Whether there is something of that name in the private directory.

    Raises:
        CondainerError: if the directory is not this user's own.
    """
    return status(path) is not None


def status(path: str | Path) -> os.stat_result | None:
    """What there is of that name in the private directory; None where there is nothing.

    Raises:
        CondainerError: if the directory is not this user's own, or cannot be looked at.
    """
    directory, name = os.path.split(path)
    try:
        return os.stat(name, dir_fd=_directory(directory), follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CondainerError(f"cannot look at {path}: {error.strerror}") from error


def names(directory: str | Path) -> list[str]:
    """The names of what lies in the private directory; none where it is not there.

    Raises:
        CondainerError: if the directory is not this user's own, or cannot be read.
    """
    try:
        readable = os.open(
            ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=_directory(str(directory))
        )
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CondainerError(f"cannot read {directory}: {error.strerror}") from error
    try:
        return os.listdir(readable)
    finally:
        os.close(readable)


def tidy(directory: str | Path) -> None:
    """Remove the private directory once nothing is left in it."""
    try:
        os.rmdir(directory)
    except OSError:
        pass


def check(directory: str | Path) -> None:
    """See that the private directory, if it is there, is this user's own.

    Raises:
        NotPrivateError: if it is not; says whose it is and what to do.
        CondainerError: if it cannot be looked at.
    """
    try:
        _directory(str(directory))
    except FileNotFoundError:
        pass


def _directory(path: str, *, make: bool = False) -> int:
    """The descriptor of the private directory, which stays open in this process.

    Raises:
        FileNotFoundError: if it is not there.
        CondainerError: if it is not what it should be.
    """
    known = _opened.get(path)
    if known is not None and _is_still(path, *known):
        return known[0]
    _opened.pop(path, None)  # its descriptor may be another file's by now
    if make:
        _make(path)
    descriptor = _open_checked(path)
    found = os.fstat(descriptor)
    _opened[path] = descriptor, (found.st_dev, found.st_ino)
    return descriptor


def _is_still(path: str, descriptor: int, identity: tuple[int, int]) -> bool:
    """Whether a descriptor is of the directory that has this name now."""
    try:
        for found in (os.fstat(descriptor), os.lstat(path)):
            if (found.st_dev, found.st_ino) != identity:
                return False
    except OSError:
        return False
    return True


def _make(path: str) -> None:
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return
    except OSError as error:
        raise CondainerError(
            f"cannot make the directory {path}: {error.strerror}",
            f"mount_base_directory ({os.path.dirname(path)}) must exist and be writable",
        ) from error


def _open_checked(path: str) -> int:
    base, name = os.path.split(path)
    descriptor = -1
    try:
        above = os.open(base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            descriptor = os.open(name, _DIRECTORY, dir_fd=above)
            is_mount = _mount(descriptor) != _mount(above)
        finally:
            os.close(above)
        _check(path, descriptor, is_mount=is_mount)
    except BaseException as error:
        if descriptor >= 0:
            os.close(descriptor)
        if isinstance(error, FileNotFoundError):
            raise
        if isinstance(error, NotADirectoryError) or (
            isinstance(error, OSError) and error.errno == errno.ELOOP
        ):
            raise _not_private(path, os.lstat(path), "it is not a directory") from error
        if isinstance(error, OSError):
            raise CondainerError(f"cannot open {path}: {error.strerror}") from error
        raise
    return descriptor


def _mount(descriptor: int) -> bytes:
    """Which mount a file is reached through, as the kernel tells without asking who serves it."""
    path = f"/proc/self/fdinfo/{descriptor}"
    try:
        with open(path, "rb") as file:
            for line in file:
                if line.startswith(b"mnt_id:"):
                    return line
    except OSError as error:
        raise CondainerError(f"cannot read {path}: {error.strerror}", NEEDS_PROC) from error
    return b""


def _check(path: str, descriptor: int, *, is_mount: bool) -> None:
    if is_mount:  # which must not be asked: it may be somebody else's, and never answer
        raise NotPrivateError(
            f"something is mounted at {path}: condainer's locks are not safe there",
            f"unmount it, if it is yours; otherwise {_own_base(path)}",
        )
    found = os.fstat(descriptor)
    if found.st_uid != os.getuid():
        raise _not_private(path, found, "")
    if found.st_mode & 0o077:
        raise _not_private(path, found, f"its mode is {stat.S_IMODE(found.st_mode):04o}")
    if found.st_mode & 0o700 != 0o700:  # noqa: PLR2004  (of an odd umask)
        os.chmod(f"/proc/self/fd/{descriptor}", 0o700)


def _not_private(path: str, found: os.stat_result, why: str) -> NotPrivateError:
    if found.st_uid == os.getuid():
        return NotPrivateError(
            f"{path} is not a directory that only you can use: {why}",
            f"look what it is, and remove it: rm -r {path}",
        )
    from condainer.system.trust import describe_owner

    return NotPrivateError(
        f"{path} belongs to {describe_owner(found)}; condainer needs that name for your locks",
        "you cannot mend that: ask its owner or an administrator to remove it, or "
        + _own_base(path),
    )


def _own_base(path: str) -> str:
    """How to get out of the way of others."""
    return (
        "take a mount base of your own: 'mkdir -m 700 /var/tmp/NAME' on each node, "
        "mount_base_directory: /var/tmp/NAME in condainer.yml (its base is "
        f"{os.path.dirname(path)} now), then 'condainer build --force'"
    )


def _open_own(name: str, flags: int, mode: int, directory: int) -> int:
    try:
        descriptor = os.open(name, flags, mode, dir_fd=directory)
    except PermissionError:  # made this very moment, by a process with an odd umask
        _set_mode(name, mode, directory)
        descriptor = os.open(name, flags, mode, dir_fd=directory)
    if flags & os.O_CREAT and os.fstat(descriptor).st_mode & mode != mode:
        os.fchmod(descriptor, mode)
    return descriptor


def _set_mode(name: str, mode: int, directory: int) -> None:
    descriptor = os.open(name, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=directory)
    try:
        os.chmod(f"/proc/self/fd/{descriptor}", mode)
    finally:
        os.close(descriptor)
