"""`cache`: reads an image once, so that this node has it in memory when programs start."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from condainer.project import image
from condainer.startup import note

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_CHUNK = 4 << 20


def read_all(path: Path, on_progress: Callable[[int, int], None]) -> int:
    """Read a file from its beginning to its end.

    Args:
        path: the file.
        on_progress: called with bytes read and bytes there are.

    Returns:
        the bytes there are; a hole counts as read, however large it is.

    Raises:
        ImageError: If it is no image, or cannot be read.
    """
    superblock = image.read_superblock(path)
    done = 0
    with image.opened(path) as descriptor:
        total = os.fstat(descriptor).st_size
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        note.read_ahead(descriptor, superblock)  # what programs want first
        buffer = bytearray(_CHUNK)
        while done < total:
            done = _next_data(descriptor, done, total)
            done += os.readv(descriptor, [buffer]) or total - done  # it has become shorter
            on_progress(done, total)
    return done


def _next_data(descriptor: int, place: int, total: int) -> int:
    """Go to where a file has data again, from a place on; to its end where there are none."""
    try:
        return os.lseek(descriptor, place, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return os.lseek(descriptor, total, os.SEEK_SET)
        return os.lseek(descriptor, place, os.SEEK_SET)  # not every file system knows
