"""Goes through the files of an installed environment, and counts them."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from condainer.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_LONGEST = 4095
"""Bytes of a path, for the kernel and for mksquashfs: PATH_MAX without the null byte."""

_SHOWN = 100


@dataclass(frozen=True)
class Tree:
    """The size of a directory tree.

    Attributes:
        entries: files, directories and links, the top included.
        inodes: the same, with hard links counted once.
        bytes: in regular files, hard links counted once.
        links_again: further hard links of symbolic links. mksquashfs takes each of them for an
            inode of its own where reading the first has changed its time of access.
    """

    entries: int
    inodes: int
    bytes: int
    links_again: int = 0


def survey(top: Path) -> Tree:
    """Count a directory and all below it.

    Raises:
        BuildError: where a path is too long.
    """
    return count(entry.stat(follow_symlinks=False) for entry in walk(top))


def count(below: Iterable[os.stat_result]) -> Tree:
    """Count a directory by what `lstat` says of all that is below it."""
    entries = single = 1
    size = links_again = 0
    linked: dict[tuple[int, int], int] = {}
    for status in below:
        bytes_here = status.st_size if stat.S_ISREG(status.st_mode) else 0
        entries += 1
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            inode = status.st_dev, status.st_ino
            links_again += inode in linked and stat.S_ISLNK(status.st_mode)
            linked[inode] = bytes_here
        else:
            single += 1
            size += bytes_here
    return Tree(entries, single + len(linked), size + sum(linked.values()), links_again)


def walk(top: Path, leave_out: str = "") -> Iterator[os.DirEntry[str]]:
    """Give all that is below a directory, however deep it is.

    Args:
        top: the directory.
        leave_out: directories of this name are given, but not entered.

    Raises:
        BuildError: where a path is too long.
    """
    directories = [str(top)]
    while directories:
        with os.scandir(directories.pop()) as listing:
            for entry in listing:
                if len(os.fsencode(entry.path)) > _LONGEST:
                    raise BuildError(
                        f"a path in {top} has more than {_LONGEST:,} bytes; it begins with "
                        f"{entry.path[len(str(top)) + 1 :][:_SHOWN]}…",
                        "no image can hold it: leave the package out that makes it",
                    )
                yield entry
                if entry.is_dir(follow_symlinks=False) and entry.name != leave_out:
                    directories.append(entry.path)
