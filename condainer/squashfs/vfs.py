"""The file system in an image: names, attributes, contents, and the caches before them.

It knows no errno and no FUSE; the format is `squashfs`'s, and the cache of blocks `blocks`'. Inodes
are named by their references, and nothing has to be opened or closed.

Any number of threads may call any method at once. All caches are bounded, in bytes or in entries,
however large the image is and whatever it claims.
"""

from __future__ import annotations

import _thread
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from condainer.squashfs.cache import Blocks, Place
from condainer.squashfs.image import DIRECTORY, LINK, NOTHING, REGULAR, UNCOMPRESSED, FormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from condainer.squashfs.image import Entry, Image, Inode, Location, Segment

_K = TypeVar("_K")
_V = TypeVar("_V")

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
_PLACES = 65536
"""Blocks of files whose places are kept; a file counts as some more."""
_READERS = 256
"""Files of which it is kept where somebody read last."""
_WINDOW = 2048
"""Blocks of a file whose places are known at once: as many as a metadata block tells of."""


_WITHIN = 14
"""Bits for a place within a segment, which has fewer than 15,000 entries. Programs of 32 bits take
no larger cookies than they have bits."""
_NAMES_OF_AN_IMAGE = 4_000_000
"""An image with more files than this is of no environment."""
_LONGEST_PATH = 4096
"""Bytes: no program can open what has a longer one."""
_NEAR = 16
"""Windows that it takes no time to go through."""
_MOST_BLOCKS = 1 << 28
"""Blocks of a file: 32 TiB in such of 128 KiB."""
_LARGE_LISTING = 1 << 20
"""Bytes of a listing that it takes a while to go through: 30,000 names."""
_MARKS = 512
"""Windows of a file of which it is kept where they begin."""


class NotFoundError(Exception):
    """There is no such name."""


class WrongKindError(Exception):
    """An inode is not of the kind that has what was asked for."""


class _Cache(dict[_K, _V]):
    """What was found out last, up to a total weight; the oldest goes first.

    Args:
        most: the weight that is kept.
        weigh: tells the weight of a value, always the same.
    """

    def __init__(self, most: int, weigh: Callable[[_V], int] = lambda _: 1) -> None:
        super().__init__()
        self._most = most
        self._weigh = weigh
        self._weight = 0
        self._lock = _thread.allocate_lock()

    def keep(self, key: _K, value: _V) -> None:
        """Keep a value for as long as there is room."""
        with self._lock:
            if key in self:  # as for another thread that was quicker
                self._weight -= self._weigh(self.pop(key))
            self[key] = value
            self._weight += self._weigh(value)
            while self._weight > self._most and len(self) > 1:
                self._weight -= self._weigh(self.pop(next(iter(self))))


class _Folder(NamedTuple):
    """What is known of a directory: its segments, and the first name of each."""

    segments: list[Segment]
    firsts: list[bytes]


class _Layout:
    """Where the data blocks of a file lie: a window of them, and where some windows begin."""

    def __init__(self, image: Image, inode: Inode) -> None:
        self._image = image
        self._inode = inode
        self.block_size = image.block_size
        tail = inode.fragment != NOTHING
        self.count = (inode.size if tail else inode.size + self.block_size - 1) // self.block_size
        self._marks = {0: (inode.start, image.behind(inode))}
        self._stride = 1
        self._window: tuple[int, tuple[int, ...], list[int]] = (-1, (), [])

    def is_near(self, index: int) -> bool:
        """Whether it takes no time to find out where a block is."""
        number = index // _WINDOW
        return number == self._window[0] or number - self._mark_before(number)[0] < _NEAR

    def place(self, index: int) -> Place:
        """Where a block is; its word is 0 where it holds nothing but zeros.

        Raises:
            FormatError: where the image is damaged, or the file is larger than any can be.
        """
        if index >= _MOST_BLOCKS:
            raise FormatError("a file has more blocks than it can have")
        number, within = divmod(index, _WINDOW)
        window = self._window
        if window[0] != number:
            window = self._read(number)
        most = min(self.block_size, self._inode.size - index * self.block_size)
        return Place(window[2][within], window[1][within], most)

    def places(self) -> Iterator[Place]:
        """Where all blocks are that do not hold zeros only."""
        for first in range(0, self.count, _WINDOW):
            self.place(first)
            _, words, positions = self._window
            if any(words):
                for word, position in zip(words, positions, strict=False):
                    if word & ~UNCOMPRESSED:
                        yield Place(position, word, self.block_size)

    def _mark_before(self, number: int) -> tuple[int, tuple[int, Location]]:
        marks = list(self._marks.items())  # at once: other threads may add and drop some
        return max(mark for mark in marks if mark[0] <= number)

    def _read(self, number: int) -> tuple[int, tuple[int, ...], list[int]]:
        current, (start, location) = self._mark_before(number)
        while current < number:
            size, location = self._image.skip_words(location, _WINDOW)
            current, start = current + 1, start + size
            if start > self._image.bytes_used:
                raise FormatError("the blocks of a file lie outside of the image")
            self._mark(current, (start, location))
        count = min(_WINDOW, self.count - number * _WINDOW)
        words, location = self._image.words(location, count)
        if any(words):
            positions = list(accumulate((word & ~UNCOMPRESSED for word in words), initial=start))
        else:
            positions = [start] * (count + 1)
        window = self._window = (number, words, positions)
        self._mark(number + 1, (positions[-1], location))
        return window

    def _mark(self, number: int, begin: tuple[int, Location]) -> None:
        """Keep where a window begins; of a very large file only where every so manieth does."""
        if number % self._stride == 0:
            self._marks[number] = begin
        if len(self._marks) > _MARKS:
            self._stride *= 2
            for each in list(self._marks):
                if each % self._stride:
                    self._marks.pop(each, None)


class FileSystem:
    """The files of an image.

    Args:
        image: an open one.
        cache_bytes: the most that decompressed blocks may take.
        threads: how many may decompress ahead of a reader.
    """

    def __init__(self, image: Image, *, cache_bytes: int = CACHE_BYTES, threads: int = 2) -> None:
        self.image = image
        self.root = image.root
        self._zeros = bytes(image.block_size)
        self._blocks = Blocks(image.block, cache_bytes, threads)
        self._ahead = 2 * threads
        self._inodes: dict[int, Inode] = {}
        self._folders: _Cache[int, _Folder] = _Cache(
            _SEGMENTS, lambda folder: len(folder.segments) + 2
        )
        self._names: _Cache[tuple[int, int], dict[bytes, int]] = _Cache(
            _NAMES, lambda names: len(names) + 4
        )
        self._listings: _Cache[tuple[int, int], list[Entry]] = _Cache(_LISTINGS)
        self._layouts: _Cache[int, _Layout] = _Cache(
            _PLACES, lambda layout: min(layout.count, _WINDOW) + 16
        )
        self._readers: _Cache[int, int] = _Cache(_READERS)

    def inode(self, ref: int) -> Inode:
        """Read an inode.

        Raises:
            FormatError: where there is none, or it is damaged.
        """
        inode = self._inodes.get(ref)
        if inode is None:
            if len(self._inodes) >= _INODES:
                self._inodes.clear()
            inode = self._inodes[ref] = self.image.inode(ref)
        return inode

    def descend(self, path: bytes) -> None:
        """Make a directory below the root the root.

        Raises:
            NotFoundError: where there is none.
            FormatError: where the image is damaged.
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
        """Whether it takes a while to find something in a directory for the first time."""
        return directory not in self._folders and self.inode(directory).size > _LARGE_LISTING

    def lookup(self, directory: int, name: bytes) -> int:
        """The inode of a name.

        Args:
            directory: reference of the directory.
            name: without slashes.

        Raises:
            NotFoundError: where there is no such name.
            WrongKindError: where it is no directory.
            FormatError: where the image is damaged.
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

        Raises:
            NotFoundError: where there is nothing.
            WrongKindError: where something on the way is no directory.
            FormatError: where the image is damaged.
        """
        ref = self.root
        for name in path.split(b"/"):
            if name not in {b"", b"."}:
                ref = self.lookup(ref, name)
        return ref

    def listing(self, directory: int, cookie: int = 0) -> Iterator[tuple[int, Entry]]:
        """The entries of a directory, without the two dots, from a place in it on.

        Args:
            directory: reference of the directory.
            cookie: 0, or the one that came with the entry after which to go on.

        Yields:
            a cookie, and an entry.

        Raises:
            WrongKindError: where it is no directory.
            FormatError: where the image is damaged.
        """
        first, within = cookie >> _WITHIN, cookie & ((1 << _WITHIN) - 1)
        for number in range(first, len(self._folder(directory).segments)):
            entries = self._entries(directory, number)
            for index in range(within, len(entries)):
                yield number << _WITHIN | index + 1, entries[index]
            within = 0

    def walk(self) -> Iterator[tuple[bytes, Entry]]:
        """All names below the root, a directory's own before those in it.

        No directory of a sound image is in two others, or in itself.

        Yields:
            a path from the root on, without a slash before it, and the entry.

        Raises:
            FormatError: where the image is damaged, or claims to have no end.
        """
        seen = {self.root}
        left = _NAMES_OF_AN_IMAGE
        waiting = [(b"", self.listing(self.root))]
        while waiting:
            above, entries = waiting[-1]
            try:
                _, entry = next(entries, (0, None))
            except WrongKindError:
                raise FormatError("a directory names as one what is none") from None
            if entry is None:
                waiting.pop()
                continue
            name = above + entry.name
            left -= 1
            if left < 0 or len(name) >= _LONGEST_PATH or entry.ref in seen:
                raise FormatError("its directories have no end")
            yield name, entry
            if entry.kind == DIRECTORY:
                seen.add(entry.ref)
                waiting.append((name + b"/", self.listing(entry.ref)))

    def _folder(self, directory: int) -> _Folder:
        folder = self._folders.get(directory)
        if folder is None:
            inode = self.inode(directory)
            if inode.kind != DIRECTORY:
                raise WrongKindError
            segments = self.image.segments(inode)
            folder = _Folder(segments, [segment.first for segment in segments])
            self._folders.keep(directory, folder)
        return folder

    def _read_names(self, directory: int, number: int, segment: Segment) -> dict[bytes, int]:
        names = {entry.name: entry.ref for entry in self.image.entries(segment)}
        self._names.keep((directory, number), names)
        return names

    def _entries(self, directory: int, number: int) -> list[Entry]:
        entries = self._listings.get((directory, number))
        if entries is None:
            entries = self.image.entries(self._folder(directory).segments[number])
            self._listings.keep((directory, number), entries)
        return entries

    # Contents

    def target(self, inode: Inode) -> bytes:
        """What a symbolic link points to.

        Raises:
            WrongKindError: where it is none.
            FormatError: where the image is damaged.
        """
        if inode.kind != LINK:
            raise WrongKindError
        return self.image.target(inode)

    def ready(self, inode: Inode, offset: int, size: int) -> list[memoryview] | None:
        """As `read`, but only where nothing has to be decompressed; None otherwise."""
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
            WrongKindError: where it is no regular file.
            FormatError: where the image is damaged.
        """
        pieces = self._read(inode, offset, size, wait=True)
        return pieces if pieces is not None else []

    def places(self, inode: Inode) -> Iterator[tuple[int, int]]:
        """Where in the image the content of a file lies: beginnings, and ends behind them.

        Args:
            inode: of a regular file.

        Raises:
            FormatError: where the image is damaged.
        """
        for place in self._layout(inode).places():
            yield place.position, place.position + (place.word & ~UNCOMPRESSED)
        if inode.fragment != NOTHING:
            position, word = self.image.fragment(inode.fragment)
            yield position, position + (word & ~UNCOMPRESSED)

    def _read(self, inode: Inode, offset: int, size: int, *, wait: bool) -> list[memoryview] | None:
        if inode.kind != REGULAR:
            raise WrongKindError
        block_size = self.image.block_size
        end = min(offset + size, inode.size)
        pieces: list[memoryview] = []
        layout: _Layout | None = None
        while offset < end:
            index, within = divmod(offset, block_size)
            length = min(block_size - within, end - offset)
            if inode.fragment != NOTHING and index == inode.size // block_size:
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
        position, word = self.image.fragment(inode.fragment)
        block = self._blocks.ready(position)
        if block is None and wait:
            block = self._blocks.get(Place(position, word, self.image.block_size))
        if block is not None and inode.offset + inode.size % self.image.block_size > len(block):
            raise FormatError("the end of a file lies outside of its fragment")
        return block

    def _block(self, inode: Inode, layout: _Layout, index: int, *, wait: bool) -> bytes | None:
        if not wait and not layout.is_near(index):
            return None
        place = layout.place(index)
        if not place.word & ~UNCOMPRESSED:
            return self._zeros
        block = self._blocks.ready(place.position)
        if block is None and wait:
            block = self._blocks.get(place)
        if block is not None and len(block) != place.most:
            raise FormatError(f"a block of inode {inode.number} has not its size")
        return block

    def _read_ahead(self, inode: Inode, layout: _Layout, end: int) -> None:
        """Have the next blocks decompressed for somebody who reads in order."""
        index = (end - 1) // self.image.block_size
        before = self._readers.get(inode.ref)
        if before == index:
            return
        self._readers.keep(inode.ref, index)
        if before is not None and index - self._ahead <= before <= index:
            for later in range(index + 1, min(index + 1 + self._ahead, layout.count)):
                place = layout.place(later)
                if place.word & ~UNCOMPRESSED:
                    self._blocks.ahead(place)

    def _layout(self, inode: Inode) -> _Layout:
        layout = self._layouts.get(inode.ref)
        if layout is None:
            layout = _Layout(self.image, inode)
            self._layouts.keep(inode.ref, layout)
        return layout
