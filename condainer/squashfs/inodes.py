"""Inodes: everything about a file but its name and its contents.

An inode is known by its reference, a number of 48 bits: where its metadata block begins in the
inode table (32 bits), and where in that block, once decompressed, it begins (16 bits). Source: the
structures `squashfs_*_inode` in the kernel's fs/squashfs/squashfs_fs.h.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from condainer.squashfs.errors import FormatError
from condainer.squashfs.structures import (
    BASE_INODE,
    BLKDEV,
    CHRDEV,
    COMPRESSED_BIT_BLOCK,
    DEV_INODE,
    DIR,
    DIR_INODE,
    FIFO,
    ID_ENTRY,
    INVALID_FRAG,
    INVALID_XATTR,
    IPC_INODE,
    LBLKDEV,
    LCHRDEV,
    LDIR,
    LDIR_INODE,
    LFIFO,
    LREG,
    LREG_INODE,
    LSOCKET,
    LSYMLINK,
    METADATA_SIZE,
    MODES,
    REG,
    REG_INODE,
    SOCKET,
    SYMLINK,
    SYMLINK_INODE,
    WORD,
)
from condainer.squashfs.tables import Chain, Location, Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from condainer.squashfs.blocks import BlockReader

    _Base = tuple[int, int, int, int, int, int, int]
    """The first fields of an Inode, which all kinds have."""
    _Parser = Callable[[_Base, bytes, int], "Inode"]

LREG_SIZE = BASE_INODE.size + LREG_INODE.size
"""Bytes before the block_list of a LREG: no inode has a longer fixed part."""
_REG_SIZE = BASE_INODE.size + REG_INODE.size
_LONGEST_TARGET = 65536
_NO_WORDS = bytes(METADATA_SIZE)
_UNREAD = -1
"""Stands for the `xattr` of a LSYMLINK until it is read from behind the target."""


class Inode(NamedTuple):
    """One inode, whatever its kind.

    Attributes:
        ref: its reference.
        kind: DIR, REG and so on, never one of those that begin with L.
        mode: permissions and kind, as `stat` gives them.
        uid: owner.
        gid: group.
        mtime: seconds since 1970, not signed.
        number: of the inode.
        links: how many names it has.
        size: bytes of the content, of a directory's listing, or of a link's target.
        fixed: bytes of the inode before its list of blocks, its target, or its index.
        start: of a file: where its first block lies; of a directory: where its metadata block
            begins in the directory table; of a device: its number as the kernel encodes it.
        fragment: index of the fragment that holds the end of the file, or INVALID_FRAG.
        offset: where in that fragment, or in the directory's metadata block, it begins.
        xattr: index of its extended attributes, or INVALID_XATTR.
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
    fragment: int = INVALID_FRAG
    offset: int = 0
    xattr: int = INVALID_XATTR
    sparse: int = 0
    parent: int = 0
    indexes: int = 0


class InodeTable:
    """The inodes of an image.

    Args:
        blocks: of the image.

    Raises:
        FormatError: If the table of owners is damaged.
    """

    def __init__(self, blocks: BlockReader) -> None:
        superblock = blocks.superblock
        self._start = superblock.inode_table_start
        self._end = superblock.directory_table_start
        self._chain = Chain(blocks)
        self._block = blocks.metadata
        owners = Table(blocks, superblock.id_table_start, superblock.no_ids, ID_ENTRY)
        self._ids = tuple(owners.entry(number)[0] for number in range(superblock.no_ids))

    def read(self, ref: int) -> Inode:
        """Read an inode.

        Args:
            ref: its reference.

        Raises:
            FormatError: If there is none, or it is damaged.
        """
        position = self._start + (ref >> 16)
        if position >= self._end:
            raise FormatError("an inode lies outside of its table")
        offset = ref & 0xFFFF
        data, after = self._block(position)
        if len(data) - offset < LREG_SIZE and after < self._end:
            data += self._block(after)[0]
        try:
            kind, mode, uid, gid, mtime, number = BASE_INODE.unpack_from(data, offset)
            base, parse = _PARSERS[kind]
            mode = mode & 0o7777 | MODES[base]
            common = ref, base, mode, self._ids[uid], self._ids[gid], mtime, number
            inode = parse(common, data, offset + BASE_INODE.size)
        except (struct.error, LookupError) as error:
            raise FormatError("an inode is damaged") from error
        return self._with_xattr(inode) if inode.xattr == _UNREAD else inode

    def _with_xattr(self, inode: Inode) -> Inode:
        data = self._rest(inode, _target_size(inode) + WORD.size)
        return inode._replace(xattr=WORD.unpack(data[-WORD.size :])[0])

    def behind(self, inode: Inode) -> Location:
        """Where an inode's list of blocks, its target or its index begins.

        Args:
            inode: any of this image.
        """
        return self._start + (inode.ref >> 16), (inode.ref & 0xFFFF) + inode.fixed

    def _rest(self, inode: Inode, length: int) -> bytes:
        """Bytes of the table that follow the fixed part of an inode."""
        return self._chain.take(*self._chain.skip(*self.behind(inode)), length)

    def target(self, inode: Inode) -> bytes:
        """What a symbolic link points to.

        Args:
            inode: of the link.

        Raises:
            FormatError: If it is damaged.
        """
        return self._rest(inode, _target_size(inode))

    def block_list(self, location: Location, count: int) -> tuple[tuple[int, ...], Location]:
        """A part of a file's list of blocks.

        Args:
            location: of the first entry wanted.
            count: how many entries; the caller sees to it that these are few.

        Returns:
            the sizes on disk with COMPRESSED_BIT_BLOCK, and where the next entry is.

        Raises:
            FormatError: If the inode table is damaged or ends before.
        """
        position, offset = self._chain.skip(*location)
        data = self._chain.take(position, offset, WORD.size * count)
        return struct.unpack(f"<{count}I", data), (position, offset + len(data))

    def skip_blocks(self, location: Location, count: int) -> tuple[int, Location]:
        """Go past a part of a file's list of blocks.

        Args:
            location: of the first entry.
            count: how many entries.

        Returns:
            the bytes on disk of all their blocks, and where the next entry is.

        Raises:
            FormatError: If the inode table is damaged or ends before.
        """
        position, offset = self._chain.skip(*location)
        data = self._chain.take(position, offset, WORD.size * count)
        size = 0
        if data != _NO_WORDS[: len(data)]:  # else nothing but a hole
            # The mark of an entry is in its highest byte. A larger one there is not possible.
            marks = data[3::4].count(COMPRESSED_BIT_BLOCK >> 24)
            size = sum(struct.unpack(f"<{count}I", data)) - COMPRESSED_BIT_BLOCK * marks
        return size, (position, offset + len(data))


def _target_size(inode: Inode) -> int:
    if inode.size > _LONGEST_TARGET:
        raise FormatError("a symbolic link is too long")
    return inode.size


def _reg(base: _Base, data: bytes, place: int) -> Inode:
    start, fragment, offset, size = REG_INODE.unpack_from(data, place)
    return Inode(*base, 1, size, _REG_SIZE, start, fragment, offset)


def _lreg(base: _Base, data: bytes, place: int) -> Inode:
    start, size, sparse, links, fragment, offset, xattr = LREG_INODE.unpack_from(data, place)
    return Inode(*base, links, size, LREG_SIZE, start, fragment, offset, xattr, sparse)


def _dir(base: _Base, data: bytes, place: int) -> Inode:
    start, links, size, offset, parent = DIR_INODE.unpack_from(data, place)
    fixed = BASE_INODE.size + DIR_INODE.size
    return Inode(*base, links, size, fixed, start, offset=offset, parent=parent)


def _ldir(base: _Base, data: bytes, place: int) -> Inode:
    links, size, start, parent, indexes, offset, xattr = LDIR_INODE.unpack_from(data, place)
    fixed = BASE_INODE.size + LDIR_INODE.size
    return Inode(*base, links, size, fixed, start, INVALID_FRAG, offset, xattr, 0, parent, indexes)


def _symlink(base: _Base, data: bytes, place: int) -> Inode:
    links, size = SYMLINK_INODE.unpack_from(data, place)
    return Inode(*base, links, size, BASE_INODE.size + SYMLINK_INODE.size)


def _lsymlink(base: _Base, data: bytes, place: int) -> Inode:
    return _symlink(base, data, place)._replace(xattr=_UNREAD)


def _dev(base: _Base, data: bytes, place: int) -> Inode:
    links, rdev = DEV_INODE.unpack_from(data, place)
    return Inode(*base, links, 0, 0, rdev)


def _ldev(base: _Base, data: bytes, place: int) -> Inode:
    (xattr,) = WORD.unpack_from(data, place + DEV_INODE.size)
    return _dev(base, data, place)._replace(xattr=xattr)


def _ipc(base: _Base, data: bytes, place: int) -> Inode:
    (links,) = IPC_INODE.unpack_from(data, place)
    return Inode(*base, links, 0, 0)


def _lipc(base: _Base, data: bytes, place: int) -> Inode:
    (xattr,) = WORD.unpack_from(data, place + IPC_INODE.size)
    return _ipc(base, data, place)._replace(xattr=xattr)


_PARSERS: dict[int, tuple[int, _Parser]] = {
    REG: (REG, _reg),
    DIR: (DIR, _dir),
    SYMLINK: (SYMLINK, _symlink),
    BLKDEV: (BLKDEV, _dev),
    CHRDEV: (CHRDEV, _dev),
    FIFO: (FIFO, _ipc),
    SOCKET: (SOCKET, _ipc),
    LREG: (REG, _lreg),
    LDIR: (DIR, _ldir),
    LSYMLINK: (SYMLINK, _lsymlink),
    LBLKDEV: (BLKDEV, _ldev),
    LCHRDEV: (CHRDEV, _ldev),
    LFIFO: (FIFO, _lipc),
    LSOCKET: (SOCKET, _lipc),
}
