"""The blocks of an image: bytes on disk, and what they are when they are decompressed.

Data blocks and fragment blocks hold the contents of files; metadata blocks hold the tables. Neither
is believed: nothing outside of the image is read, and nothing is decompressed to more than a block
may hold.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import NamedTuple

from condainer.squashfs import codecs
from condainer.squashfs.errors import CodecError, FormatError
from condainer.squashfs.structures import COMPRESSED_BIT, COMPRESSED_BIT_BLOCK, METADATA_SIZE
from condainer.squashfs.superblock import read_superblock

_METADATA_KEPT = 4096
"""Metadata blocks that are kept: 32 MiB, the tables of a million files."""


class DataBlock(NamedTuple):
    """Where a data block or a fragment block is.

    Attributes:
        position: its first byte in the image.
        word: its size on disk, with COMPRESSED_BIT_BLOCK; 0 for a block of zeros.
        most: bytes that may come of it.
    """

    position: int
    word: int
    most: int

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self.word & ~COMPRESSED_BIT_BLOCK


class BlockReader:
    """Reads the blocks of an image.

    Any number of threads may use it at once. They share the cache of metadata blocks: at worst, two
    of them decompress the same block.

    Args:
        descriptor: of the file.
        offset: bytes of the file before the image.

    Attributes:
        superblock: the head of the image.

    Raises:
        FormatError: If it is no image of SquashFS 4.0, or cut short.
        CodecError: If this machine lacks what its compression needs.
        OSError: If it cannot be read.
    """

    def __init__(self, descriptor: int, offset: int = 0) -> None:
        self.descriptor = descriptor
        self.offset = offset
        self.superblock = read_superblock(descriptor, offset)
        self._bytes_used = self.superblock.bytes_used
        self._block_size = self.superblock.block_size
        self._decompress = codecs.find(self.superblock.compression)
        self._metadata: OrderedDict[int, tuple[bytes, int]] = OrderedDict()

    def read(self, position: int, length: int) -> bytes:
        """Bytes of the image as they are on disk.

        Args:
            position: of the first byte.
            length: number of bytes.

        Raises:
            FormatError: If they lie outside of the image.
            OSError: If they cannot be read.
        """
        if position < 0 or position + length > self._bytes_used:
            raise FormatError("a block lies outside of the image")
        data = os.pread(self.descriptor, length, self.offset + position)
        if len(data) != length:
            raise FormatError("the image has become shorter")
        return data

    def data(self, position: int, word: int, most: int) -> bytes:
        """A data block or a fragment block, decompressed.

        Args:
            position: of its first byte.
            word: its size on disk, with COMPRESSED_BIT_BLOCK.
            most: bytes that may come of it.

        Raises:
            FormatError: If it is damaged.
            OSError: If it cannot be read.
        """
        size = word & ~COMPRESSED_BIT_BLOCK
        if not 0 < size <= self._block_size:
            raise FormatError("the size of a block is not possible")
        data = self.read(position, size)
        return data if word & COMPRESSED_BIT_BLOCK else self._decompressed(data, most)

    def metadata(self, position: int) -> tuple[bytes, int]:
        """A metadata block, decompressed, and where the next one begins.

        Args:
            position: of its first byte.

        Raises:
            FormatError: If it is damaged.
            OSError: If it cannot be read.
        """
        kept = self._metadata
        found = kept.get(position)
        if found is not None:
            return found
        word = int.from_bytes(self.read(position, 2), "little")
        # As the kernel has it: a size of 0 stands for one that does not fit into the bits.
        size = word & ~COMPRESSED_BIT or COMPRESSED_BIT
        if size > METADATA_SIZE:
            raise FormatError("the size of a metadata block is not possible")
        data = self.read(position + 2, size)
        if not word & COMPRESSED_BIT:
            data = self._decompressed(data, METADATA_SIZE)
        found = kept[position] = (data, position + 2 + size)
        while len(kept) > _METADATA_KEPT:
            try:
                kept.popitem(last=False)
            except KeyError:  # another thread has emptied it meanwhile
                break
        return found

    def _decompressed(self, data: bytes, most: int) -> bytes:
        try:
            return self._decompress(data, most)
        except CodecError as error:
            raise FormatError(str(error)) from error
