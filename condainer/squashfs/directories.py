"""Directories: their listings, in parts that can be read one by one.

A listing is a sequence of runs: a header, and up to 256 entries whose inodes begin in one metadata
block. The inode of a large directory has an index besides, which says at which names and places the
runs begin. Source: `struct squashfs_dir_header`, `squashfs_dir_entry` and `squashfs_dir_index` in
the kernel's fs/squashfs/squashfs_fs.h.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from condainer.squashfs.errors import FormatError
from condainer.squashfs.structures import (
    DIR_COUNT,
    DIR_ENTRY,
    DIR_HEADER,
    DIR_INDEX,
    METADATA_SIZE,
    MODES,
    NAME_LEN,
)
from condainer.squashfs.tables import Chain, Cursor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from condainer.squashfs.blocks import BlockReader
    from condainer.squashfs.inodes import Inode, InodeTable

_DOTS = frozenset((b".", b".."))
_SIZE_OF_DOTS = 3
"""A directory's size is larger than its listing by this."""
_LARGE_SEGMENT = 1 << 16
_LONGEST_LISTING = 64 << 20
"""Bytes: about two million names."""


class Entry(NamedTuple):
    """A name in a directory.

    Attributes:
        name: without a slash, and neither `.` nor `..`.
        ref: reference of the inode that it names.
        number: of that inode.
        kind: of that inode: DIR, REG and so on.
    """

    name: bytes
    ref: int
    number: int
    kind: int


class Segment(NamedTuple):
    """A part of a directory's listing that can be read by itself.

    Attributes:
        first: its first name, or nothing for the first segment.
        block: where its first metadata block begins in the directory table.
        offset: where in that block it begins.
        length: bytes of it.
    """

    first: bytes
    block: int
    offset: int
    length: int


class DirectoryTable:
    """The listings of an image's directories.

    Args:
        blocks: of the image.
        inodes: of the image.
    """

    def __init__(self, blocks: BlockReader, inodes: InodeTable) -> None:
        self._start = blocks.superblock.directory_table_start
        self._chain = Chain(blocks)
        self._inodes = inodes

    def segments(self, directory: Inode) -> list[Segment]:
        """The parts that a directory's listing is read in, none of them large.

        Args:
            directory: its inode.

        Raises:
            FormatError: If its index or its listing is damaged.
        """
        length = directory.size - _SIZE_OF_DOTS
        if length <= 0:
            return []
        if length > _LONGEST_LISTING:
            raise FormatError("a directory is too large")
        marks = [(b"", 0, directory.start), *self._index(directory, length)]
        ends = [place for _, place, _ in marks[1:]] + [length]
        found = []
        for (name, place, start), end in zip(marks, ends, strict=True):
            # The listing goes on at the same place of each of its blocks but the first.
            within = (directory.offset + place) % METADATA_SIZE
            found += self._divided(Segment(name, start, within, end - place))
        return found

    def _index(self, directory: Inode, length: int) -> list[tuple[bytes, int, int]]:
        """A name, its place in the listing, and its metadata block, for each entry of an index."""
        marks: list[tuple[bytes, int, int]] = []
        cursor = Cursor(self._chain, *self._inodes.behind(directory))
        last = 0
        for _ in range(directory.indexes):
            place, start, size = DIR_INDEX.unpack(cursor.take(DIR_INDEX.size))
            if not last < place < length or size >= NAME_LEN:
                raise FormatError("the index of a directory is damaged")
            marks.append((cursor.take(size + 1), place, start))
            last = place
        return marks

    def _divided(self, segment: Segment) -> list[Segment]:
        """A segment in smaller ones if it is large, as in a directory that has no index."""
        if segment.length <= _LARGE_SEGMENT:
            return [segment]
        listing = self._listing(segment)
        chain = [segment.block]
        while len(chain) * METADATA_SIZE < segment.offset + segment.length:
            after = self._chain.block(self._start + chain[-1])[1]
            chain.append(after - self._start)
        found: list[Segment] = []
        begin, first = 0, segment.first
        for place, run in _runs(listing):
            if place - begin >= _LARGE_SEGMENT:
                block, offset = divmod(segment.offset + begin, METADATA_SIZE)
                found.append(Segment(first, chain[block], offset, place - begin))
                begin, first = place, run[0].name
        block, offset = divmod(segment.offset + begin, METADATA_SIZE)
        return [*found, Segment(first, chain[block], offset, segment.length - begin)]

    def entries(self, segment: Segment) -> list[Entry]:
        """The entries of a part of a listing, in their order, without the two dots.

        Args:
            segment: the part.

        Raises:
            FormatError: If it is damaged.
        """
        return [entry for _, run in _runs(self._listing(segment)) for entry in run]

    def _listing(self, segment: Segment) -> bytes:
        return self._chain.take(self._start + segment.block, segment.offset, segment.length)


def _runs(listing: bytes) -> Iterator[tuple[int, list[Entry]]]:
    """The entries behind each header of a listing, and where the header is."""
    place = 0
    while place < len(listing):
        begin = place
        try:
            place, run = _run(listing, place)
        except struct.error as error:
            raise FormatError("a directory is damaged") from error
        _check_names([entry.name for entry in run])
        yield begin, run
    if place != len(listing):
        raise FormatError("a directory is damaged: its last name is cut short")


def _run(listing: bytes, place: int) -> tuple[int, list[Entry]]:
    """The entries behind the header at a place of a listing, and where they end."""
    count, start, number = DIR_HEADER.unpack_from(listing, place)
    if count >= DIR_COUNT:
        raise FormatError("a directory is damaged: a run of it is too long")
    place += DIR_HEADER.size
    base = start << 16
    run = []
    for _ in range(count + 1):
        offset, delta, kind, size = DIR_ENTRY.unpack_from(listing, place)
        if kind not in MODES or size >= NAME_LEN:
            raise FormatError("a directory is damaged: it holds what cannot be")
        place += 9 + size  # the entry, and a name that is a byte longer than its size says
        name = listing[place - size - 1 : place]
        run.append(Entry(name, base | offset, number + delta & 0xFFFFFFFF, kind))
    return place, run


def _check_names(names: list[bytes]) -> None:
    joined = b"/".join(names)
    if joined.count(b"/") != len(names) - 1 or b"\0" in joined or not _DOTS.isdisjoint(names):
        raise FormatError("a directory is damaged: it holds a name that cannot be")
