"""The file that an image is in: opened with care, and told from others."""

from __future__ import annotations

import os
import stat

from condainer.squashfs.errors import FormatError
from condainer.squashfs.structures import SUPER_BLOCK

_TABLES = 64 << 10
"""Bytes at the end of an image that `fingerprint` looks at."""


def open_image(path: str | os.PathLike[str]) -> int:
    """Open a file that should be an image. A pipe in its place blocks nobody.

    Args:
        path: of the file.

    Returns:
        a descriptor, which the caller closes.

    Raises:
        FormatError: If it is no regular file.
        OSError: If it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FormatError("it is not a regular file")
    return descriptor


def fingerprint(descriptor: int) -> str:
    """Tells the content of an image from that of others, without reading all of it.

    It is made of the superblock and of the end, where the tables are: these hold the place and the
    size on disk of everything in the image.

    Args:
        descriptor: of the image.

    Raises:
        OSError: If it cannot be read.
    """
    import hashlib

    digest = hashlib.sha256(os.pread(descriptor, SUPER_BLOCK.size, 0))
    size = os.lseek(descriptor, 0, os.SEEK_END)
    start = max(0, size - _TABLES)
    digest.update(os.pread(descriptor, size - start, start))
    return f"{size}-{digest.hexdigest()}"
