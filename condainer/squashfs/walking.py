"""The one walk through all names of an image, which ends whatever the image claims.

Unpacking, and finding the names of what was read, use it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from condainer.squashfs.errors import FormatError, WrongKindError
from condainer.squashfs.structures import DIR

if TYPE_CHECKING:
    from collections.abc import Iterator

    from condainer.squashfs.directories import Entry
    from condainer.squashfs.vfs import FileSystem

_MOST_NAMES = 4_000_000
"""No environment has more files."""
_LONGEST_PATH = 4096
"""Bytes: no program can open what has a longer path."""


def walk(files: FileSystem) -> Iterator[tuple[bytes, Entry]]:
    """All names below the root, a directory's own before those in it.

    Args:
        files: the image.

    Yields:
        a path from the root on, without a slash before it, and its entry.

    Raises:
        FormatError: If the image is damaged, or its directories have no end.
    """
    seen = {files.root}
    left = _MOST_NAMES
    waiting = [(b"", files.listing(files.root))]
    while waiting:
        above, entries = waiting[-1]
        try:
            _, entry = next(entries, (0, None))
        except WrongKindError:
            raise FormatError("a directory names as one what is none") from None
        if entry is None:
            waiting.pop()
            continue
        name = above + entry.name
        left -= 1
        # In a sound image no directory is in two others, or in itself.
        if left < 0 or len(name) >= _LONGEST_PATH or entry.ref in seen:
            raise FormatError("its directories have no end")
        yield name, entry
        if entry.kind == DIR:
            seen.add(entry.ref)
            waiting.append((name + b"/", files.listing(entry.ref)))
