"""Removes directory trees: on one file system only, without following links, at any depth."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from typing import TYPE_CHECKING

from condainer.errors import CondainerError
from condainer.system import mounttable

if TYPE_CHECKING:
    from pathlib import Path

_PERSISTENCE = 5.0
"""Seconds for which a directory that fills up again while it is removed is removed again."""


def remove_tree(top: Path) -> None:
    """Remove a directory and everything below it, but nothing on another file system.

    An installer may still be writing there: what appears meanwhile is removed as well.

    Args:
        top: the directory.

    Raises:
        CondainerError: If something is mounted in it, or if it cannot be removed.
    """
    deadline = time.monotonic() + _PERSISTENCE
    while True:
        if mounttable.mounts_at_or_below(top):
            raise CondainerError(f"{top} was not removed: something is mounted there")
        try:
            status = top.lstat()
            if not stat.S_ISDIR(status.st_mode):  # a script of a package has put it there
                top.unlink()
                continue
            parent = os.open(top.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                _remove_below(parent, top.name, status.st_dev)
                os.rmdir(top.name, dir_fd=parent)
            finally:
                os.close(parent)
        except FileNotFoundError:
            if not os.path.lexists(top):
                return
        except OSError as error:
            busy = error.errno in {errno.ENOTEMPTY, errno.EEXIST}
            if not busy or time.monotonic() > deadline:
                raise CondainerError(f"cannot remove {top}: {error.strerror}") from error
        time.sleep(0.02)


def _remove_below(parent: int, name: str, device: int) -> None:
    """Empty a directory, without following links or entering another file system.

    It needs two descriptors at any depth: it goes back up through `..`.
    """
    directory = _open_directory(parent, name)
    above: list[tuple[os.stat_result, list[str]]] = []  # each with what is left to enter there
    try:
        inside = _remove_files(directory, device)
        while inside or above:
            if inside:
                above.append((os.fstat(directory), inside))
                _go(directory, _open_directory(directory, inside[-1]))
                inside = _remove_files(directory, device)
            else:
                status, inside = above.pop()
                _go(directory, _open_directory(directory, ".."))
                if not os.path.samestat(os.fstat(directory), status):
                    raise OSError(errno.ESTALE, f"{inside[-1]} was moved meanwhile")
                os.rmdir(inside.pop(), dir_fd=directory)
    finally:
        os.close(directory)


def _open_directory(parent: int, name: str) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    try:
        return os.open(name, flags, dir_fd=parent)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=parent)
        return os.open(name, flags, dir_fd=parent)


def _go(descriptor: int, directory: int) -> None:
    """Let a descriptor refer to another directory."""
    os.dup2(directory, descriptor, inheritable=False)
    os.close(directory)


def _remove_files(directory: int, device: int) -> list[str]:
    """Remove everything but directories; gives the names of those."""
    status = os.fstat(directory)
    if status.st_dev != device:
        raise OSError(errno.EXDEV, "a directory in it is on another file system")
    if status.st_mode & 0o300 != 0o300:  # noqa: PLR2004  (write and search, for removing)
        os.fchmod(directory, 0o700)
    with os.scandir(directory) as entries:
        names = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name in [name for name, is_directory in names if not is_directory]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)
    return [name for name, is_directory in names if is_directory]
