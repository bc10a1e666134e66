"""What an image is called in terms of an operating system: errno, `stat`, `statvfs`, `access`.

The answers are those of the kernel's own squashfs. Only this module knows errno numbers of
failures.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from condainer.squashfs.errors import NotFoundError, WrongKindError
from condainer.squashfs.inodes import LREG_SIZE
from condainer.squashfs.structures import (
    BLKDEV,
    CHRDEV,
    DIR,
    INVALID_XATTR,
    REG,
    SYMLINK,
    XATTR_PREFIXES,
)

if TYPE_CHECKING:
    from condainer.squashfs import FileSystem, Inode

BLKSIZE = 1024
"""`st_blksize`, as the kernel's own squashfs gives it."""

NAME_MAX = 256
"""The longest name, in bytes."""


_ANSWERS = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ENODATA, errno.EOPNOTSUPP),
    *(errno.ENAMETOOLONG, errno.ENOSYS),
}
"""These are no failures: each is an answer to the question."""


def is_failure(error: Exception) -> bool:
    """Whether an error says that something is wrong, here or with the image.

    Args:
        error: that a request has raised.
    """
    return number_of(error) not in _ANSWERS


def number_of(error: Exception) -> int:
    """The errno of an error; EIO for one that nobody has foreseen.

    Args:
        error: that a request has raised.
    """
    if isinstance(error, NotFoundError):
        return errno.ENOENT
    if isinstance(error, WrongKindError):
        return errno.ENOTDIR
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    return errno.EIO


def blocks(files: FileSystem, inode: Inode) -> int:
    """`st_blocks`: units of 512 bytes, as the kernel's own squashfs counts them.

    The content without its holes, as if it were not compressed, and extended attributes.

    Args:
        files: the image.
        inode: any of it.
    """
    count = max(inode.size - inode.sparse, 0) + 511 >> 9 if inode.kind == REG else 0
    return (
        count
        if inode.xattr == INVALID_XATTR
        else count + (files.image.xattrs.size(inode) + 511 >> 9)
    )


def device(inode: Inode) -> int:
    """`st_rdev`: major and minor number of a device, as the kernel encodes both in 32 bits.

    Args:
        inode: any; 0 for what is no device.
    """
    return inode.start if inode.kind in {BLKDEV, CHRDEV} else 0


def totals(files: FileSystem) -> tuple[int, int, int]:
    """For `statfs`: the size of a block in bytes, the number of blocks, and that of inodes.

    Args:
        files: the image.
    """
    superblock = files.image.superblock
    size = superblock.block_size
    return size, -(-superblock.bytes_used // size), superblock.inodes


def xattr(files: FileSystem, inode: Inode, name: bytes) -> bytes:
    """The value of an extended attribute.

    Args:
        files: the image.
        inode: any of it.
        name: of the attribute, such as `user.mime_type`.

    Raises:
        OSError: If there is none (ENODATA), or no image can have it (EOPNOTSUPP).
    """
    if not name.startswith(XATTR_PREFIXES):
        raise OSError(errno.EOPNOTSUPP, "no such kind of extended attributes")
    value = files.image.xattrs.of(inode).get(name)
    if value is None:
        raise OSError(errno.ENODATA, "no such attribute")
    return value


def xattr_names(files: FileSystem, inode: Inode) -> list[bytes]:
    """The names of an inode's extended attributes.

    Args:
        files: the image.
        inode: any of it.

    Raises:
        OSError: If the kernel's own squashfs says EOPNOTSUPP: for directories, links and long
            inodes of files, in an image that has no attributes at all.
    """
    is_long = inode.kind in {DIR, SYMLINK} or inode.fixed == LREG_SIZE
    if is_long and not files.image.xattrs.is_there:
        raise OSError(errno.EOPNOTSUPP, "no extended attributes")
    return list(files.image.xattrs.of(inode))


def check_access(inode: Inode, mask: int) -> None:
    """Answer access(2). The kernel asks, although it decides on its own later.

    Whoever may use the mount may read everything in it, and execute what anybody may.

    Args:
        inode: any of the image.
        mask: what is asked for, as R_OK and X_OK.

    Raises:
        OSError: If nobody can execute it (EACCES).
    """
    if mask & os.X_OK and inode.kind != DIR and not inode.mode & 0o111:
        raise OSError(errno.EACCES, "nobody can execute it")


def check_name(name: bytes) -> None:
    """See that a name is one that an image can hold.

    Args:
        name: that is looked up.

    Raises:
        OSError: If it is too long (ENAMETOOLONG).
    """
    if len(name) > NAME_MAX:
        raise OSError(errno.ENAMETOOLONG, "no name is so long")
