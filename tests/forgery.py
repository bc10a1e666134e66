"""Images in which a number is changed: what they claim, and what cannot be answered then.

The tables of the images that this is done to are not compressed.
"""

from __future__ import annotations

import contextlib
import os
import struct
from typing import TYPE_CHECKING

import zstandard

from condainer.squashfs import FileSystem, Image, structures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Change = Callable[["Forgery"], None]
    Question = Callable[[FileSystem], object]

BEYOND = 0xFFFF_FFFF_FFFF_FFF0
"""A place behind the end of every image."""


@contextlib.contextmanager
def opened(data: bytes) -> Iterator[FileSystem]:
    descriptor = os.memfd_create("image")
    try:
        os.write(descriptor, data)
        yield FileSystem(Image(descriptor), threads=0)
    finally:
        os.close(descriptor)


class Forgery:
    """An image whose bytes can be changed.

    Args:
        original: an image whose tables are not compressed.

    Attributes:
        data: what has become of it.
    """

    def __init__(self, original: Path) -> None:
        self._original = original.read_bytes()
        self.data = bytearray(self._original)
        self._tables = struct.unpack_from("<4Q", self._original, 64)

    def superblock(self, place: int, form: str, value: int) -> None:
        """Change a number in the superblock."""
        struct.pack_into(form, self.data, place, value)

    def inode(self, path: bytes, place: int, form: str, value: int) -> None:
        """Change a number in an inode, counted from where that begins."""
        with opened(self._original) as files:
            block, offset = divmod(files.resolve(path), 1 << 16)
        struct.pack_into(form, self.data, self._tables[0] + block + 2 + offset + place, value)

    def listing(self, path: bytes, place: int, form: str, value: int) -> None:
        """Change a number in the listing of a directory, counted from where that begins."""
        with opened(self._original) as files:
            inode = files.inode(files.resolve(path))
        start = self._tables[1] + inode.start + 2 + inode.offset
        struct.pack_into(form, self.data, start + place, value)

    def lead(self, path: bytes, target: bytes) -> None:
        """Have the first name in a directory name another inode."""
        with opened(self._original) as files:
            block, offset = divmod(files.resolve(target), 1 << 16)
        self.listing(path, 4, "<I", block)
        self.listing(path, 12, "<H", offset)

    def index(self, table: int, value: int) -> None:
        """Change where the first block of a table lies: 2 for that of the fragments."""
        struct.pack_into("<Q", self.data, self._tables[table], value)

    def fragment(self, path: bytes, place: int, form: str, value: int) -> None:
        """Change a number in the table's entry of the fragment that has the end of a file."""
        with opened(self._original) as files:
            index = files.inode(files.resolve(path)).fragment
        (block,) = struct.unpack_from("<Q", self.data, self._tables[2])
        struct.pack_into(form, self.data, block + 2 + 16 * index + place, value)

    def xattr(self, path: bytes, place: int, form: str, value: int) -> None:
        """Change a number in the first extended attribute of a file."""
        with opened(self._original) as files:
            index = files.inode(files.resolve(path)).xattr
        (table,) = struct.unpack_from("<56xQ", self.data)
        start, _, block = struct.unpack_from("<3Q", self.data, table)
        (ref,) = struct.unpack_from("<Q", self.data, block + 2 + 16 * index)
        struct.pack_into(form, self.data, start + 2 + ref + place, value)

    def ask(self, question: Question) -> object:
        """Open what has become of the image, and ask."""
        with opened(bytes(self.data)) as files:
            return question(files)


def content(path: bytes, offset: int = 0) -> Question:
    return lambda files: b"".join(files.read(files.inode(files.resolve(path)), offset, 65536))


def names(path: bytes) -> Question:
    return lambda files: [entry.name for _, entry in files.listing(files.resolve(path))]


def name(path: bytes) -> Question:
    return lambda files: files.inode(files.resolve(path))


def target(path: bytes) -> Question:
    return lambda files: files.target(files.inode(files.resolve(path)))


def xattrs(path: bytes) -> Question:
    return lambda files: files.image.xattrs.of(files.inode(files.resolve(path)))


# What inodes and listings claim: a change, and the question that it makes impossible to answer.
LIES: dict[str, tuple[Change, Question]] = {
    "a file of 2**62 bytes": (
        lambda f: f.inode(b"sparse", 24, "<Q", 1 << 62),
        content(b"sparse", 1 << 61),
    ),
    "a file of 2**64 - 1 bytes": (
        lambda f: f.inode(b"sparse", 24, "<Q", (1 << 64) - 1),
        content(b"sparse", (1 << 64) - 5),
    ),
    "a file that lies elsewhere": (
        lambda f: f.inode(b"noise", 16, "<Q", BEYOND),
        content(b"noise"),
    ),
    "a block of its size on disk": (
        lambda f: f.inode(b"noise", 56, "<I", 0x00FF_FFFF),
        content(b"noise"),
    ),
    "a block that is too short": (
        lambda f: f.inode(b"noise", 56, "<I", structures.COMPRESSED_BIT_BLOCK | 100),
        content(b"noise"),
    ),
    "a fragment that is not there": (
        lambda f: f.inode(b"text", 44, "<I", 77),
        content(b"text", 14_000),
    ),
    "a place behind the fragment": (
        lambda f: f.inode(b"text", 48, "<I", 0xFFFF_0000),
        content(b"text", 14_000),
    ),
    "a fragment elsewhere": (
        lambda f: f.fragment(b"text", 0, "<Q", BEYOND),
        content(b"text", 14_000),
    ),
    "a fragment of its size on disk": (
        lambda f: f.fragment(b"text", 8, "<I", 0x00FF_FFFF),
        content(b"text", 14_000),
    ),
    "a link of 4 GiB": (
        lambda f: f.inode(b"link", 20, "<I", 0xFFFF_FFFF),
        target(b"link"),
    ),
    "a link beyond the table": (
        lambda f: f.inode(b"link", 20, "<I", 60_000),
        target(b"link"),
    ),
    "an unknown kind of inode": (
        lambda f: f.inode(b"link", 0, "<H", 15),
        name(b"link"),
    ),
    "an owner that is not there": (
        lambda f: f.inode(b"link", 4, "<H", 999),
        name(b"link"),
    ),
    "a directory of 4 GiB": (
        lambda f: f.inode(b"large", 20, "<I", 0xFFFF_FFFF),
        names(b"large"),
    ),
    "a directory of 64 MiB": (
        lambda f: f.inode(b"large", 20, "<I", 64 << 20),
        names(b"large"),
    ),
    "a directory that lies elsewhere": (
        lambda f: f.inode(b"large", 24, "<I", 0xFFFF_FFF0),
        names(b"large"),
    ),
    "a directory that begins behind its block": (
        lambda f: f.inode(b"large", 34, "<H", 0xFFFF),
        names(b"large"),
    ),
    "an index of 65,535 entries": (
        lambda f: f.inode(b"large", 32, "<H", 0xFFFF),
        names(b"large"),
    ),
    "an index into nowhere": (
        lambda f: f.inode(b"large", 40, "<I", 0x7FFF_FFFF),
        names(b"large"),
    ),
    "an index of another block": (
        lambda f: f.inode(b"large", 44, "<I", 0x7FFF_FFFF),
        names(b"large"),
    ),
    "an index with a name of 4 GiB": (
        lambda f: f.inode(b"large", 48, "<I", 0xFFFF_FFFF),
        names(b"large"),
    ),
    "a run of 4 billion names": (
        lambda f: f.listing(b"directory", 0, "<I", 0xFFFF_FFFF),
        names(b"directory"),
    ),
    "a run of more names than there are": (
        lambda f: f.listing(b"directory", 0, "<I", 200),
        names(b"directory"),
    ),
    "a name of an inode elsewhere": (
        lambda f: f.listing(b"directory", 4, "<I", 0x7FFF_FFFF),
        name(b"directory/inner"),
    ),
    "a name of no known kind": (
        lambda f: f.listing(b"directory", 16, "<H", 8),
        names(b"directory"),
    ),
    "a name that is too long": (
        lambda f: f.listing(b"large", 18, "<H", 256),
        names(b"large"),
    ),
    "a name with a slash": (
        lambda f: f.listing(b"directory", 20, "<B", ord("/")),
        names(b"directory"),
    ),
    "a name with a zero": (
        lambda f: f.listing(b"directory", 20, "<B", 0),
        names(b"directory"),
    ),
    "attributes that are not there": (
        lambda f: f.inode(b"noise", 52, "<I", 88),
        xattrs(b"noise"),
    ),
    "an attribute with a name of 64 KiB": (
        lambda f: f.xattr(b"text", 2, "<H", 0xFFFF),
        xattrs(b"text"),
    ),
    "an attribute of 4 GiB": (
        lambda f: f.xattr(b"text", 8, "<I", 0xFFFF_FFFF),
        xattrs(b"text"),
    ),
    "an attribute elsewhere, of a size that is no place": (
        lambda f: f.xattr(b"text", 0, "<H", 0x100),
        xattrs(b"text"),
    ),
}


def with_hole(original: bytes, name: bytes, blocks: int) -> bytes:
    """An image with a file of nothing but holes, and of as many blocks as nobody ever packs.

    Args:
        original: an image made with `-noI -no-exports -no-xattrs -no-fragments`.
        name: of the file, which has to be the only one in its directory.
        blocks: how many.
    """
    (block_size,) = struct.unpack_from("<12xI", original)
    size = blocks * block_size
    nothing = structures.INVALID_FRAG
    inode = struct.pack(
        "<4H2I3Q4I", *(9, 0o644, 0, 0, 0, 77, 96, size, size, 1, nothing, 0, nothing)
    )
    head = inode + bytes(8192 - len(inode))
    words = 8192 // 4
    hole = zstandard.ZstdCompressor().compress(bytes(8192))
    chain = struct.pack("<H", 0x8000 | 8192) + head
    chain += (struct.pack("<H", len(hole)) + hole) * (blocks // words + 1)
    ids, _, inodes, directories = struct.unpack_from("<4Q", original, 48)
    with opened(original) as files:
        directory = files.inode(files.resolve(name.rpartition(b"/")[0]))
    data = bytearray(original)
    listing = directories + directory.start + 2 + directory.offset
    struct.pack_into("<I", data, listing + 4, directories - inodes)
    struct.pack_into("<H", data, listing + 12, 0)
    data[directories:directories] = chain
    for place in (40, 48, 72, 80, 88):  # size, owners, directories, fragments, exports
        (value,) = struct.unpack_from("<Q", data, place)
        if value != (1 << 64) - 1:
            struct.pack_into("<Q", data, place, value + len(chain))
    (index,) = struct.unpack_from("<Q", data, ids + len(chain))
    struct.pack_into("<Q", data, ids + len(chain), index + len(chain))
    return bytes(data)
