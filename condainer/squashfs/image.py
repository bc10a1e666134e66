"""An open image: its superblock, its blocks, and its tables.

Everything is read when it is asked for. What the tables mean as files is the business of `vfs`.
"""

from __future__ import annotations

from condainer.squashfs.blocks import BlockReader, DataBlock
from condainer.squashfs.directories import DirectoryTable
from condainer.squashfs.errors import FormatError
from condainer.squashfs.inodes import InodeTable
from condainer.squashfs.structures import DIR, FRAGMENT_ENTRY
from condainer.squashfs.tables import Table
from condainer.squashfs.xattrs import XattrTable


class Image:
    """An open image. Any number of threads may use it at once.

    Args:
        descriptor: of the file; it stays the caller's, who closes it after the last use.
        offset: bytes of the file before the image.

    Attributes:
        blocks: its blocks.
        superblock: its head.
        inodes: its inodes.
        directories: the listings of its directories.
        xattrs: its extended attributes.

    Raises:
        FormatError: If it is no image of SquashFS 4.0, cut short, or damaged.
        CodecError: If this machine lacks what its compression needs.
        OSError: If it cannot be read.
    """

    def __init__(self, descriptor: int, offset: int = 0) -> None:
        self.blocks = blocks = BlockReader(descriptor, offset)
        self.superblock = superblock = blocks.superblock
        self.inodes = InodeTable(blocks)
        self.directories = DirectoryTable(blocks, self.inodes)
        self.xattrs = XattrTable(blocks)
        start, count = superblock.fragment_table_start, superblock.fragments
        self._fragments = Table(blocks, start, count, FRAGMENT_ENTRY)
        if self.inodes.read(superblock.root_inode).kind != DIR:
            raise FormatError("the root of the image is no directory")

    def fragment(self, index: int) -> DataBlock:
        """A fragment block: it holds the ends of several files, or small files as a whole.

        Args:
            index: of the fragment.

        Raises:
            FormatError: If there is no such fragment.
        """
        start, word, _ = self._fragments.entry(index)
        return DataBlock(start, word, self.superblock.block_size)
