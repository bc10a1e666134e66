"""A directory as FUSE shows it: the kernel's requests come in, what the directory says goes out.

Only what reading takes; nothing is remembered between requests but names and what is open, so that
each one is passed on. When an answer may leave, and what is counted, is the business of `layer`.

The protocol is that of the kernel's include/uapi/linux/fuse.h, minor version 31, as
`condainer.fuse.kernel` speaks it; that one serves images, which have neither handles nor ends of
validity, and is to start fast, so that the two share nothing but where a descriptor comes from.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

KINDS = {
    1: "lookup",
    3: "getattr",
    5: "readlink",
    14: "open",
    15: "read",
    17: "statfs",
    18: "release",
    20: "fsync",
    22: "getxattr",
    23: "listxattr",
    25: "flush",
    26: "init",
    27: "opendir",
    28: "readdir",
    29: "releasedir",
    34: "access",
    39: "ioctl",
}
"""What the kernel's requests are called, by number."""

REQUEST = 1 << 16
"""Bytes to read at once: more than the longest request."""

_MAJOR, _MINOR = 7, 31
_UNANSWERED = {2, 36, 42}
"""FORGET, INTERRUPT and BATCH_FORGET."""
_HEADER = 40
_ROOT = 1
_FOREVER = 1 << 31
_IN = struct.Struct("<IIQQ")
_OUT = struct.Struct("<IiQ")
_ATTRIBUTES = "6Q10I"
_ENTRY = struct.Struct(f"<4Q2I{_ATTRIBUTES}")
_ATTR = struct.Struct(f"<QII{_ATTRIBUTES}")
_READ = struct.Struct("<QQI")
_HANDLE = struct.Struct("<Q")
_OPEN_OUT = struct.Struct("<QI4x")
_DIRENT = struct.Struct("<QQII")
_INIT_IN = struct.Struct("<4I")
_INIT_OUT = struct.Struct("<4I2H2I2H32x")
_STATFS = struct.Struct("<5Q3I28x")

_ASYNC_READ, _PARALLEL_DIROPS, _MAX_PAGES, _CACHE_SYMLINKS = 1, 1 << 18, 1 << 22, 1 << 23
_WANTED = _ASYNC_READ | _PARALLEL_DIROPS | _MAX_PAGES | _CACHE_SYMLINKS
_MOST_PAGES = 256
_BACKGROUND = 64
_KEEP_CACHE = 2


@dataclass(frozen=True)
class Answer:
    """What goes back to the kernel.

    Attributes:
        kind: of the request.
        pieces: what is to be written; nothing where the kernel awaits no answer.
        size: bytes of a file's content in it.
        is_further: whether it goes on with a listing that was begun.
    """

    kind: str
    pieces: tuple[bytes, ...]
    size: int = 0
    is_further: bool = False


class Passthrough:
    """Answers requests from a directory that does not change meanwhile.

    Args:
        directory: what is shown.
        keep: seconds for which the kernel may keep names and attributes; negative for ever.
    """

    def __init__(self, directory: str, keep: float = -1.0) -> None:
        self._paths = [b"", os.fsencode(os.path.realpath(directory))]
        self._nodes = {self._paths[_ROOT]: _ROOT}
        self._listings: dict[int, list[tuple[bytes, int, int]]] = {}
        self._opened = 0
        seconds, fraction = divmod(keep, 1)
        whole = (_FOREVER, 0) if keep < 0 else (int(seconds), int(fraction * 10**9))
        self._seconds, self._nanoseconds = whole
        self._handlers: dict[str, Callable[[int, bytes], bytes]] = {
            "init": self._init,
            "lookup": self._lookup,
            "getattr": self._getattr,
            "readlink": self._readlink,
            "open": self._open,
            "read": self._read,
            "release": self._release,
            "opendir": self._opendir,
            "readdir": self._readdir,
            "releasedir": self._releasedir,
            "statfs": self._statfs,
            "ioctl": self._ioctl,
        }

    def answer(self, request: bytes) -> Answer | None:
        """Pass a request on; None where the kernel awaits no answer."""
        _, number, unique, node = _IN.unpack_from(request)
        if number in _UNANSWERED:
            return None
        kind = KINDS.get(number, str(number))
        try:
            body = self._handlers.get(kind, _refuse)(node, request)
        except OSError as error:
            head = _OUT.pack(_OUT.size, -(error.errno or errno.EIO), unique)
            return Answer(kind, (head,))
        head = _OUT.pack(_OUT.size + len(body), 0, unique)
        if kind == "readdir":
            return Answer(kind, (head, body), is_further=_READ.unpack_from(request, _HEADER)[1] > 0)
        return Answer(kind, (head, body), len(body) if kind == "read" else 0)

    def _init(self, _node: int, request: bytes) -> bytes:
        major, minor, readahead, flags = _INIT_IN.unpack_from(request, _HEADER)
        if major != _MAJOR or minor < _MINOR:
            raise OSError(errno.EPROTO, "an older kernel")
        numbers = (_MAJOR, _MINOR, readahead, flags & _WANTED, _BACKGROUND, _BACKGROUND)
        return _INIT_OUT.pack(*numbers, 4096, 1, _MOST_PAGES, 0)

    def _lookup(self, node: int, request: bytes) -> bytes:
        path = self._paths[node] + b"/" + request[_HEADER:-1]
        validity = (self._seconds, self._seconds, self._nanoseconds, self._nanoseconds)
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return _ENTRY.pack(0, 0, *validity, *[0] * 16)  # remembered, too
        found = self._nodes.setdefault(path, len(self._paths))
        if found == len(self._paths):
            self._paths.append(path)
        return _ENTRY.pack(found, 0, *validity, *_attributes(status))

    def _getattr(self, node: int, _request: bytes) -> bytes:
        status = os.lstat(self._paths[node])
        return _ATTR.pack(self._seconds, self._nanoseconds, 0, *_attributes(status))

    def _readlink(self, node: int, _request: bytes) -> bytes:
        return os.readlink(self._paths[node])  # noqa: PTH115  (paths are bytes)

    def _open(self, node: int, request: bytes) -> bytes:
        (flags,) = struct.unpack_from("<I", request, _HEADER)
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, "read-only")
        return _OPEN_OUT.pack(os.open(self._paths[node], os.O_RDONLY | os.O_CLOEXEC), _KEEP_CACHE)

    def _read(self, _node: int, request: bytes) -> bytes:
        descriptor, offset, size = _READ.unpack_from(request, _HEADER)
        return os.pread(descriptor, size, offset)

    def _release(self, _node: int, request: bytes) -> bytes:
        os.close(_HANDLE.unpack_from(request, _HEADER)[0])
        return b""

    def _opendir(self, node: int, _request: bytes) -> bytes:
        path = self._paths[node]
        dots = [(b".", os.lstat(path).st_ino, stat.S_IFDIR), (b"..", 1, stat.S_IFDIR)]
        with os.scandir(path) as entries:
            listing = [(entry.name, entry.inode(), _kind(entry)) for entry in entries]
        self._opened += 1
        self._listings[self._opened] = dots + listing
        return _OPEN_OUT.pack(self._opened, 0)

    def _readdir(self, _node: int, request: bytes) -> bytes:
        handle, offset, size = _READ.unpack_from(request, _HEADER)
        answer = bytearray()
        for place, (name, number, kind) in enumerate(self._listings[handle][offset:], offset + 1):
            entry = _DIRENT.pack(number, place, len(name), kind >> 12) + name
            entry += b"\0" * (-len(name) % 8)
            if len(answer) + len(entry) > size:
                break
            answer += entry
        return bytes(answer)

    def _releasedir(self, _node: int, request: bytes) -> bytes:
        del self._listings[_HANDLE.unpack_from(request, _HEADER)[0]]
        return b""

    def _statfs(self, node: int, _request: bytes) -> bytes:
        found = os.statvfs(self._paths[node])
        blocks = (found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree)
        return _STATFS.pack(*blocks, found.f_bsize, found.f_namemax, found.f_frsize)

    def _ioctl(self, _node: int, _request: bytes) -> bytes:
        raise OSError(errno.ENOTTY, "no terminal")


def _refuse(_node: int, _request: bytes) -> bytes:
    raise OSError(errno.ENOSYS, "no such request")


def _kind(entry: os.DirEntry[bytes]) -> int:
    """The type of an inode, as `stat` has it."""
    if entry.is_symlink():
        return stat.S_IFLNK
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    return 0


def _attributes(status: os.stat_result) -> tuple[int, ...]:
    """What the kernel is told of an inode."""
    times = [divmod(t, 10**9) for t in (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns)]
    major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
    device = minor & 0xFF | major << 8 | (minor & ~0xFF) << 12
    return (
        *(status.st_ino, status.st_size, status.st_blocks),
        *(seconds for seconds, _ in times),
        *(nanoseconds for _, nanoseconds in times),
        *(status.st_mode, status.st_nlink, status.st_uid, status.st_gid),
        *(device, status.st_blksize, 0),
    )
