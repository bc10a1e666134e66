"""Walks the files of an environment: counts them, and takes write permission from others."""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from condainer.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LONGEST = 4095
"""Bytes of a path, for the kernel and for mksquashfs: PATH_MAX without the null byte."""

_SHOWN = 100

KEPT = 0o755
"""The permissions that files and directories keep.

They have no setuid, setgid and sticky bits, and only the owner may write.
"""


@dataclass(frozen=True)
class Tree:
    """The size of a directory tree.

    Attributes:
        entries: files, directories and links, the top included.
        inodes: the same, with hard links counted once.
        bytes: in regular files, with hard links counted once.
        links_again: further hard links of symbolic links. mksquashfs makes an inode of its own of
            each, if reading the first one has changed its access time.
    """

    entries: int
    inodes: int
    bytes: int
    links_again: int = 0


class Count:
    """Counts what is below a directory."""

    def __init__(self) -> None:
        self._entries = self._single = 1
        self._bytes = self._links_again = 0
        self._linked: dict[tuple[int, int], int] = {}

    def add(self, status: os.stat_result) -> None:
        """Count one more.

        Args:
            status: of a path, by `lstat`.
        """
        bytes_here = status.st_size if stat.S_ISREG(status.st_mode) else 0
        self._entries += 1
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            inode = status.st_dev, status.st_ino
            self._links_again += inode in self._linked and stat.S_ISLNK(status.st_mode)
            self._linked[inode] = bytes_here
        else:
            self._single += 1
            self._bytes += bytes_here

    @property
    def tree(self) -> Tree:
        """What has been counted."""
        inodes = self._single + len(self._linked)
        size = self._bytes + sum(self._linked.values())
        return Tree(self._entries, inodes, size, self._links_again)


def survey(top: Path) -> Tree:
    """Count a directory and all below it.

    Args:
        top: the directory.

    Raises:
        BuildError: If a path is too long.
    """
    count = Count()
    for entry in walk(top):
        count.add(entry.stat(follow_symlinks=False))
    return count.tree


def close(top: Path) -> None:
    """Take from a directory and all below it the permissions that are not in `KEPT`.

    A file may be a hard link into a package cache: then it changes there as well.

    Args:
        top: the directory.

    Raises:
        BuildError: If a file belongs to another user and others can write to it.
    """
    for path, status in _all(top):
        _close(path, status)


def close_own(top: Path) -> None:
    """Do the same for this user's files only: a package cache may belong to another user.

    Args:
        top: the directory.
    """
    with contextlib.suppress(OSError):
        for path, status in _all(top):
            _close_if_own(path, status)


def take_over(top: Path) -> None:
    """Give this user a directory and all below it, then do as `close`.

    Args:
        top: the directory, unpacked from an image.

    Raises:
        BuildError: If a path is too long.
    """
    for entry in walk(top):
        status = entry.stat(follow_symlinks=False)
        if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
            os.chown(entry.path, os.geteuid(), os.getegid(), follow_symlinks=False)
    close(top)


def _all(top: Path) -> Iterator[tuple[str, os.stat_result]]:
    """A directory and all below it; nothing if a link has taken its place."""
    status = top.lstat()
    if not stat.S_ISDIR(status.st_mode):
        return
    yield str(top), status
    for entry in walk(top):
        yield entry.path, entry.stat(follow_symlinks=False)


def _close_if_own(path: str, status: os.stat_result) -> None:
    with contextlib.suppress(BuildError):
        _close(path, status)


def _close(path: str, status: os.stat_result) -> None:
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISLNK(status.st_mode) or not mode & ~KEPT:
        return
    try:
        os.chmod(path, mode & KEPT)  # noqa: PTH101  (thousands)
    except PermissionError as error:
        raise BuildError(
            f"{path} belongs to user {status.st_uid}, and others can write to it",
            "use a package cache of your own: set the key package_cache in condainer.yml",
        ) from error


def walk(top: Path, leave_out: str = "") -> Iterator[os.DirEntry[str]]:
    """Yield all that is below a directory, however deep.

    Args:
        top: the directory.
        leave_out: directories of this name are yielded, but not entered.

    Raises:
        BuildError: If a path is too long.
    """
    directories = [str(top)]
    while directories:
        with os.scandir(directories.pop()) as listing:
            for entry in listing:
                if len(os.fsencode(entry.path)) > _LONGEST:
                    raise _too_long(top, entry.path)
                yield entry
                if entry.is_dir(follow_symlinks=False) and entry.name != leave_out:
                    directories.append(entry.path)


def _too_long(top: Path, path: str) -> BuildError:
    return BuildError(
        f"a path in {top} has more than {_LONGEST:,} bytes; it begins with "
        f"{path[len(str(top)) + 1 :][:_SHOWN]}…",
        "no image can hold it: leave out the package that makes it",
    )
