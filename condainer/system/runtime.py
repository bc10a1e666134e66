"""This user's private directory on a node, for locks, records and logs.

It lies in a directory that all users share, such as /tmp, and everybody knows its name. So it is
opened once and checked through that descriptor: it must be a real directory that belongs to this
user and is closed to others, and nothing may be mounted over it. Its files are reached from the
descriptor, never by their full path. A path from `places` only says which file is meant.

XDG_RUNTIME_DIR is no alternative. Most batch jobs have none, and it is removed after the last login
while jobs still run. All processes of a user on a node must find the same locks.

Every `exec` uses this module, so it imports nothing that takes long.
"""

from __future__ import annotations

import errno
import os
import stat

from condainer.errors import NEEDS_PROC, CondainerError
from condainer.system import files

TYPE_CHECKING = False  # importing `typing` takes as long as all of this does
if TYPE_CHECKING:
    from pathlib import Path

_FILE = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_ATTEMPTS = 100
_MOST = 8 << 20
"""Bytes of a file that is read here."""

_opened: dict[str, tuple[int, tuple[int, int]]] = {}
"""The directories that are open: descriptor, device and inode."""


class NotPrivateError(CondainerError):
    """Something else has the place of this user's private directory."""


def open_file(path: str | Path, flags: int, *, mode: int = 0o600) -> int:
    """Open a file in the private directory; makes the directory if it is to make the file.

    Args:
        path: of the file.
        flags: as for `os.open`; links are not followed.
        mode: permissions of a new file.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it cannot be opened.
        CondainerError: If the directory is not this user's own.
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
    """Read a file in the private directory.

    Args:
        path: of the file.
        most: bytes that it may have.

    Raises:
        OSError: If there is none, or if it is no small regular file.
        CondainerError: If the directory is not this user's own.
    """
    with open(open_file(path, os.O_RDONLY), "rb") as file:
        content = file.read(most + 1) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else None
    if content is None or len(content) > most:
        raise OSError(errno.EINVAL, "it is not a small regular file", str(path))
    return content


def publish(path: str | Path, content: bytes) -> None:
    """Put a new file in place of the old one, in one step.

    Args:
        path: of the file.
        content: what it is to hold.

    Raises:
        OSError: If it cannot be written; the old file is still there then.
        CondainerError: If the directory is not this user's own.
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
    """Remove a file of the private directory, if it exists.

    Args:
        path: of the file.

    Raises:
        OSError: If it cannot be removed.
        CondainerError: If the directory is not this user's own.
    """
    directory, name = os.path.split(path)
    try:
        os.unlink(name, dir_fd=_directory(directory))
    except FileNotFoundError:
        pass


def exists(path: str | Path) -> bool:
    """Whether the private directory has a file of this name.

    Args:
        path: of the file.

    Raises:
        CondainerError: If the directory is not this user's own.
    """
    return status(path) is not None


def status(path: str | Path) -> os.stat_result | None:
    """Look at a file in the private directory.

    Args:
        path: of the file; a link is not followed.

    Returns:
        What `os.stat` says; None if there is no such file.

    Raises:
        CondainerError: If the directory is not this user's own, or if the file cannot be looked at.
    """
    directory, name = os.path.split(path)
    try:
        return os.stat(name, dir_fd=_directory(directory), follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CondainerError(f"cannot look at {path}: {error.strerror}") from error


def names(directory: str | Path) -> list[str]:
    """The names of the files in the private directory; none if it does not exist.

    Args:
        directory: the private directory.

    Raises:
        CondainerError: If the directory is not this user's own, or cannot be read.
    """
    try:
        return files.listed(_directory(str(directory)))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CondainerError(f"cannot read {directory}: {error.strerror}") from error


def tidy(directory: str | Path) -> None:
    """Remove the private directory if it is empty.

    Args:
        directory: the private directory.
    """
    try:
        os.rmdir(directory)
    except OSError:
        pass


def check(directory: str | Path) -> None:
    """Check that the private directory, if it exists, is this user's own.

    Args:
        directory: the private directory.

    Raises:
        NotPrivateError: If it is not: says whose it is, and what to do.
        CondainerError: If it cannot be looked at.
    """
    try:
        _directory(str(directory))
    except FileNotFoundError:
        pass


def _directory(path: str, *, make: bool = False) -> int:
    """The descriptor of the private directory; it stays open in this process.

    Args:
        path: of the directory.
        make: make the directory if it is missing.

    Raises:
        FileNotFoundError: If there is none.
        CondainerError: If it is not what it should be.
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
    """Whether a descriptor still belongs to the directory that has this name now."""
    try:
        found = os.fstat(descriptor), os.lstat(path)
    except OSError:
        return False
    return all((each.st_dev, each.st_ino) == identity for each in found)


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
    try:
        descriptor, is_mount = _open(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in {errno.ENOTDIR, errno.ELOOP}:
            raise _not_private(path, os.lstat(path), "it is not a directory") from error
        raise CondainerError(f"cannot open {path}: {error.strerror}") from error
    try:
        _check(path, descriptor, is_mount=is_mount)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _open(path: str) -> tuple[int, bool]:
    """Open the private directory; tells also whether something is mounted there."""
    base, name = os.path.split(path)
    above = files.open_directory(base)
    try:
        descriptor = files.enter(above, name, path)
        try:
            return descriptor, _mount(descriptor) != _mount(above)
        except BaseException:
            os.close(descriptor)
            raise
    finally:
        os.close(above)


def _mount(descriptor: int) -> bytes:
    """The line of /proc that names a file's mount; the kernel does not ask the mount for it."""
    path = f"/proc/self/fdinfo/{descriptor}"
    try:
        with open(path, "rb") as file:
            lines = file.read().split(b"\n")
    except OSError as error:
        raise CondainerError(f"cannot read {path}: {error.strerror}", NEEDS_PROC) from error
    return next((line for line in lines if line.startswith(b"mnt_id:")), b"")


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
            f"look at it, and remove it: rm -r {path}",
        )
    from condainer.system.trust import describe_owner

    return NotPrivateError(
        f"{path} belongs to {describe_owner(found)}; condainer needs that name for your locks",
        "you cannot fix that: ask its owner or an administrator to remove it, or "
        + _own_base(path),
    )


def _own_base(path: str) -> str:
    """What a user can do whose mount base others have made unusable."""
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
