"""Opens an image for a moment, and reads a small file in it."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from condainer.squashfs.errors import FormatError
from condainer.squashfs.file import open_image
from condainer.squashfs.image import Image
from condainer.squashfs.vfs import FileSystem

if TYPE_CHECKING:
    from collections.abc import Iterator

_LONGEST_LISTING = 4 << 20
"""Bytes of a directory's listing that `read_file` goes through: 100,000 names or more."""


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
