"""The superblock: the first 96 bytes of an image, which say what it is and where its tables are.

This is the only place that reads a superblock, and whatever it returns has been checked against the
file. Source: `struct squashfs_super_block` in the kernel's fs/squashfs/squashfs_fs.h.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from condainer.squashfs.errors import FormatError
from condainer.squashfs.structures import COMPRESSIONS, INVALID_BLK, MAGIC, SUPER_BLOCK

_MIN_BLOCK_LOG, _MAX_BLOCK_LOG = 12, 20
"""Blocks have 4 KiB to 1 MiB."""


class Superblock(NamedTuple):
    """The head of an image.

    Attributes:
        inodes: number of files, directories, links and so on.
        mkfs_time: when the image was made, in seconds since 1970.
        block_size: bytes of a data block.
        compression: name of the compression, as mksquashfs has it.
        fragments: entries of the table of fragments.
        no_ids: entries of the table of users and groups.
        root_inode: reference of the root directory's inode.
        bytes_used: bytes of the file that belong to the image.
        id_table_start: place of a table in the image, in bytes; the same for those below.
        xattr_id_table_start: INVALID_BLK if the image has no extended attributes.
        inode_table_start: the inodes.
        directory_table_start: the listings of the directories.
        fragment_table_start: where the blocks lie that hold the ends of files.
    """

    inodes: int
    mkfs_time: int
    block_size: int
    compression: str
    fragments: int
    no_ids: int
    root_inode: int
    bytes_used: int
    id_table_start: int
    xattr_id_table_start: int
    inode_table_start: int
    directory_table_start: int
    fragment_table_start: int


def has_magic(descriptor: int, offset: int = 0) -> bool:
    """Whether a file begins as an image does, be it whole or not.

    Args:
        descriptor: of the file.
        offset: bytes of the file before the image.

    Raises:
        OSError: If the file cannot be read.
    """
    return os.pread(descriptor, 4, offset) == MAGIC.to_bytes(4, "little")


def read_superblock(descriptor: int, offset: int = 0) -> Superblock:
    """Read the superblock of an image and compare it with the file.

    Args:
        descriptor: of the file.
        offset: bytes of the file before the image.

    Raises:
        FormatError: If the file is no SquashFS 4.0 image, or shorter than its superblock says.
        OSError: If the file cannot be read.
    """
    data = os.pread(descriptor, SUPER_BLOCK.size, offset)
    if len(data) < SUPER_BLOCK.size or not has_magic(descriptor, offset):
        raise FormatError("it is not a squashfs image")
    fields = SUPER_BLOCK.unpack(data)
    _, inodes, made, block_size, fragments, compression, block_log, _, no_ids = fields[:9]
    major, minor, root, bytes_used = fields[9:13]
    if (major, minor) != (4, 0):
        raise FormatError(f"it is squashfs {major}.{minor}; only 4.0 can be read")
    size = os.lseek(descriptor, 0, os.SEEK_END) - offset
    if bytes_used > size:
        raise FormatError(f"it is truncated: it has {size} of {bytes_used} bytes")
    if not _MIN_BLOCK_LOG <= block_log <= _MAX_BLOCK_LOG or block_size != 1 << block_log:
        raise FormatError("its superblock is damaged: no block has that size")
    if compression not in COMPRESSIONS or not inodes:
        raise FormatError("its superblock is damaged: no image has such numbers")
    _check_tables(fields[13:], bytes_used)
    head = inodes, made, block_size, COMPRESSIONS[compression], fragments, no_ids, root
    return Superblock(*head, bytes_used, *fields[13:18])


def _check_tables(starts: tuple[int, ...], bytes_used: int) -> None:
    ids, _, inodes, directories, _, _ = starts
    there = [start for start in starts if start != INVALID_BLK]
    if any(not SUPER_BLOCK.size <= start < bytes_used for start in there):
        raise FormatError("its superblock is damaged: a table lies outside of the image")
    if INVALID_BLK in {ids, inodes, directories} or not inodes < directories:
        raise FormatError("its superblock is damaged: its tables are out of order")
