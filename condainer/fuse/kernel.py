"""Speaks the kernel's FUSE protocol: reads requests from /dev/fuse and writes the answers.

`squashfs` knows what is in the image, `posix` which number an error has, and `attach` where the
descriptor comes from. A request costs two system calls and few lines of Python here. Bindings to
libfuse cost more: they build structures with ctypes for each call.

The protocol: the kernel's include/uapi/linux/fuse.h, minor version 31 (Linux 5.4; with older
kernels their own version is agreed on). Opcodes and flags have its names. The image never changes,
so the kernel is told to keep names, attributes and contents for ever, and after one ENOSYS it asks
no more to open or to flush. A node id is an inode's reference plus two, and the root's is one. So
this program remembers nothing of what the kernel knows.
"""

from __future__ import annotations

import _thread
import errno
import os
import time
from typing import TYPE_CHECKING

from condainer.fuse import posix, protocol
from condainer.fuse.log import Log
from condainer.fuse.protocol import (  # by name, since each request needs them
    ATTR_OUT,
    DIRENT,
    ENTRY_OUT,
    IN_HEADER,
    IN_HEADER_SIZE,
    OUT_HEADER,
    READ_IN,
    ROOT_ID,
)
from condainer.squashfs.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from condainer.squashfs import FileSystem, Inode

_MOST_PAGES = max((1 << 20) // os.sysconf("SC_PAGE_SIZE"), 1)
"""Of a request: 1 MiB, however large a page is; writev(2) takes no more than 1024 pieces."""
_REQUEST = 32768
"""Bytes to read at once: more than the longest request, which is an ioctl's with 16 KiB."""
_FOREVER = 1 << 31
"""Seconds."""
_BACKGROUND = 64
_PAUSE = 0.01
_DOTS = 2
_NO_ENTRY = ENTRY_OUT.pack(0, 0, _FOREVER, *[0] * 19)
"""That there is no such name, which the kernel remembers, too."""
_WANTED = (
    protocol.ASYNC_READ
    | protocol.DO_READDIRPLUS
    | protocol.READDIRPLUS_AUTO
    | protocol.NO_OPEN_SUPPORT
    | protocol.PARALLEL_DIROPS
    | protocol.MAX_PAGES
    | protocol.CACHE_SYMLINKS
    | protocol.NO_OPENDIR_SUPPORT
)
_DIRENT_TYPES = (0, 4, 8, 10, 6, 2, 1, 12)
"""What readdir(3) calls the kinds of inodes: DT_DIR, DT_REG and so on."""
_DT_DIR = 4

_NO_REQUEST = {errno.ENOENT, errno.EINTR, errno.EAGAIN}

if TYPE_CHECKING:
    _Slow = tuple[int, int, Callable[[], None]]
    """A request that takes a while: its number, its opcode, and what answers it."""


def caller(request: bytes) -> int:
    """The user who asks.

    Args:
        request: as it was read from /dev/fuse.
    """
    uid: int = protocol.IN_HEADER_UID.unpack_from(request)[0]
    return uid


class Session:
    """Answers the requests that come through one descriptor of /dev/fuse.

    One thread at a time waits for the next request, and answers at once what needs no
    decompressing. Before it decompresses, it lets another thread take its place. So no request
    waits until a thread has woken up, and none waits behind a slow one.

    Args:
        descriptor: of /dev/fuse, mounted.
        files: what is served.
        uid: user whom everything belongs to; None for what the image says.
        gid: the same for the group.
        asks_to_open: whether opening a file is a request of its own, which `watch` sees. Otherwise
            the kernel soon lets anybody open what it knows.
        on_ready: called when the kernel has agreed to the protocol.
        watch: sees the operation and the whole of each request; may refuse it with an OSError.

    Attributes:
        requests: how many have been answered.
        log: takes what nobody who asks can know of.
    """

    def __init__(
        self,
        descriptor: int,
        files: FileSystem,
        *,
        uid: int | None = None,
        gid: int | None = None,
        asks_to_open: bool = False,
        on_ready: Callable[[], None] = lambda: None,
        watch: Callable[[int, bytes], None] | None = None,
    ) -> None:
        self._descriptor = descriptor
        self._files = files
        self._uid, self._gid = uid, gid
        self._wanted = _WANTED
        if asks_to_open:
            self._wanted &= ~(protocol.NO_OPEN_SUPPORT | protocol.NO_OPENDIR_SUPPORT)
        self._on_ready = on_ready
        self._watch = watch
        self.log = Log()
        self._turn = _thread.allocate_lock()
        self._root_ref = files.root
        self.requests = 0
        self._handlers: dict[int, Callable[[int, int, bytes], _Slow | None]] = {
            protocol.LOOKUP: self._lookup,
            protocol.FORGET: self._ignore,
            protocol.GETATTR: self._getattr,
            protocol.READLINK: self._readlink,
            protocol.READ: self._read,
            protocol.STATFS: self._statfs,
            protocol.RELEASE: self._nothing,
            protocol.GETXATTR: self._getxattr,
            protocol.LISTXATTR: self._listxattr,
            protocol.INIT: self._init,
            protocol.READDIR: self._readdir,
            protocol.RELEASEDIR: self._nothing,
            protocol.ACCESS: self._access,
            protocol.INTERRUPT: self._ignore,
            protocol.DESTROY: self._nothing,
            protocol.IOCTL: self._ioctl,
            protocol.BATCH_FORGET: self._ignore,
            protocol.READDIRPLUS: self._readdirplus,
        }

    def serve(self) -> None:
        """Answer requests until the file system is unmounted; several threads may do so at once.

        Raises:
            OSError: If /dev/fuse fails.
        """
        turn = self._turn
        while True:
            turn.acquire()
            try:
                slow = self._serve_quick_ones()
            finally:
                turn.release()
            if slow is None:
                return
            unique, opcode, answer = slow
            try:
                answer()
            except Exception as error:  # noqa: BLE001  (of this request; all others are served on)
                self._failed(unique, opcode, error)

    def _serve_quick_ones(self) -> _Slow | None:
        """Answer requests until one takes longer, which is given back; None at the end."""
        unpack, handlers, watch = IN_HEADER.unpack_from, self._handlers, self._watch
        while (request := self._next()) is not None:
            _, opcode, unique, node = unpack(request)
            self.requests += 1
            try:
                if watch is not None:
                    watch(opcode, request)
                slow = handlers.get(opcode, self._unknown)(unique, node, request)
            except Exception as error:  # noqa: BLE001  (of this request; all others are served on)
                self._failed(unique, opcode, error)
            else:
                if slow is not None:
                    return slow
        return None

    def _next(self) -> bytes | None:
        """The next request; None when there are no more."""
        while True:
            try:
                return os.read(self._descriptor, _REQUEST) or None
            except MemoryError as error:  # there may be some again
                self.log.failed("reading a request", error)
                time.sleep(_PAUSE)
            except OSError as error:
                if error.errno == errno.ENODEV:  # unmounted
                    return None
                if error.errno not in _NO_REQUEST:
                    raise

    # Answers

    def _answer(self, unique: int, *pieces: bytes | memoryview) -> None:
        size = OUT_HEADER.size
        for piece in pieces:
            size += len(piece)
        self._write((OUT_HEADER.pack(size, 0, unique), *pieces))

    def _failed(self, unique: int, opcode: int, error: Exception) -> None:
        """Answer that a request has failed: that ends neither the file system nor the thread."""
        if posix.is_failure(error):
            self.log.failed(f"operation {opcode}", error)
        try:
            self._fail(unique, posix.number_of(error))
        except OSError as problem:  # if /dev/fuse has failed, reading from it fails as well
            self.log.failed("answering", problem)

    def _fail(self, unique: int, number: int) -> None:
        self._write((OUT_HEADER.pack(OUT_HEADER.size, -number, unique),))

    def _write(self, pieces: tuple[bytes | memoryview, ...]) -> None:
        try:
            os.writev(self._descriptor, pieces)
        except OSError as error:
            # Who asked was interrupted, or has gone with the whole file system.
            if error.errno not in {errno.ENOENT, errno.ENODEV}:
                raise

    def _attributes(self, inode: Inode) -> tuple[int, ...]:
        time = inode.mtime
        uid = inode.uid if self._uid is None else self._uid
        gid = inode.gid if self._gid is None else self._gid
        blocks = posix.blocks(self._files, inode)
        return (
            *(inode.number, inode.size, blocks, time, time, time, 0, 0, 0),
            *(inode.mode, inode.links, uid, gid, posix.device(inode), posix.BLKSIZE, 0),
        )

    def _entry(self, ref: int) -> bytes:
        inode = self._files.inode(ref)
        return ENTRY_OUT.pack(ref + 2, 0, _FOREVER, _FOREVER, 0, 0, *self._attributes(inode))

    def _entry_if_whole(self, ref: int | None) -> bytes:
        """An entry for a listing; what cannot be read is listed without its attributes."""
        try:
            return self._entry(ref) if ref is not None else _NO_ENTRY
        except Exception as error:  # noqa: BLE001  (who wants to know will ask again)
            self.log.failed("listing", error)
            return _NO_ENTRY

    def _ref(self, node: int) -> int:
        return self._root_ref if node == ROOT_ID else node - 2

    # Requests

    def _init(self, unique: int, _node: int, request: bytes) -> None:
        major, minor, readahead, flags = protocol.INIT_IN.unpack_from(request, IN_HEADER_SIZE)
        if major != protocol.KERNEL_VERSION or minor < protocol.LEAST_MINOR_VERSION:
            self._fail(unique, errno.EPROTO)
            return
        flags &= self._wanted
        version = protocol.KERNEL_VERSION, protocol.KERNEL_MINOR_VERSION
        limits = _BACKGROUND, _BACKGROUND, 4096, 1, _MOST_PAGES, 0
        out = protocol.INIT_OUT.pack(*version, readahead, flags, *limits)
        no_open, no_opendir = protocol.NO_OPEN_SUPPORT, protocol.NO_OPENDIR_SUPPORT
        for opcode, flag in ((protocol.OPEN, no_open), (protocol.OPENDIR, no_opendir)):
            if not flags & flag:  # or an older kernel: ENOSYS would be the caller's answer
                self._handlers[opcode] = self._open
        if minor <= protocol.COMPAT_22_MINOR_VERSION:
            out = out[: protocol.COMPAT_22_INIT_OUT_SIZE]
        self._answer(unique, out)
        self._on_ready()

    def _open(self, unique: int, _node: int, _request: bytes) -> None:
        self._answer(unique, protocol.OPEN_OUT.pack(0, protocol.FOPEN_KEEP_CACHE))

    def _lookup(self, unique: int, node: int, request: bytes) -> _Slow | None:
        name = request[IN_HEADER_SIZE:-1]
        posix.check_name(name)
        directory = self._ref(node)
        if self._files.takes_long(directory):
            return unique, protocol.LOOKUP, lambda: self._look_up(unique, directory, name)
        self._look_up(unique, directory, name)
        return None

    def _look_up(self, unique: int, directory: int, name: bytes) -> None:
        try:
            ref = self._files.lookup(directory, name)
        except NotFoundError:
            self._answer(unique, _NO_ENTRY)  # remembered, too
            return
        self._answer(unique, self._entry(ref))

    def _getattr(self, unique: int, node: int, _request: bytes) -> None:
        inode = self._files.inode(self._ref(node))
        self._answer(unique, ATTR_OUT.pack(_FOREVER, 0, 0, *self._attributes(inode)))

    def _access(self, unique: int, node: int, request: bytes) -> None:
        (mask,) = protocol.ACCESS_IN.unpack_from(request, IN_HEADER_SIZE)
        posix.check_access(self._files.inode(self._ref(node)), mask)
        self._answer(unique)

    def _readlink(self, unique: int, node: int, _request: bytes) -> None:
        self._answer(unique, self._files.target(self._files.inode(self._ref(node))))

    def _read(self, unique: int, node: int, request: bytes) -> _Slow | None:
        _, offset, size = READ_IN.unpack_from(request, IN_HEADER_SIZE)
        inode = self._files.inode(self._ref(node))
        pieces = self._files.ready(inode, offset, size)
        if pieces is None:
            read = self._files.read
            return unique, protocol.READ, lambda: self._answer(unique, *read(inode, offset, size))
        self._answer(unique, *pieces)
        return None

    def _readdir(self, unique: int, node: int, request: bytes) -> _Slow | None:
        return self._list_or_wait(unique, node, request, plus=False)

    def _readdirplus(self, unique: int, node: int, request: bytes) -> _Slow | None:
        return self._list_or_wait(unique, node, request, plus=True)

    def _list_or_wait(self, unique: int, node: int, request: bytes, *, plus: bool) -> _Slow | None:
        if self._files.takes_long(self._ref(node)):
            return unique, protocol.READDIR, lambda: self._list(unique, node, request, plus=plus)
        self._list(unique, node, request, plus=plus)
        return None

    def _list(self, unique: int, node: int, request: bytes, *, plus: bool) -> None:
        _, cookie, size = READ_IN.unpack_from(request, IN_HEADER_SIZE)
        answer = bytearray()
        for following, name, number, kind, ref in self._names(self._ref(node), cookie):
            padding = b"\0" * (-len(name) % 8)
            head = DIRENT.pack(number, following, len(name), kind)
            needed = len(head) + len(name) + len(padding) + (ENTRY_OUT.size if plus else 0)
            if len(answer) + needed > size:
                break
            if plus:
                answer += self._entry_if_whole(ref)
            answer += head + name + padding
        self._answer(unique, bytes(answer))

    def _names(
        self, directory: int, cookie: int
    ) -> Iterator[tuple[int, bytes, int, int, int | None]]:
        """Where to go on, name, inode number, kind as in `dirent`, and reference, of each entry."""
        inode = self._files.inode(directory)
        for place, (name, number) in enumerate(((b".", inode.number), (b"..", inode.parent))):
            if cookie <= place:
                yield place + 1, name, number, _DT_DIR, None
        for following, entry in self._files.listing(directory, max(cookie - _DOTS, 0)):
            kind = _DIRENT_TYPES[entry.kind]
            yield following + _DOTS, entry.name, entry.number, kind, entry.ref

    def _statfs(self, unique: int, _node: int, _request: bytes) -> None:
        block, blocks, inodes = posix.totals(self._files)
        self._answer(
            unique, protocol.STATFS_OUT.pack(blocks, 0, 0, inodes, 0, block, posix.NAME_MAX, block)
        )

    def _getxattr(self, unique: int, node: int, request: bytes) -> None:
        (size, _) = protocol.GETXATTR_IN.unpack_from(request, IN_HEADER_SIZE)
        name = request[IN_HEADER_SIZE + protocol.GETXATTR_IN.size : -1]
        value = posix.xattr(self._files, self._files.inode(self._ref(node)), name)
        self._give(unique, size, value)

    def _listxattr(self, unique: int, node: int, request: bytes) -> None:
        (size, _) = protocol.GETXATTR_IN.unpack_from(request, IN_HEADER_SIZE)
        names = posix.xattr_names(self._files, self._files.inode(self._ref(node)))
        self._give(unique, size, b"".join(name + b"\0" for name in names))

    def _give(self, unique: int, size: int, value: bytes) -> None:
        """The value of an attribute, or how large it is for who asks with no room for it."""
        if not size:
            self._answer(unique, protocol.GETXATTR_OUT.pack(len(value), 0))
        elif size < len(value):
            self._fail(unique, errno.ERANGE)
        else:
            self._answer(unique, value)

    def _ioctl(self, unique: int, _node: int, _request: bytes) -> None:
        self._fail(unique, errno.ENOTTY)

    def _unknown(self, unique: int, _node: int, _request: bytes) -> None:
        self._fail(unique, errno.ENOSYS)

    def _nothing(self, unique: int, _node: int, _request: bytes) -> None:
        self._answer(unique)

    def _ignore(self, _unique: int, _node: int, _request: bytes) -> None:
        """Nothing is remembered of what the kernel knows, and no answer is awaited."""
