"""The file system in an image: names, attributes, contents, and the caches before them.

It knows no errno and no FUSE. Inodes are named by their references, and nothing has to be opened or
closed. Any number of threads may call any method at once. All caches are limited, in bytes or in
entries, however large the image is and whatever it claims.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

from condainer.squashfs.cache import BlockCache, LimitedDict
from condainer.squashfs.errors import FormatError, NotFoundError, WrongKindError
from condainer.squashfs.layout import Layout
from condainer.squashfs.structures import DIR, INVALID_FRAG, REG, SYMLINK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from condainer.squashfs.blocks import DataBlock
    from condainer.squashfs.directories import Entry, Segment
    from condainer.squashfs.image import Image
    from condainer.squashfs.inodes import Inode

CACHE_BYTES = 64 << 20
"""Bytes of decompressed blocks that are kept. The kernel keeps what was read anyway."""

_NAMES = 65536
"""Names that are kept for looking up; a directory counts as some more."""
_INODES = 8192
"""Inodes that are kept: what is looked up is mostly read next."""
_SEGMENTS = 16384
"""Segments of directories whose places are kept; a directory counts as some more."""
_LISTINGS = 16
"""Segments of listings that are kept for whoever is listing a directory."""
_LAYOUTS = 65536
"""Blocks of files whose places are kept; a file counts as some more."""
_FRAGMENTS = 4096
"""Fragments whose places are kept."""
_READERS = 256
"""Files for which the place of the last read is kept."""
_WITHIN = 14
"""Bits for a place within a segment, which has fewer than 15,000 entries. Programs of 32 bits take
no larger cookies than they have bits."""
_LARGE_LISTING = 1 << 20
"""Bytes of a listing that it takes a while to go through: 30,000 names."""


class _Folder(NamedTuple):
    """What is known of a directory: its segments, and the first name of each."""

    segments: list[Segment]
    firsts: list[bytes]


class FileSystem:
    """The files of an image.

    Args:
        image: an open one.
        cache_bytes: the most that decompressed blocks may take.
        threads: how many may decompress ahead of a program that reads in order.
    """

    def __init__(self, image: Image, *, cache_bytes: int = CACHE_BYTES, threads: int = 2) -> None:
        self.image = image
        self.root = image.superblock.root_inode
        self._block_size = image.superblock.block_size
        self._zeros = bytes(self._block_size)
        self._blocks = BlockCache(image.blocks.data, cache_bytes, threads)
        self._ahead = 2 * threads
        self._inodes: dict[int, Inode] = {}
        self._folders: LimitedDict[int, _Folder] = LimitedDict(
            _SEGMENTS, lambda folder: len(folder.segments) + 2
        )
        self._names: LimitedDict[tuple[int, int], dict[bytes, int]] = LimitedDict(
            _NAMES, lambda names: len(names) + 4
        )
        self._listings: LimitedDict[tuple[int, int], list[Entry]] = LimitedDict(_LISTINGS)
        self._layouts: LimitedDict[int, Layout] = LimitedDict(
            _LAYOUTS, lambda layout: layout.weight
        )
        self._fragments: LimitedDict[int, DataBlock] = LimitedDict(_FRAGMENTS)
        self._readers: LimitedDict[int, int] = LimitedDict(_READERS)

    def inode(self, ref: int) -> Inode:
        """Read an inode.

        Args:
            ref: its reference.

        Raises:
            FormatError: If there is none, or it is damaged.
        """
        inode = self._inodes.get(ref)
        if inode is None:
            if len(self._inodes) >= _INODES:
                self._inodes.clear()
            inode = self._inodes[ref] = self.image.inodes.read(ref)
        return inode

    def descend(self, path: bytes) -> None:
        """Make a directory below the root the root.

        Args:
            path: of the directory, below the root.

        Raises:
            NotFoundError: If there is no such directory.
            FormatError: If the image is damaged.
        """
        try:
            ref = self.resolve(path)
            self._folder(ref)
        except (NotFoundError, WrongKindError):
            where = path.decode("utf-8", "replace")
            raise NotFoundError(f"there is no directory {where} in the image") from None
        self.root = ref

    # Names

    def takes_long(self, directory: int) -> bool:
        """Whether it takes a while to find something in a directory for the first time.

        Args:
            directory: reference of its inode.
        """
        return directory not in self._folders and self.inode(directory).size > _LARGE_LISTING

    def lookup(self, directory: int, name: bytes) -> int:
        """The inode of a name.

        Args:
            directory: reference of the directory.
            name: without slashes.

        Raises:
            NotFoundError: If there is no such name.
            WrongKindError: If it is no directory.
            FormatError: If the image is damaged.
        """
        folder = self._folder(directory)
        number = bisect_right(folder.firsts, name) - 1
        if number < 0:
            raise NotFoundError
        names = self._names.get((directory, number))
        if names is None:
            names = self._read_names(directory, number, folder.segments[number])
        ref = names.get(name)
        if ref is None:
            raise NotFoundError
        return ref

    def resolve(self, path: bytes) -> int:
        """The inode at a path below the root; links on the way are not followed.

        Args:
            path: names, with slashes between them.

        Raises:
            NotFoundError: If there is nothing.
            WrongKindError: If something on the way is no directory.
            FormatError: If the image is damaged.
        """
        ref = self.root
        for name in path.split(b"/"):
            if name not in {b"", b"."}:
                ref = self.lookup(ref, name)
        return ref

    def listing(self, directory: int, cookie: int = 0) -> Iterator[tuple[int, Entry]]:
        """The entries of a directory without the two dots, from some place in it on.

        Args:
            directory: reference of the directory.
            cookie: 0 for all; else the cookie of the last entry that the caller has.

        Yields:
            a cookie, and an entry.

        Raises:
            WrongKindError: If it is no directory.
            FormatError: If the image is damaged.
        """
        first, within = cookie >> _WITHIN, cookie & ((1 << _WITHIN) - 1)
        for number in range(first, len(self._folder(directory).segments)):
            entries = self._entries(directory, number)
            for index in range(within, len(entries)):
                yield number << _WITHIN | index + 1, entries[index]
            within = 0

    def _folder(self, directory: int) -> _Folder:
        folder = self._folders.get(directory)
        if folder is None:
            inode = self.inode(directory)
            if inode.kind != DIR:
                raise WrongKindError
            segments = self.image.directories.segments(inode)
            folder = _Folder(segments, [segment.first for segment in segments])
            self._folders.keep(directory, folder)
        return folder

    def _read_names(self, directory: int, number: int, segment: Segment) -> dict[bytes, int]:
        names = {entry.name: entry.ref for entry in self.image.directories.entries(segment)}
        self._names.keep((directory, number), names)
        return names

    def _entries(self, directory: int, number: int) -> list[Entry]:
        entries = self._listings.get((directory, number))
        if entries is None:
            entries = self.image.directories.entries(self._folder(directory).segments[number])
            self._listings.keep((directory, number), entries)
        return entries

    # Contents

    def target(self, inode: Inode) -> bytes:
        """What a symbolic link points to.

        Args:
            inode: of the link.

        Raises:
            WrongKindError: If it is no link.
            FormatError: If the image is damaged.
        """
        if inode.kind != SYMLINK:
            raise WrongKindError
        return self.image.inodes.target(inode)

    def ready(self, inode: Inode, offset: int, size: int) -> list[memoryview] | None:
        """As `read`, but None if something has to be decompressed first.

        Args:
            inode: of a regular file.
            offset: in bytes.
            size: in bytes.

        Raises:
            WrongKindError: If it is no regular file.
            FormatError: If the image is damaged.
        """
        return self._read(inode, offset, size, wait=False)

    def read(self, inode: Inode, offset: int, size: int) -> list[memoryview]:
        """A range of a file's content.

        Args:
            inode: of a regular file.
            offset: in bytes.
            size: in bytes; less comes at the end of the file.

        Returns:
            the pieces it consists of.

        Raises:
            WrongKindError: If it is no regular file.
            FormatError: If the image is damaged.
        """
        pieces = self._read(inode, offset, size, wait=True)
        return pieces if pieces is not None else []

    def extents(self, inode: Inode) -> Iterator[tuple[int, int]]:
        """Which parts of the image hold the content of a file, compressed.

        Args:
            inode: of a regular file.

        Yields:
            the first byte of a part, and the one behind its last.

        Raises:
            FormatError: If the image is damaged.
        """
        for block in self._layout(inode).blocks():
            yield block.position, block.position + block.size
        if inode.fragment != INVALID_FRAG:
            block = self.image.fragment(inode.fragment)
            yield block.position, block.position + block.size

    def _read(self, inode: Inode, offset: int, size: int, *, wait: bool) -> list[memoryview] | None:
        if inode.kind != REG:
            raise WrongKindError
        block_size = self._block_size
        end = min(offset + size, inode.size)
        pieces: list[memoryview] = []
        layout: Layout | None = None
        while offset < end:
            index, within = divmod(offset, block_size)
            length = min(block_size - within, end - offset)
            if inode.fragment != INVALID_FRAG and index == inode.size // block_size:
                block = self._fragment(inode, wait=wait)
                within += inode.offset
            else:
                layout = layout or self._layout(inode)
                block = self._block(inode, layout, index, wait=wait)
            if block is None:
                return None
            pieces.append(memoryview(block)[within : within + length])
            offset += length
        if layout is not None:
            self._read_ahead(inode, layout, end)
        return pieces

    def _fragment(self, inode: Inode, *, wait: bool) -> bytes | None:
        where = self._fragments.get(inode.fragment)
        if where is None:
            where = self.image.fragment(inode.fragment)
            self._fragments.keep(inode.fragment, where)
        block = self._loaded(where, wait=wait)
        if block is not None and inode.offset + inode.size % self._block_size > len(block):
            raise FormatError("the end of a file lies outside of its fragment")
        return block

    def _block(self, inode: Inode, layout: Layout, index: int, *, wait: bool) -> bytes | None:
        if not wait and not layout.is_near(index):
            return None
        where = layout.block(index)
        if not where.size:
            return self._zeros
        block = self._loaded(where, wait=wait)
        if block is not None and len(block) != where.most:
            raise FormatError(f"a block of inode {inode.number} has not its size")
        return block

    def _loaded(self, where: DataBlock, *, wait: bool) -> bytes | None:
        block = self._blocks.ready(where.position)
        return self._blocks.get(where) if block is None and wait else block

    def _read_ahead(self, inode: Inode, layout: Layout, end: int) -> None:
        """Have the next blocks decompressed for a program that reads in order."""
        index = (end - 1) // self._block_size
        before = self._readers.get(inode.ref)
        if before == index:
            return
        self._readers.keep(inode.ref, index)
        if before is None or not index - self._ahead <= before <= index:
            return
        for later in range(index + 1, min(index + 1 + self._ahead, layout.count)):
            where = layout.block(later)
            if where.size:
                self._blocks.ahead(where)

    def _layout(self, inode: Inode) -> Layout:
        layout = self._layouts.get(inode.ref)
        if layout is None:
            layout = Layout(self.image, inode)
            self._layouts.keep(inode.ref, layout)
        return layout
