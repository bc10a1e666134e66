"""Where the data blocks of a file lie.

The list of a file's blocks holds only their sizes, so the place of a block is the sum of all sizes
before it. A file of a terabyte has millions: the list is read in windows, and where some windows
begin is kept.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from condainer.squashfs.blocks import DataBlock
from condainer.squashfs.errors import FormatError
from condainer.squashfs.structures import COMPRESSED_BIT_BLOCK, INVALID_FRAG, METADATA_SIZE, WORD

if TYPE_CHECKING:
    from collections.abc import Iterator

    from condainer.squashfs.image import Image
    from condainer.squashfs.inodes import Inode
    from condainer.squashfs.tables import Location

    _Start = tuple[int, Location]
    """Where the first block of a window lies, and where its entry in the list is."""

_WINDOW = METADATA_SIZE // WORD.size
"""Blocks of a file whose places are known at once: as many as one metadata block tells of."""
_NEAR = 16
"""Windows that it takes no time to go through."""
_MOST_BLOCKS = 1 << 28
"""Blocks of a file: 32 TiB in blocks of 128 KiB."""
_MARKS = 512
"""Windows of a file whose beginnings are kept."""


class Layout:
    """Where the data blocks of a file lie.

    Args:
        image: that holds the file.
        inode: of a regular file.

    Attributes:
        count: data blocks of the file; the end that lies in a fragment is none of them.
        weight: how much the cache of layouts counts it for.
    """

    def __init__(self, image: Image, inode: Inode) -> None:
        self._image = image
        self._inode = inode
        self.block_size = block_size = image.superblock.block_size
        has_tail = inode.fragment != INVALID_FRAG
        self.count = (inode.size if has_tail else inode.size + block_size - 1) // block_size
        self.weight = min(self.count, _WINDOW) + 16
        self._marks = {0: (inode.start, image.inodes.behind(inode))}
        self._stride = 1
        self._window: tuple[int, tuple[int, ...], list[int]] = (-1, (), [])

    def is_near(self, index: int) -> bool:
        """Whether it takes no time to find out where a block is.

        Args:
            index: of the block in the file, from 0 on.
        """
        number = index // _WINDOW
        return number == self._window[0] or number - self._mark_before(number)[0] < _NEAR

    def block(self, index: int) -> DataBlock:
        """Where a block is. It has the size 0 if it holds nothing but zeros.

        Args:
            index: of the block in the file, from 0 on.

        Raises:
            FormatError: If the image is damaged, or the file is larger than any can be.
        """
        if index >= _MOST_BLOCKS:
            raise FormatError("a file has more blocks than it can have")
        number, within = divmod(index, _WINDOW)
        window = self._window
        if window[0] != number:
            window = self._read(number)
        most = min(self.block_size, self._inode.size - index * self.block_size)
        return DataBlock(window[2][within], window[1][within], most)

    def blocks(self) -> Iterator[DataBlock]:
        """Where all blocks are that do not hold zeros only.

        Raises:
            FormatError: If the image is damaged, or the file is larger than any can be.
        """
        for first in range(0, self.count, _WINDOW):
            self.block(first)
            _, words, positions = self._window
            if not any(words):
                continue
            for word, position in zip(words, positions, strict=False):
                block = DataBlock(position, word, self.block_size)
                if block.size:
                    yield block

    def _mark_before(self, number: int) -> tuple[int, _Start]:
        marks = list(self._marks.items())  # at once: other threads may add and drop some
        return max(mark for mark in marks if mark[0] <= number)

    def _read(self, number: int) -> tuple[int, tuple[int, ...], list[int]]:
        current, (start, location) = self._mark_before(number)
        while current < number:
            size, location = self._image.inodes.skip_blocks(location, _WINDOW)
            current, start = current + 1, start + size
            if start > self._image.superblock.bytes_used:
                raise FormatError("the blocks of a file lie outside of the image")
            self._mark(current, (start, location))
        count = min(_WINDOW, self.count - number * _WINDOW)
        words, location = self._image.inodes.block_list(location, count)
        if any(words):
            sizes = (word & ~COMPRESSED_BIT_BLOCK for word in words)
            positions = list(accumulate(sizes, initial=start))
        else:
            positions = [start] * (count + 1)
        window = self._window = (number, words, positions)
        self._mark(number + 1, (positions[-1], location))
        return window

    def _mark(self, number: int, start: _Start) -> None:
        """Keep where a window begins; for a very large file, keep only every Nth window."""
        if number % self._stride == 0:
            self._marks[number] = start
        if len(self._marks) > _MARKS:
            self._stride *= 2
            for each in list(self._marks):
                if each % self._stride:
                    self._marks.pop(each, None)
