"""The structures and numbers of SquashFS 4.0, under the names that the kernel gives them.

Source: the kernel's fs/squashfs/squashfs_fs.h, without the prefixes `squashfs_` and `SQUASHFS_`,
and its Documentation/filesystems/squashfs.rst, which explains them. All numbers are little-endian.
"""

from __future__ import annotations

import stat
import struct

MAGIC = 0x73717368
METADATA_SIZE = 8192
"""Bytes of a metadata block when it is decompressed, at most."""
COMPRESSED_BIT = 1 << 15
"""In the size of a metadata block: the block is NOT compressed."""
COMPRESSED_BIT_BLOCK = 1 << 24
"""In the size of a data block or a fragment block: the block is NOT compressed."""
INVALID_BLK = 0xFFFF_FFFF_FFFF_FFFF
"""Place of a table that the image does not have."""
INVALID_FRAG = INVALID_XATTR = 0xFFFF_FFFF
"""Index of an inode that has no fragment, or no extended attributes."""
NAME_LEN = 256
"""Bytes of a name, at most."""
DIR_COUNT = 256
"""Entries behind one header of a directory, at most."""

COMPRESSIONS = {1: "gzip", 2: "lzma", 3: "lzo", 4: "xz", 5: "lz4", 6: "zstd"}
"""The superblock's numbers of the compressions, and the names that mksquashfs gives them."""

DIR, REG, SYMLINK, BLKDEV, CHRDEV, FIFO, SOCKET = range(1, 8)
LDIR, LREG, LSYMLINK, LBLKDEV, LCHRDEV, LFIFO, LSOCKET = range(8, 15)
"""The same kinds in longer inodes, which hold larger numbers and extended attributes."""

MODES = {
    DIR: stat.S_IFDIR,
    REG: stat.S_IFREG,
    SYMLINK: stat.S_IFLNK,
    BLKDEV: stat.S_IFBLK,
    CHRDEV: stat.S_IFCHR,
    FIFO: stat.S_IFIFO,
    SOCKET: stat.S_IFSOCK,
}
"""What `stat` calls the kinds."""

SUPER_BLOCK = struct.Struct("<5I6H8Q")
"""s_magic, inodes, mkfs_time, block_size, fragments; compression, block_log, flags, no_ids,
s_major, s_minor; root_inode, bytes_used, and the starts of the tables: id, xattr_id, inode,
directory, fragment, lookup."""

BASE_INODE = struct.Struct("<4H2I")
"""inode_type, mode, uid, guid, mtime, inode_number: the beginning of each inode."""
REG_INODE = struct.Struct("<4I")
"""start_block, fragment, offset, file_size; the block_list follows."""
LREG_INODE = struct.Struct("<3Q4I")
"""start_block, file_size, sparse, nlink, fragment, offset, xattr; the block_list follows."""
DIR_INODE = struct.Struct("<2I2HI")
"""start_block, nlink, file_size, offset, parent_inode."""
LDIR_INODE = struct.Struct("<4I2HI")
"""nlink, file_size, start_block, parent_inode, i_count, offset, xattr; the index follows."""
SYMLINK_INODE = struct.Struct("<2I")
"""nlink, symlink_size; the target follows, and behind that the xattr of a LSYMLINK."""
DEV_INODE = struct.Struct("<2I")
"""nlink, rdev; the xattr of a LBLKDEV or LCHRDEV follows."""
IPC_INODE = struct.Struct("<I")
"""nlink; the xattr of a LFIFO or LSOCKET follows."""
WORD = struct.Struct("<I")
"""An `xattr` that follows an inode, an entry of a block_list, or the size of an attribute."""

DIR_HEADER = struct.Struct("<3I")
"""count, start_block, inode_number."""
DIR_ENTRY = struct.Struct("<HhHH")
"""offset, inode_number, type, size; the name follows."""
DIR_INDEX = struct.Struct("<3I")
"""index, start_block, size; the name follows."""

FRAGMENT_ENTRY = struct.Struct("<QII")
"""start_block, size, unused."""
ID_ENTRY = struct.Struct("<I")
"""A user or a group."""
XATTR_ID_TABLE = struct.Struct("<QII")
"""xattr_table_start, xattr_ids, unused; the places of the table's blocks follow."""
XATTR_ID = struct.Struct("<QII")
"""xattr, count, size."""
XATTR_ENTRY = struct.Struct("<HH")
"""type, size; the name follows, and then the value with its size."""
XATTR_VALUE_OOL = 0x100
"""In the type of an attribute: instead of the value stands the place of it."""
XATTR_PREFIXES = (b"user.", b"trusted.", b"security.")
"""What the names of the attributes begin with, by their types."""
