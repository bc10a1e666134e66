"""Tables: chains of metadata blocks, and tables of entries that all have one size.

The inode table and the directory table are chains: what is wanted may begin in one block and end in
the next. The tables of fragments, owners and extended attributes have an index besides, which says
where each of their blocks lies. Source: the kernel's Documentation/filesystems/squashfs.rst.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from condainer.squashfs.errors import FormatError
from condainer.squashfs.structures import INVALID_BLK, METADATA_SIZE

if TYPE_CHECKING:
    from condainer.squashfs.blocks import BlockReader

_POINTER = struct.Struct("<Q")

Location = tuple[int, int]
"""A place in a chain: where a metadata block begins, and how many bytes behind its beginning."""


class Chain:
    """Reads from chains of metadata blocks.

    Args:
        blocks: of the image.
    """

    def __init__(self, blocks: BlockReader) -> None:
        self.block = blocks.metadata

    def take(self, position: int, offset: int, length: int) -> bytes:
        """Bytes of a chain.

        Args:
            position: where a metadata block begins.
            offset: of the first byte in that block.
            length: number of bytes; they may go on in the blocks that follow.

        Raises:
            FormatError: If the chain is damaged or ends before.
        """
        data, position = self.block(position)
        if offset > len(data):
            raise FormatError("a place in a table lies behind its block")
        end = offset + length
        if end <= len(data):
            return data[offset:end]
        pieces = [data[offset:]]
        missing = length - len(pieces[0])
        while missing > 0:
            data, position = self.block(position)
            if not data:
                raise FormatError("a table has an empty block")
            pieces.append(data[:missing])
            missing -= len(data)
        return b"".join(pieces)

    def skip(self, position: int, offset: int) -> Location:
        """The same place, in the metadata block that really holds it.

        Args:
            position: where a metadata block begins.
            offset: bytes from there on, however many blocks further.

        Raises:
            FormatError: If the chain is damaged or ends before.
        """
        while True:
            data, after = self.block(position)
            if offset < len(data) or not data:
                return position, offset
            offset -= len(data)
            position = after


class Cursor:
    """A place in a chain that moves on with what is taken.

    Args:
        chain: to read from.
        position: where a metadata block begins.
        offset: bytes from there on.
    """

    def __init__(self, chain: Chain, position: int, offset: int) -> None:
        self._chain = chain
        self._place = position, offset

    def take(self, length: int) -> bytes:
        """The next bytes.

        Args:
            length: how many.

        Raises:
            FormatError: If the chain is damaged or ends before.
        """
        position, offset = self._chain.skip(*self._place)
        self._place = position, offset + length
        return self._chain.take(position, offset, length)


class Table:
    """A table whose entries all have one size.

    Args:
        blocks: of the image.
        start: where the table's index lies.
        count: entries it has.
        entry: the structure of an entry.

    Raises:
        FormatError: If the table is missing, or its index lies outside of the image.
    """

    def __init__(self, blocks: BlockReader, start: int, count: int, entry: struct.Struct) -> None:
        self._take = Chain(blocks).take
        self._count = count
        self._entry = entry
        self._index = b""
        if not count:
            return
        if start == INVALID_BLK:
            raise FormatError("a table is missing")
        size = -(-count * entry.size // METADATA_SIZE) * _POINTER.size
        self._index = blocks.read(start, size)

    def entry(self, number: int) -> tuple[Any, ...]:
        """An entry of the table.

        Args:
            number: of the entry, from 0 on.

        Raises:
            FormatError: If there is no such entry, or the table is damaged.
        """
        if not 0 <= number < self._count:
            raise FormatError("a table has no such entry")
        block, offset = divmod(number * self._entry.size, METADATA_SIZE)
        (position,) = _POINTER.unpack_from(self._index, _POINTER.size * block)
        return self._entry.unpack(self._take(position, offset, self._entry.size))
