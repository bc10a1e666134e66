"""The note behind an image: which of its bytes a program needs when it starts.

No file system looks there: an image ends where its superblock says. Whoever mounts or caches an
image can have the kernel read that part ahead. The note begins at the next multiple of 4096 bytes
behind the
image: a mark of 24 bytes, the first byte of the part, and the one behind its last, in 8 bytes each.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from condainer.squashfs import Superblock

_NOTE = struct.Struct("<24sQQ")
_MARK = b"condainer startup part 1"
_PAGE = 4096
"""Images are padded to a multiple of that: the kernel mounts them as devices of whole pages."""


def write(descriptor: int, superblock: Superblock, start: int, end: int) -> None:
    """Note which bytes of an image a program needs when it starts.

    Args:
        descriptor: of the image's file, open for writing.
        superblock: the head of the image.
        start: first byte of the part in the image.
        end: the byte behind its last.

    Raises:
        OSError: If it cannot be written.
    """
    place = _behind(superblock)
    os.ftruncate(descriptor, place)
    os.pwrite(descriptor, _NOTE.pack(_MARK, start, end).ljust(_PAGE, b"\0"), place)


def read(descriptor: int, superblock: Superblock, offset: int = 0) -> tuple[int, int]:
    """Which bytes of an image a program needs when it starts.

    Args:
        descriptor: of the image's file.
        superblock: the head of the image.
        offset: bytes of the file before the image.

    Returns:
        the first byte in the image, and the one behind the last; 0 and 0 if there is no note.

    Raises:
        OSError: If it cannot be read.
    """
    data = os.pread(descriptor, _NOTE.size, offset + _behind(superblock))
    if len(data) < _NOTE.size:
        return 0, 0
    mark, start, end = _NOTE.unpack(data)
    is_sane = mark == _MARK and start < end <= superblock.bytes_used
    return (start, end) if is_sane else (0, 0)


def read_ahead(descriptor: int, superblock: Superblock, offset: int = 0) -> None:
    """Have the kernel read the noted part into memory. Returns at once.

    Args:
        descriptor: of the image's file.
        superblock: the head of the image.
        offset: bytes of the file before the image.

    Raises:
        OSError: If the note cannot be read.
    """
    start, end = read(descriptor, superblock, offset)
    if start < end:
        os.posix_fadvise(descriptor, offset + start, end - start, os.POSIX_FADV_WILLNEED)


def _behind(superblock: Superblock) -> int:
    return -(-superblock.bytes_used // _PAGE) * _PAGE
