"""The kernel's protocol as older kernels speak it; a socket stands for theirs."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
from typing import TYPE_CHECKING

import pytest

from condainer.fuse import kernel
from condainer.squashfs import FileSystem, Image, Inode
from tests.support import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests import images

LOOKUP, GETATTR, OPEN, READ, STATFS, RELEASE, INIT, OPENDIR = 1, 3, 14, 15, 17, 18, 26, 27
EVERYTHING = 0x7FFF_FFFF
"""All the flags that a kernel may offer."""


class Kernel:
    """What asks, at the other end of the descriptor."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._unique = 0

    def ask(self, operation: int, node: int, body: bytes = b"") -> tuple[int, bytes]:
        """The number of the error, and what was answered."""
        self._unique += 2
        head = (40 + len(body), operation, self._unique, node, 0, 0, 0, 0)
        self._end.send(struct.pack("<IIQQ4I", *head) + body)
        answer = self._end.recv(2 << 20)
        size, number, unique = struct.unpack_from("<IiQ", answer)
        assert (size, unique) == (len(answer), self._unique)
        return -number, answer[16:]

    def init(self, minor: int, flags: int = EVERYTHING) -> bytes:
        """Agree to the protocol."""
        number, answer = self.ask(INIT, 0, struct.pack("<4I", 7, minor, 131072, flags))
        assert number == 0
        return answer


@pytest.fixture
def old(collection: images.Collection) -> Iterator[Kernel]:
    """A kernel with a mount of the small tree."""
    with serving(collection, FileSystem) as kernel:
        yield kernel


@contextlib.contextmanager
def serving(collection: images.Collection, kind: type[FileSystem]) -> Iterator[Kernel]:
    """A kernel with a mount of a file system of some kind."""
    descriptor = os.open(collection.image("small", "-comp", "zstd"), os.O_RDONLY)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    files = kind(Image(descriptor), threads=0)
    session = kernel.Session(theirs.fileno(), files)
    thread = threading.Thread(target=session.serve)
    with contextlib.closing(theirs):
        thread.start()
        with ours:
            ours.settimeout(PATIENCE)
            yield Kernel(ours)
        thread.join()
    os.close(descriptor)


@pytest.mark.parametrize(("minor", "size"), [(12, 24), (22, 24), (23, 64), (31, 64), (44, 64)])
def test_as_much_is_told_as_the_kernel_takes(old: Kernel, minor: int, size: int) -> None:
    """It takes neither more nor less, and nothing is mounted then: 3.10, as of RHEL 7, has 22."""
    answer = old.init(minor)
    assert len(answer) == size
    major, minor = struct.unpack_from("<2I", answer)
    assert (major, minor) == (7, 31)


def test_requests_are_of_a_mebibyte_however_large_pages_are(old: Kernel) -> None:
    (pages,) = struct.unpack_from("<28xH", old.init(31))
    assert pages * os.sysconf("SC_PAGE_SIZE") == 1 << 20


def test_a_kernel_that_offers_nothing(old: Kernel) -> None:
    """It asks to open each file, and has to be answered."""
    (flags,) = struct.unpack_from("<12xI", old.init(22, flags=0))
    assert flags == 0
    for operation in (OPEN, OPENDIR):
        assert old.ask(operation, 1, bytes(8)) == (0, struct.pack("<QII", 0, 2, 0))
    number, entry = old.ask(LOOKUP, 1, b"text\0")
    (node,) = struct.unpack_from("<Q", entry)
    assert number == 0
    assert old.ask(READ, node, struct.pack("<QQI20x", 0, 5, 10)) == (0, b"text text ")
    assert old.ask(READ, node, struct.pack("<QQI20x", 0, 14_998, 4096)) == (0, b"t ")
    assert old.ask(READ, node, struct.pack("<QQI20x", 0, 15_000, 4096)) == (0, b"")
    assert old.ask(RELEASE, node, bytes(24)) == (0, b"")
    assert len(old.ask(STATFS, 1)[1]) == 80


def test_what_is_not_known_is_told(old: Kernel) -> None:
    old.init(31)
    for operation in (OPEN, OPENDIR, 25, 46, 52, 1000):  # FLUSH, LSEEK, STATX
        assert old.ask(operation, 1, bytes(64)) == (errno.ENOSYS, b"")


def test_another_protocol(old: Kernel) -> None:
    for major, minor in ((6, 31), (7, 11)):
        request = struct.pack("<4I", major, minor, 131072, EVERYTHING)
        assert old.ask(INIT, 0, request) == (errno.EPROTO, b"")


class Unforeseen(FileSystem):
    """A file system with a fault that nobody has thought of."""

    def target(self, inode: Inode) -> bytes:
        raise ZeroDivisionError(f"inode\n{inode.number}")

    def _read(self, inode: Inode, offset: int, size: int, *, wait: bool) -> list[memoryview] | None:
        if wait:
            raise LookupError("at a distance")
        return super()._read(inode, offset, size, wait=wait)


def test_what_nobody_has_foreseen_fails_one_request(
    collection: images.Collection, capfd: pytest.CaptureFixture[str]
) -> None:
    """On the thread that waits, and on another; the log tells it once."""
    with serving(collection, Unforeseen) as old:
        old.init(31)
        for name, operation, body in ((b"link", 5, b""), (b"noise", READ, _SOME)):
            (node,) = struct.unpack_from("<Q", old.ask(LOOKUP, 1, name + b"\0")[1])
            for _ in range(100):
                assert old.ask(operation, node, body) == (errno.EIO, b"")
        assert old.ask(GETATTR, 1, bytes(16))[0] == 0
    told = capfd.readouterr().err.splitlines()
    assert len(told) == 2
    assert told[0].startswith("condainer.fuse: operation 5: ZeroDivisionError: inode ")
    assert told[1].startswith("condainer.fuse: operation 15: LookupError: at a distance (")


_SOME = struct.pack("<QQI20x", 0, 0, 100)


@pytest.mark.parametrize("node", [0, (1 << 64) - 1, 1 << 48])
def test_a_node_that_is_none(old: Kernel, node: int) -> None:
    old.init(31)
    assert old.ask(GETATTR, node, bytes(16))[0] == errno.EIO
    assert old.ask(GETATTR, 1, bytes(16))[0] == 0
