"""The opcodes, structures and flags of the kernel's FUSE protocol that `kernel` speaks.

Source: the kernel's include/uapi/linux/fuse.h. The names are those of that file, without `FUSE_`
and `fuse_`. Numbers are in the machine's own order there; condainer runs on little-endian machines
only.
"""

from __future__ import annotations

import struct

KERNEL_VERSION, KERNEL_MINOR_VERSION = 7, 31
"""The version that is spoken: that of Linux 5.4."""
LEAST_MINOR_VERSION = 12
"""That of Linux 2.6.31: before it, structures are shorter."""
COMPAT_22_MINOR_VERSION, COMPAT_22_INIT_OUT_SIZE = 22, 24
"""The last minor version that takes a shorter answer to INIT, and how short."""
ROOT_ID = 1

LOOKUP, FORGET, GETATTR, READLINK, OPEN, READ, STATFS, RELEASE = 1, 2, 3, 5, 14, 15, 17, 18
GETXATTR, LISTXATTR, FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR = 22, 23, 25, 26, 27, 28, 29
ACCESS, INTERRUPT, DESTROY, IOCTL, BATCH_FORGET, READDIRPLUS = 34, 36, 38, 39, 42, 44

OF_OPEN_FILES = frozenset((READ, RELEASE, FLUSH, READDIR, RELEASEDIR, READDIRPLUS))
"""Requests of open files. Whoever asks may have been passed the file, or have given up rights since
it was opened."""

IN_HEADER = struct.Struct("<IIQQ")
"""len, opcode, unique, nodeid."""
IN_HEADER_SIZE = 40
"""Bytes of the whole header; after those above come uid, gid, pid."""
IN_HEADER_UID = struct.Struct("<24xI")
OUT_HEADER = struct.Struct("<IiQ")
"""len, error, unique."""
_ATTR = "6Q10I"
"""ino, size, blocks, atime, mtime, ctime, the nanoseconds of these three, mode, nlink, uid, gid,
rdev, blksize, padding."""
ATTR_OUT = struct.Struct(f"<QII{_ATTR}")
"""attr_valid in seconds and nanoseconds, padding, attr."""
ENTRY_OUT = struct.Struct(f"<4Q2I{_ATTR}")
"""nodeid, generation, entry_valid and attr_valid in seconds, both in nanoseconds, attr."""
READ_IN = struct.Struct("<QQI")
"""fh, offset, size."""
OPEN_OUT = struct.Struct("<QI4x")
"""fh, open_flags."""
DIRENT = struct.Struct("<QQII")
"""ino, off, namelen, type; the name follows, up to a multiple of 8 bytes."""
INIT_IN = struct.Struct("<4I")
"""major, minor, max_readahead, flags."""
INIT_OUT = struct.Struct("<4I2H2I2H32x")
"""Those of INIT_IN, max_background, congestion_threshold, max_write, time_gran, max_pages,
map_alignment."""
STATFS_OUT = struct.Struct("<5Q3I28x")
"""blocks, bfree, bavail, files, ffree, bsize, namelen, frsize."""
GETXATTR_IN = GETXATTR_OUT = struct.Struct("<II")
"""size, padding."""
ACCESS_IN = struct.Struct("<I")
"""mask."""

FOPEN_KEEP_CACHE = 2
ASYNC_READ, DO_READDIRPLUS, READDIRPLUS_AUTO = 1, 1 << 13, 1 << 14
NO_OPEN_SUPPORT, PARALLEL_DIROPS, MAX_PAGES = 1 << 17, 1 << 18, 1 << 22
CACHE_SYMLINKS, NO_OPENDIR_SUPPORT = 1 << 23, 1 << 24
