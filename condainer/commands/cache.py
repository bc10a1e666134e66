"""`cache`: reads an image once, so that this node has it in memory when programs start."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from condainer.errors import ImageError
from condainer.project import image

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
        ImageError: where it cannot be read.
    """
    done = 0
    try:
        with os.fdopen(image.open_image(path), "rb", buffering=0) as file:
            total = os.fstat(file.fileno()).st_size
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            start, end = image.read_startup(path)
            if start < end:  # what programs want first
                os.posix_fadvise(file.fileno(), start, end - start, os.POSIX_FADV_WILLNEED)
            buffer = bytearray(_CHUNK)
            while done < total:
                done = _next_data(file.fileno(), done, total)
                done += file.readinto(buffer) or total - done  # it has become shorter
                on_progress(done, total)
    except OSError as error:
        raise ImageError(f"cannot read the image {path}: {error.strerror}") from error
    return done


def _next_data(descriptor: int, place: int, total: int) -> int:
    """Go to where a file has data again, from a place on; to its end where there are none."""
    try:
        return os.lseek(descriptor, place, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return os.lseek(descriptor, total, os.SEEK_SET)
        return os.lseek(descriptor, place, os.SEEK_SET)  # not every file system knows
