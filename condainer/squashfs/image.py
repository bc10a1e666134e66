"""The format SquashFS 4.0: superblock, tables, inodes, directories and extended attributes.

Everything is read when it is asked for, and nothing is believed: what does not fit raises
`FormatError`. Here are no file contents (`vfs`), and no decompressors (`codecs`).

The format: https://docs.kernel.org/filesystems/squashfs.html and the kernel's
fs/squashfs/squashfs_fs.h. An inode is known by its reference, 48 bits: where its metadata block
begins in the inode table, and the inode's place in that block once decompressed. A table is a chain
of metadata blocks of up to 8 KiB; what an entry needs may begin in one and end in the next.

All methods may be called by any number of threads at once: what they share is the cache of
metadata blocks, where at worst a block is decompressed twice.
"""

from __future__ import annotations

import os
import stat
import struct
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

from condainer.squashfs import codecs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOTHING = 0xFFFFFFFF
"""Index that means: no fragment, no extended attributes."""

UNCOMPRESSED = 1 << 24
"""In the word that tells a data block's size on disk: it is stored as it is."""

_MAGIC = 0x73717368
_NO_TABLE = 0xFFFFFFFFFFFFFFFF
_STARTUP = struct.Struct("<24sQQ")
_STARTUP_MARK = b"condainer startup part 1"
_PAGE = 4096
_META = 8192
_NO_WORDS = bytes(_META)
_META_CACHE = 4096
"""Metadata blocks that are kept: 32 MiB, the tables of a million files."""

_SUPERBLOCK = struct.Struct("<5I6H8Q")
_HEADER = struct.Struct("<4H2I")
_DIRECTORY_HEADER = struct.Struct("<3I")
_DIRECTORY_ENTRY = struct.Struct("<HhHH")
_INDEX_ENTRY = struct.Struct("<3I")
_FRAGMENT = struct.Struct("<QII")
_XATTR_ID = struct.Struct("<QII")
_PLACE = struct.Struct("<Q")
_LONGEST_RUN = 256
_LONGEST_NAME = 256
_LONGEST_TARGET = 65536
_LONGEST_VALUE = 65536
_LONGEST_XATTRS = 1 << 20
XATTR_PREFIXES = (b"user.", b"trusted.", b"security.")
_OUT_OF_LINE = 0x100

DIRECTORY, REGULAR, LINK, BLOCK, CHARACTER, FIFO, SOCKET = range(1, 8)
_LONG = 7
"""What the types of the longer inodes differ by."""

MODES = {
    DIRECTORY: stat.S_IFDIR,
    REGULAR: stat.S_IFREG,
    LINK: stat.S_IFLNK,
    BLOCK: stat.S_IFBLK,
    CHARACTER: stat.S_IFCHR,
    FIFO: stat.S_IFIFO,
    SOCKET: stat.S_IFSOCK,
}
_REGULAR = struct.Struct("<4I")
_DIRECTORY = struct.Struct("<2I2HI")
_LINK = struct.Struct("<2I")
_DEVICE = struct.Struct("<2I")
_WORD = struct.Struct("<I")
_LONG_REGULAR = struct.Struct("<3Q4I")
_LONG_DIRECTORY = struct.Struct("<4I2HI")
LONG_REGULAR_FIXED = 56
"""Bytes before the list of blocks in the long inode of a file: the longest fixed part there is."""
_DOTS = frozenset((b".", b".."))
_SIZE_OF_DOTS = 3
"""What a directory's size is larger by than its listing."""
_LARGE_SEGMENT = 1 << 16
_LONGEST_LISTING = 64 << 20


class FormatError(Exception):
    """An image is not what it claims to be."""


class Inode(NamedTuple):
    """One inode, whatever its kind.

    Attributes:
        ref: its reference.
        kind: DIRECTORY, REGULAR and so on.
        mode: permissions and kind, as `stat` gives them.
        uid: owner.
        gid: group.
        mtime: seconds since 1970, not signed.
        number: of the inode.
        links: how many names it has.
        size: of the content, or of a directory's listing, in bytes.
        fixed: bytes of the inode before its list of blocks, its target, or its index.
        start: of data: where its first block lies; of a directory: where its metadata block begins
            in the directory table; of a device: its number as the kernel encodes it.
        fragment: index of the fragment with the end of the file, or NOTHING.
        offset: where in that fragment, or in the directory's metadata block, it begins.
        xattr: index of its extended attributes, or NOTHING.
        sparse: bytes of the content that take no room.
        parent: of a directory: the inode number of the one above.
        indexes: of a directory: how many entries its index has.
    """

    ref: int
    kind: int
    mode: int
    uid: int
    gid: int
    mtime: int
    number: int
    links: int
    size: int
    fixed: int
    start: int = 0
    fragment: int = NOTHING
    offset: int = 0
    xattr: int = NOTHING
    sparse: int = 0
    parent: int = 0
    indexes: int = 0


Location = tuple[int, int]
"""A place in a table: where a metadata block begins, and how many bytes behind its begin it is."""


class Entry(NamedTuple):
    """A name in a directory: what it names, the inode's number, and its kind."""

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


class Image:
    """An open image.

    Args:
        descriptor: of the file.
        offset: bytes of the file before the image.

    Attributes:
        root: reference of the root directory.
        inodes: how many there are.
        block_size: bytes of a data block.
        bytes_used: size of the image.
        has_xattrs: whether it has extended attributes at all.

    Raises:
        FormatError: where it is not an image, not of version 4.0, or cut short.
        CodecError: where it cannot be decompressed here.
    """

    root: int
    inodes: int
    block_size: int
    bytes_used: int
    has_xattrs: bool

    def __init__(self, descriptor: int, offset: int = 0) -> None:
        self._descriptor = descriptor
        self._offset = offset
        self._metas: OrderedDict[int, tuple[bytes, int]] = OrderedDict()
        self._read_superblock(os.lseek(descriptor, 0, os.SEEK_END) - offset)
        self.codec: Callable[[bytes, int], bytes] = codecs.find(self.compression)
        self._ids = self._read_ids()
        self._fragment_index = self._read_index(
            self._fragment_table, self.fragments, _FRAGMENT.size
        )
        self._read_xattr_table()
        if self.inode(self.root).kind != DIRECTORY:
            raise FormatError("the root of the image is no directory")

    def _read_superblock(self, size: int) -> None:
        data = os.pread(self._descriptor, _SUPERBLOCK.size, self._offset)
        if len(data) < _SUPERBLOCK.size:
            raise FormatError("this is no image: it is too short")
        fields = _SUPERBLOCK.unpack(data)
        magic, self.inodes, self.made, self.block_size, self.fragments = fields[:5]
        self.compression, block_log, self.flags, self.ids, major, minor = fields[5:11]
        self.root, self.bytes_used, self._id_table, self._xattr_table = fields[11:15]
        self._inode_table, self._directory_table, self._fragment_table, _ = fields[15:]
        if magic != _MAGIC:
            raise FormatError("this is no image of SquashFS")
        if (major, minor) != (4, 0):
            raise FormatError(f"SquashFS {major}.{minor} is not supported, only 4.0")
        if not 12 <= block_log <= 20 or self.block_size != 1 << block_log:  # noqa: PLR2004
            raise FormatError("the block size is not possible")
        if self.bytes_used > size:
            raise FormatError(f"the image is cut short: {self.bytes_used - size} bytes are missing")
        tables = (self._inode_table, self._directory_table, self._id_table)
        if any(not _SUPERBLOCK.size <= table < self.bytes_used for table in tables):
            raise FormatError("a table lies outside of the image")
        if not self._inode_table < self._directory_table:
            raise FormatError("the tables are out of order")

    # Bytes on disk

    def read(self, position: int, length: int) -> bytes:
        """Bytes of the image as they are on disk.

        Raises:
            FormatError: where they lie outside of it.
            OSError: where they cannot be read.
        """
        if position < 0 or position + length > self.bytes_used:
            raise FormatError("a block lies outside of the image")
        data = os.pread(self._descriptor, length, self._offset + position)
        if len(data) != length:
            raise FormatError("the image has become shorter")
        return data

    def block(self, position: int, word: int, most: int) -> bytes:
        """A data block or a fragment block, decompressed.

        Args:
            position: where it begins.
            word: its size on disk, with UNCOMPRESSED.
            most: bytes that may come of it.

        Raises:
            FormatError: where it is damaged.
        """
        size = word & ~UNCOMPRESSED
        if not 0 < size <= self.block_size:
            raise FormatError("the size of a block is not possible")
        data = self.read(position, size)
        return data if word & UNCOMPRESSED else self._decompress(data, most)

    def _decompress(self, data: bytes, most: int) -> bytes:
        try:
            return self.codec(data, most)
        except codecs.CodecError as error:
            raise FormatError(str(error)) from error

    def read_ahead(self) -> None:
        """Have the kernel read the part that programs need when they start, where one is noted.

        It is noted behind the image: a mark, then the first byte and the one behind the last.
        """
        place = -(-self.bytes_used // _PAGE) * _PAGE
        data = os.pread(self._descriptor, _STARTUP.size, self._offset + place)
        if len(data) == _STARTUP.size:
            mark, start, end = _STARTUP.unpack(data)
            if mark == _STARTUP_MARK and start < end <= self.bytes_used:
                start += self._offset
                os.posix_fadvise(self._descriptor, start, end - start, os.POSIX_FADV_WILLNEED)

    def _meta(self, position: int) -> tuple[bytes, int]:
        """A metadata block, and where the next one begins."""
        metas = self._metas
        found = metas.get(position)
        if found is not None:
            return found
        word = int.from_bytes(self.read(position, 2), "little")
        size = word & 0x7FFF or 0x8000
        if size > _META:
            raise FormatError("the size of a metadata block is not possible")
        data = self.read(position + 2, size)
        if not word & 0x8000:
            data = self._decompress(data, _META)
        found = metas[position] = (data, position + 2 + size)
        while len(metas) > _META_CACHE:
            try:
                metas.popitem(last=False)
            except KeyError:  # another thread was quicker
                break
        return found

    def _take(self, position: int, offset: int, length: int) -> bytes:
        """Bytes of a table, from a place in a metadata block on."""
        data, position = self._meta(position)
        if offset > len(data):
            raise FormatError("a place in a table lies behind its block")
        end = offset + length
        if end <= len(data):
            return data[offset:end]
        pieces = [data[offset:]]
        missing = length - len(pieces[0])
        while missing > 0:
            data, position = self._meta(position)
            if not data:
                raise FormatError("a table has an empty block")
            pieces.append(data[:missing])
            missing -= len(data)
        return b"".join(pieces)

    def _skip(self, position: int, offset: int) -> tuple[int, int]:
        """The same place in a table, in the metadata block that really holds it."""
        while True:
            data, after = self._meta(position)
            if offset < len(data) or not data:
                return position, offset
            offset -= len(data)
            position = after

    def _read_index(self, position: int, count: int, size: int) -> bytes:
        """Where the metadata blocks of a table of entries of one size lie, as it is on disk."""
        if not count:
            return b""
        blocks = -(-count * size // _META)
        if position == _NO_TABLE:
            raise FormatError("a table is missing")
        return self.read(position, _PLACE.size * blocks)

    def _read_ids(self) -> tuple[int, ...]:
        index = self._read_index(self._id_table, self.ids, 4)
        data = b"".join(self._meta(block)[0] for (block,) in _PLACE.iter_unpack(index))
        if len(data) < 4 * self.ids:
            raise FormatError("the table of owners is cut short")
        return struct.unpack_from(f"<{self.ids}I", data)

    def _indexed(self, index: bytes, place: int, length: int) -> bytes:
        """Bytes of a table that has an index."""
        block, offset = divmod(place, _META)
        (position,) = _PLACE.unpack_from(index, _PLACE.size * block)
        return self._take(position, offset, length)

    def fragment(self, index: int) -> tuple[int, int]:
        """Where a fragment block lies, and the word that tells its size on disk.

        Raises:
            FormatError: where there is none.
        """
        if index >= self.fragments:
            raise FormatError("there is no such fragment")
        data = self._indexed(self._fragment_index, index * _FRAGMENT.size, _FRAGMENT.size)
        start, word, _ = _FRAGMENT.unpack(data)
        return start, word

    # Inodes

    def inode(self, ref: int) -> Inode:
        """Read an inode.

        Raises:
            FormatError: where there is none, or its kind is unknown.
        """
        position = self._inode_table + (ref >> 16)
        if position >= self._directory_table:
            raise FormatError("an inode lies outside of its table")
        offset = ref & 0xFFFF
        data, after = self._meta(position)
        if len(data) - offset < LONG_REGULAR_FIXED and after < self._directory_table:
            data += self._meta(after)[0]
        try:
            return self._parse(ref, data, offset)
        except (struct.error, LookupError) as error:
            raise FormatError("an inode is damaged") from error

    def _parse(self, ref: int, data: bytes, offset: int) -> Inode:  # noqa: PLR0911  (kinds)
        kind, mode, uid, gid, mtime, number = _HEADER.unpack_from(data, offset)
        base = kind - _LONG if kind > _LONG else kind
        mode = mode & 0o7777 | MODES[base]
        common = ref, base, mode, self._ids[uid], self._ids[gid], mtime, number
        place = offset + _HEADER.size
        if kind == REGULAR:
            start, fragment, offset, size = _REGULAR.unpack_from(data, place)
            return Inode(*common, 1, size, 32, start, fragment, offset)
        if kind == DIRECTORY:
            start, links, size, offset, parent = _DIRECTORY.unpack_from(data, place)
            return Inode(*common, links, size, 32, start, NOTHING, offset, NOTHING, 0, parent)
        if kind == LINK:
            links, size = _LINK.unpack_from(data, place)
            return Inode(*common, links, size, 24)
        if kind == REGULAR + _LONG:
            start, size, sparse, links, fragment, offset, xattr = _LONG_REGULAR.unpack_from(
                data, place
            )
            return Inode(
                *common, links, size, LONG_REGULAR_FIXED, start, fragment, offset, xattr, sparse
            )
        if kind == DIRECTORY + _LONG:
            links, size, start, parent, indexes, offset, xattr = _LONG_DIRECTORY.unpack_from(
                data, place
            )
            return Inode(
                *common, links, size, 40, start, NOTHING, offset, xattr, 0, parent, indexes
            )
        if kind == LINK + _LONG:
            links, size = _LINK.unpack_from(data, place)
            inode = Inode(*common, links, size, 24)
            words = self._rest(inode, _checked_target(size) + 4)
            return inode._replace(xattr=int.from_bytes(words[-4:], "little"))
        if base in {BLOCK, CHARACTER}:
            links, device, xattr = (*_DEVICE.unpack_from(data, place), NOTHING)
            if kind > _LONG:
                (xattr,) = _WORD.unpack_from(data, place + _DEVICE.size)
            return Inode(*common, links, 0, 0, device, xattr=xattr)
        (links,) = _WORD.unpack_from(data, place)
        xattr = _WORD.unpack_from(data, place + _WORD.size)[0] if kind > _LONG else NOTHING
        return Inode(*common, links, 0, 0, xattr=xattr)

    def behind(self, inode: Inode) -> Location:
        """Where an inode's list of blocks, its target or its index begins."""
        return self._inode_table + (inode.ref >> 16), (inode.ref & 0xFFFF) + inode.fixed

    def _rest(self, inode: Inode, length: int) -> bytes:
        """Bytes of the inode table that follow the fixed part of an inode."""
        place = self._skip(*self.behind(inode))
        return self._take(*place, length)

    def target(self, inode: Inode) -> bytes:
        """What a symbolic link points to.

        Raises:
            FormatError: where it is damaged.
        """
        return self._rest(inode, _checked_target(inode.size))

    def words(self, location: Location, count: int) -> tuple[tuple[int, ...], Location]:
        """The words that tell the sizes on disk of some of a file's data blocks.

        Args:
            location: of the first of them.
            count: how many; the caller sees to it that these are few.

        Returns:
            the words, and where the next one is.

        Raises:
            FormatError: where the inode table ends before.
        """
        position, offset = self._skip(*location)
        words = struct.unpack(f"<{count}I", self._take(position, offset, 4 * count))
        return words, (position, offset + 4 * count)

    def skip_words(self, location: Location, count: int) -> tuple[int, Location]:
        """Go past such words.

        Args:
            location: of the first of them.
            count: how many.

        Returns:
            the bytes on disk of all their blocks, and where the next one is.

        Raises:
            FormatError: where the inode table ends before.
        """
        position, offset = self._skip(*location)
        data = self._take(position, offset, 4 * count)
        size = 0
        if data != _NO_WORDS[: len(data)]:  # else nothing but a hole
            # The mark of a word is its highest byte; one that is larger is no size that can be.
            size = sum(struct.unpack(f"<{count}I", data)) - UNCOMPRESSED * data[3::4].count(1)
        return size, (position, offset + 4 * count)

    # Directories

    def segments(self, directory: Inode) -> list[Segment]:
        """The parts that a directory's listing is read in, none of them large.

        Args:
            directory: its inode.

        Raises:
            FormatError: where its index or its listing is damaged.
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
            within = (directory.offset + place) % _META
            segment = Segment(name, start, within, end - place)
            found += self._divided(segment)
        return found

    def _index(self, directory: Inode, length: int) -> list[tuple[bytes, int, int]]:
        """A name, its place in the listing, and its metadata block, for each entry of an index."""
        marks: list[tuple[bytes, int, int]] = []
        cursor = _Cursor(self, *self.behind(directory))
        last = 0
        for _ in range(directory.indexes):
            place, start, size = _INDEX_ENTRY.unpack(cursor.take(_INDEX_ENTRY.size))
            if not last < place < length or size >= _LONGEST_NAME:
                raise FormatError("the index of a directory is damaged")
            marks.append((cursor.take(size + 1), place, start))
            last = place
        return marks

    def _divided(self, segment: Segment) -> list[Segment]:
        """A segment in smaller ones where it is large, as in a directory that has no index."""
        if segment.length <= _LARGE_SEGMENT:
            return [segment]
        listing = self._listing(segment)
        chain = [segment.block]
        while len(chain) * _META < segment.offset + segment.length:
            after = self._meta(self._directory_table + chain[-1])[1]
            chain.append(after - self._directory_table)
        found: list[Segment] = []
        begin, first = 0, segment.first
        for place, run in self._runs(listing):
            if place - begin >= _LARGE_SEGMENT:
                block, offset = divmod(segment.offset + begin, _META)
                found.append(Segment(first, chain[block], offset, place - begin))
                begin, first = place, run[0].name
        block, offset = divmod(segment.offset + begin, _META)
        return [*found, Segment(first, chain[block], offset, segment.length - begin)]

    def entries(self, segment: Segment) -> list[Entry]:
        """The entries of a part of a listing, in the order they are in, without the two dots.

        Raises:
            FormatError: where it is damaged.
        """
        return [entry for _, run in self._runs(self._listing(segment)) for entry in run]

    def _listing(self, segment: Segment) -> bytes:
        return self._take(self._directory_table + segment.block, segment.offset, segment.length)

    def _runs(self, listing: bytes) -> Iterator[tuple[int, list[Entry]]]:
        """What follows each header of a listing, and where the header is."""
        place = 0
        try:
            while place < len(listing):
                begin = place
                count, start, number = _DIRECTORY_HEADER.unpack_from(listing, place)
                if count >= _LONGEST_RUN:
                    raise FormatError("a directory is damaged: a run of it is too long")
                place += _DIRECTORY_HEADER.size
                base = start << 16
                run = []
                for _ in range(count + 1):
                    offset, delta, kind, size = _DIRECTORY_ENTRY.unpack_from(listing, place)
                    if kind not in MODES or size >= _LONGEST_NAME:
                        raise FormatError("a directory is damaged: it holds what cannot be")
                    place += 9 + size
                    name = listing[place - size - 1 : place]
                    run.append(Entry(name, base | offset, number + delta & 0xFFFFFFFF, kind))
                _check_names([entry.name for entry in run])
                yield begin, run
        except struct.error as error:
            raise FormatError("a directory is damaged") from error
        if place != len(listing):
            raise FormatError("a directory is damaged: its last name is cut short")

    # Extended attributes

    def xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        """The extended attributes of an inode, by their full names.

        Raises:
            FormatError: where they are damaged.
        """
        found = self._xattr_entry(inode)
        if found is None:
            return {}
        ref, count, _ = found
        cursor = _Cursor(self, self._xattr_start + (ref >> 16), ref & 0xFFFF)
        values = {}
        left = _LONGEST_XATTRS
        for _ in range(count):
            kind, size = struct.unpack("<2H", cursor.take(4))
            name = cursor.take(size)
            value = self._value(cursor, kind)
            left -= len(name) + len(value) + 8
            if left < 0:
                raise FormatError("extended attributes are damaged")
            if kind & 0xFF < len(XATTR_PREFIXES):  # as the kernel, which passes over others
                values[XATTR_PREFIXES[kind & 0xFF] + name] = value
        return values

    def xattr_size(self, inode: Inode) -> int:
        """Bytes that the extended attributes of an inode take.

        Raises:
            FormatError: where they are damaged.
        """
        found = self._xattr_entry(inode)
        return found[2] if found is not None else 0

    def _xattr_entry(self, inode: Inode) -> tuple[int, int, int] | None:
        """Of an inode's extended attributes: where they begin, how many, and how many bytes."""
        if inode.xattr == NOTHING or not self.has_xattrs:
            return None
        if inode.xattr >= self._xattr_count:
            raise FormatError("there are no such extended attributes")
        entry = self._indexed(self._xattr_index, inode.xattr * _XATTR_ID.size, _XATTR_ID.size)
        ref, count, size = _XATTR_ID.unpack(entry)
        return ref, count, size

    def _value(self, cursor: _Cursor, kind: int) -> bytes:
        (size,) = _WORD.unpack(cursor.take(4))
        if size > _LONGEST_VALUE:
            raise FormatError("an extended attribute is too long")
        value = cursor.take(size)
        if kind & _OUT_OF_LINE:
            if size != 8:  # noqa: PLR2004
                raise FormatError("an extended attribute is damaged")
            ref = int.from_bytes(value, "little")
            elsewhere = _Cursor(self, self._xattr_start + (ref >> 16), ref & 0xFFFF)
            return self._value(elsewhere, 0)
        return value

    def _read_xattr_table(self) -> None:
        self.has_xattrs = self._xattr_table != _NO_TABLE
        if self.has_xattrs:
            header = self.read(self._xattr_table, 16)
            self._xattr_start, self._xattr_count, _ = _XATTR_ID.unpack(header)
            self._xattr_index = self._read_index(
                self._xattr_table + 16, self._xattr_count, _XATTR_ID.size
            )


class _Cursor:
    """A place in a table that moves on with what is taken."""

    def __init__(self, image: Image, block: int, offset: int) -> None:
        self._image = image
        self._place = block, offset

    def take(self, length: int) -> bytes:
        block, offset = self._image._skip(*self._place)  # noqa: SLF001
        self._place = block, offset + length
        return self._image._take(block, offset, length)  # noqa: SLF001


def _check_names(names: list[bytes]) -> None:
    joined = b"/".join(names)
    if joined.count(b"/") != len(names) - 1 or b"\0" in joined or not _DOTS.isdisjoint(names):
        raise FormatError("a directory is damaged: it holds a name that cannot be")


def _checked_target(size: int) -> int:
    if size > _LONGEST_TARGET:
        raise FormatError("a symbolic link is too long")
    return size
