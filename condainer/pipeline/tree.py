"""Goes through the files of an installed environment, and counts them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from condainer.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Iterator
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
    """

    entries: int
    inodes: int
    bytes: int


def survey(top: Path) -> Tree:
    """Count a directory and all below it.

    Raises:
        BuildError: where a path is too long.
    """
    entries = 1
    single = 1
    size = 0
    linked: dict[tuple[int, int], int] = {}
    for entry in walk(top):
        status = entry.stat(follow_symlinks=False)
        entries += 1
        is_file = entry.is_file(follow_symlinks=False)
        if status.st_nlink > 1 and is_file:
            linked[status.st_dev, status.st_ino] = status.st_size
        else:
            single += 1
            size += status.st_size if is_file else 0
    return Tree(entries, single + len(linked), size + sum(linked.values()))


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
