"""Extended attributes.

Source: the kernel's Documentation/filesystems/squashfs.rst, "Extended attributes", and `struct
squashfs_xattr_*` in its fs/squashfs/squashfs_fs.h.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from condainer.squashfs.errors import FormatError
from condainer.squashfs.structures import (
    INVALID_BLK,
    INVALID_XATTR,
    WORD,
    XATTR_ENTRY,
    XATTR_ID,
    XATTR_ID_TABLE,
    XATTR_PREFIXES,
    XATTR_VALUE_OOL,
)
from condainer.squashfs.tables import Chain, Cursor, Table

if TYPE_CHECKING:
    from condainer.squashfs.blocks import BlockReader
    from condainer.squashfs.inodes import Inode

_LONGEST_VALUE = 65536
_LONGEST_XATTRS = 1 << 20
"""Bytes of all attributes of one inode."""
_REFERENCE = 8
"""Bytes of the reference that stands instead of a value."""


class XattrTable:
    """The extended attributes of an image's inodes.

    Args:
        blocks: of the image.

    Attributes:
        is_there: whether the image has extended attributes at all.

    Raises:
        FormatError: If their table lies outside of the image.
    """

    def __init__(self, blocks: BlockReader) -> None:
        start = blocks.superblock.xattr_id_table_start
        self._chain = Chain(blocks)
        self.is_there = start != INVALID_BLK
        if self.is_there:
            header = blocks.read(start, XATTR_ID_TABLE.size)
            self._start, count, _ = XATTR_ID_TABLE.unpack(header)
            self._ids = Table(blocks, start + XATTR_ID_TABLE.size, count, XATTR_ID)

    def of(self, inode: Inode) -> dict[bytes, bytes]:
        """The extended attributes of an inode, by their full names.

        Args:
            inode: any of this image.

        Raises:
            FormatError: If they are damaged.
        """
        if inode.xattr == INVALID_XATTR or not self.is_there:
            return {}
        ref, count, _ = self._ids.entry(inode.xattr)
        cursor = self._cursor(ref)
        values = {}
        left = _LONGEST_XATTRS
        for _ in range(count):
            kind, size = XATTR_ENTRY.unpack(cursor.take(XATTR_ENTRY.size))
            name = cursor.take(size)
            value = self._value(cursor, kind)
            left -= len(name) + len(value) + 8
            if left < 0:
                raise FormatError("extended attributes are damaged")
            if kind & 0xFF < len(XATTR_PREFIXES):  # as the kernel, which passes over others
                values[XATTR_PREFIXES[kind & 0xFF] + name] = value
        return values

    def size(self, inode: Inode) -> int:
        """Bytes that the extended attributes of an inode take.

        Args:
            inode: any of this image.

        Raises:
            FormatError: If they are damaged.
        """
        if inode.xattr == INVALID_XATTR or not self.is_there:
            return 0
        size: int = self._ids.entry(inode.xattr)[2]
        return size

    def _cursor(self, ref: int) -> Cursor:
        return Cursor(self._chain, self._start + (ref >> 16), ref & 0xFFFF)

    def _value(self, cursor: Cursor, kind: int) -> bytes:
        (size,) = WORD.unpack(cursor.take(WORD.size))
        if size > _LONGEST_VALUE:
            raise FormatError("an extended attribute is too long")
        value = cursor.take(size)
        if not kind & XATTR_VALUE_OOL:
            return value
        if size != _REFERENCE:
            raise FormatError("an extended attribute is damaged")
        return self._value(self._cursor(int.from_bytes(value, "little")), 0)
