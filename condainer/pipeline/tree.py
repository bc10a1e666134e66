"""Counts what an installed environment is made of."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


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
    """Count a directory and all below it."""
    entries = 1
    single = 1
    size = 0
    linked: dict[tuple[int, int], int] = {}
    for entry in _walk(top):
        status = entry.stat(follow_symlinks=False)
        entries += 1
        is_file = entry.is_file(follow_symlinks=False)
        if status.st_nlink > 1 and is_file:
            linked[status.st_dev, status.st_ino] = status.st_size
        else:
            single += 1
            size += status.st_size if is_file else 0
    return Tree(entries, single + len(linked), size + sum(linked.values()))


def _walk(directory: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(directory) as listing:
        for entry in listing:
            yield entry
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path))
