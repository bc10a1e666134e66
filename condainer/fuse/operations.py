"""What the file system's answers are called where an operating system asks: errno, `stat`, names.

The only room here that knows errno. `Operations` is the interface of fusepy and mfusepy, for
machines where the kernel's protocol cannot be spoken directly; `kernel` uses the functions.
"""

from __future__ import annotations

import errno
import functools
import os
from typing import TYPE_CHECKING, TypeVar

from condainer.fuse.log import Log
from condainer.squashfs.image import (
    BLOCK,
    CHARACTER,
    DIRECTORY,
    LINK,
    LONG_REGULAR_FIXED,
    MODES,
    NOTHING,
    REGULAR,
    XATTR_PREFIXES,
)
from condainer.squashfs.vfs import NotFoundError, WrongKindError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import ParamSpec

    from condainer.squashfs.image import Inode
    from condainer.squashfs.vfs import FileSystem

    _P = ParamSpec("_P")

_T = TypeVar("_T")

_log = Log()

BLKSIZE = 1024
"""`st_blksize`, as the kernel's own squashfs gives it."""

NAME_MAX = 256
"""The longest name, in bytes."""


_ANSWERS = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ENODATA, errno.EOPNOTSUPP),
    *(errno.ENAMETOOLONG, errno.ENOSYS),
}
"""What is no failure, but an answer to what was asked."""


def is_failure(error: Exception) -> bool:
    """Whether what was raised says that something is wrong, here or with the image."""
    return number_of(error) not in _ANSWERS


def number_of(error: Exception) -> int:
    """The errno of what a request has raised; EIO for what nobody has foreseen."""
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
    """
    count = max(inode.size - inode.sparse, 0) + 511 >> 9 if inode.kind == REGULAR else 0
    return count if inode.xattr == NOTHING else count + (files.image.xattr_size(inode) + 511 >> 9)


def device(inode: Inode) -> int:
    """`st_rdev`: major and minor number of a device, as the kernel encodes both in 32 bits."""
    return inode.start if inode.kind in {BLOCK, CHARACTER} else 0


def totals(files: FileSystem) -> tuple[int, int, int]:
    """For `statfs`: the size of a block in bytes, how many there are, and how many inodes."""
    size = files.image.block_size
    return size, -(-files.image.bytes_used // size), files.image.inodes


def xattr(files: FileSystem, inode: Inode, name: bytes) -> bytes:
    """The value of an extended attribute.

    Raises:
        OSError: ENODATA where there is none, EOPNOTSUPP where no inode of an image can have it.
    """
    if not name.startswith(XATTR_PREFIXES):
        raise OSError(errno.EOPNOTSUPP, "no such kind of extended attributes")
    value = files.image.xattrs(inode).get(name)
    if value is None:
        raise OSError(errno.ENODATA, "no such attribute")
    return value


def xattr_names(files: FileSystem, inode: Inode) -> list[bytes]:
    """The names of an inode's extended attributes.

    Raises:
        OSError: EOPNOTSUPP where the kernel's own squashfs answers so: for directories, links and
            long inodes of files in an image that has none at all.
    """
    is_long = inode.kind in {DIRECTORY, LINK} or inode.fixed == LONG_REGULAR_FIXED
    if is_long and not files.image.has_xattrs:
        raise OSError(errno.EOPNOTSUPP, "no extended attributes")
    return list(files.image.xattrs(inode))


def check_access(inode: Inode, mask: int) -> None:
    """Answer `access(2)`, which the kernel asks about here although it decides on its own later.

    Whoever may use the mount may read everything in it, and execute what anybody may.

    Raises:
        OSError: EACCES for what nobody can execute, as the kernel has it then.
    """
    if mask & os.X_OK and inode.kind != DIRECTORY and not inode.mode & 0o111:
        raise OSError(errno.EACCES, "nobody can execute it")


def check_name(name: bytes) -> None:
    """See that a name is none that cannot be in an image.

    Raises:
        OSError: ENAMETOOLONG where it is.
    """
    if len(name) > NAME_MAX:
        raise OSError(errno.ENAMETOOLONG, "no name is so long")


def text(name: bytes) -> str:
    """Any bytes as the bindings take them, which must not meet what is no character."""
    return name.decode(ENCODING)


ENCODING = "latin-1"


def _answers(method: Callable[_P, _T]) -> Callable[_P, _T]:
    """Raises errors as the bindings know them."""

    @functools.wraps(method)
    def answer(*arguments: _P.args, **named: _P.kwargs) -> _T:
        try:
            return method(*arguments, **named)
        except Exception as error:
            if is_failure(error):
                _log.failed(method.__name__, error)
            raise OSError(number_of(error), method.__name__) from error

    return answer


class Operations:
    """What fusepy and mfusepy call, by path; both ask for no base class.

    Paths and names are texts in `ENCODING`.

    Args:
        files: what is served.
        uid: owner of everything; None where the image says so.
        gid: the same for the group.
        on_ready: called once the mount is live.
    """

    use_ns = True

    def __init__(
        self, files: FileSystem, uid: int | None, gid: int | None, on_ready: Callable[[], None]
    ) -> None:
        self._files = files
        self._uid, self._gid = uid, gid
        self._on_ready = on_ready

    def __call__(self, operation: str, *arguments: object) -> object:
        """Run an operation by its name, as fusepy does.

        Raises:
            OSError: with the errno that the caller gets.
        """
        method = getattr(self, operation, None)
        if method is None:
            raise OSError(errno.ENOSYS, "no such operation")
        return method(*arguments)

    def _inode(self, path: str) -> Inode:
        name = path.encode(ENCODING)
        check_name(name.rpartition(b"/")[2])
        return self._files.inode(self._files.resolve(name))

    @_answers
    def init(self, _path: str) -> None:
        """The kernel has agreed to the protocol."""
        self._on_ready()

    @_answers
    def getattr(self, path: str, _handle: object = None) -> dict[str, int]:
        """`stat`."""
        inode = self._inode(path)
        times = dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), inode.mtime * 10**9)
        return {
            **times,
            "st_ino": inode.number,
            "st_mode": inode.mode,
            "st_nlink": inode.links,
            "st_size": inode.size,
            "st_blocks": blocks(self._files, inode),
            "st_blksize": BLKSIZE,
            "st_uid": inode.uid if self._uid is None else self._uid,
            "st_gid": inode.gid if self._gid is None else self._gid,
            "st_rdev": device(inode),
        }

    @_answers
    def access(self, path: str, mode: int) -> int:
        """`access`."""
        check_access(self._inode(path), mode)
        return 0

    @_answers
    def readlink(self, path: str) -> str:
        """What a symbolic link points to."""
        return text(self._files.target(self._inode(path)))

    @_answers
    def readdir(self, path: str, _handle: object) -> list[tuple[str, dict[str, int], int]]:
        """The names in a directory, with what is known of their inodes, and no places."""
        inode = self._inode(path)
        dots = ((".", inode.number, DIRECTORY), ("..", inode.parent, DIRECTORY))
        entries = (entry for _, entry in self._files.listing(inode.ref))
        names = ((text(entry.name), entry.number, entry.kind) for entry in entries)
        return [
            (name, {"st_ino": number, "st_mode": MODES[kind]}, 0)
            for name, number, kind in (*dots, *names)
        ]

    @_answers
    def read(self, path: str, size: int, offset: int, _handle: object) -> bytes:
        """A range of a file's content."""
        return b"".join(self._files.read(self._inode(path), offset, size))

    @_answers
    def statfs(self, _path: str) -> dict[str, int]:
        """Of the whole file system."""
        size, count, inodes = totals(self._files)
        sizes = {"f_bsize": size, "f_frsize": size, "f_blocks": count}
        return {**sizes, "f_files": inodes, "f_namemax": NAME_MAX}

    @_answers
    def getxattr(self, path: str, name: str, _position: int = 0) -> bytes:
        """The value of an extended attribute."""
        return xattr(self._files, self._inode(path), name.encode(ENCODING))

    @_answers
    def listxattr(self, path: str) -> list[str]:
        """The names of extended attributes."""
        return [text(name) for name in xattr_names(self._files, self._inode(path))]
