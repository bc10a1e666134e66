"""Looks into an image file for a moment: opens it with care, reads a small file, compares it."""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

from condainer.squashfs.errors import FormatError
from condainer.squashfs.image import Image
from condainer.squashfs.structures import SUPER_BLOCK
from condainer.squashfs.vfs import FileSystem

if TYPE_CHECKING:
    from collections.abc import Iterator

_TABLES = 64 << 10
"""Bytes at the end of an image that `fingerprint` looks at."""
_LONGEST_LISTING = 4 << 20
"""Bytes of a directory's listing that `read_file` goes through: 100,000 names or more."""


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


@contextmanager
def opened(path: str | os.PathLike[str], *, threads: int = 0) -> Iterator[FileSystem]:
    """The files of an image, for a `with` block.

    Args:
        path: of the image.
        threads: how many may decompress ahead of a program that reads in order.

    Raises:
        SquashfsError: If it is no image, damaged, or cannot be decompressed here.
        OSError: If it cannot be read.
    """
    descriptor = open_image(path)
    try:
        yield FileSystem(Image(descriptor), threads=threads)
    finally:
        os.close(descriptor)


def read_file(files: FileSystem, path: bytes, most: int) -> bytes:
    """A small file of an image, however large the directories are that it lies in.

    Args:
        files: the image.
        path: of the file, below the root; no links are followed.
        most: bytes that it may have.

    Raises:
        NotFoundError: If there is no such file.
        WrongKindError: If it is no regular file, or what it lies in is no directory.
        FormatError: If the image is damaged, the file too large, or a directory above it.
        OSError: If the image cannot be read.
    """
    ref = files.root
    for name in path.split(b"/"):
        if files.inode(ref).size > _LONGEST_LISTING:
            raise FormatError(f"a directory above {os.fsdecode(path)} is larger than it can be")
        ref = files.lookup(ref, name)
    inode = files.inode(ref)
    if inode.size > most:
        raise FormatError(f"{os.fsdecode(path)} is larger than it can be")
    return b"".join(files.read(inode, 0, inode.size))


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
