"""Feeds damaged images to the file system: nothing may come of them but answers and errors.

    python -m tests.fuzz_fuse --count 300 IMAGE...      the same damage each time
    python -m tests.fuzz_fuse --seconds 20 IMAGE...     damage that coverage leads to, by atheris
    python -m tests.fuzz_fuse IMAGE...                  the images as they are

Each image is opened, and everything in it is asked for in the way the kernel asks, through a socket
instead of /dev/fuse. An exception that is no answer, an answer that is no valid one, memory beyond
a limit, or a request that takes for ever ends the program with a status other than 0.
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import resource
import signal
import socket
import struct
import sys
import threading
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING

from condainer.fuse import codecs, kernel, operations, squashfs, vfs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

MEMORY = 512 << 20
"""Bytes of address space that are enough, whatever an image claims."""
PATIENCE = 20
"""Seconds for one image; it takes a fraction of one."""
REQUESTS = 2000
"""Requests for one image, so that one which claims to be endless comes to an end."""

_ROOT = 1
_LOOKUP, _GETATTR, _READLINK, _READ, _GETXATTR, _LISTXATTR, _READDIRPLUS = 1, 3, 5, 15, 22, 23, 44
_ANSWERS = {
    *(0, errno.EIO, errno.ENOENT, errno.ENOTDIR, errno.EINVAL),
    *(errno.ENODATA, errno.EOPNOTSUPP, errno.ERANGE),
}
_ROOM = 32768
"""Bytes that a request has room for."""
_ENTRY = 128
"""Bytes that an answer of READDIRPLUS has before each entry."""


class Client:
    """Asks as the kernel does.

    Args:
        files: what is to answer.
    """

    def __init__(self, files: vfs.FileSystem) -> None:
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._session = kernel.Session(self._theirs.fileno(), files)
        self._problem: BaseException | None = None
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        self.asked = 0

    def _serve(self) -> None:
        try:
            self._session.serve()
        except BaseException as error:  # noqa: BLE001  (raised again where it is asked)
            self._problem = error
        finally:
            self._theirs.close()

    def ask(self, operation: int, node: int, arguments: bytes = b"") -> bytes:
        """Send a request and give what is answered; nothing where that is an error.

        Raises:
            AssertionError: where it is no valid answer.
        """
        self.asked += 1
        head = struct.pack("<IIQQIIII", 40 + len(arguments), operation, 7, node, 0, 0, 0, 0)
        try:
            self._ours.send(head + arguments)
            answer = self._ours.recv(1 << 20)
        except OSError:
            answer = b""
        if not answer:
            self._thread.join()
            raise AssertionError("it has ended") from self._problem
        size, number, unique = struct.unpack_from("<IiQ", answer)
        assert size == len(answer) <= 16 + _ROOM
        assert unique == 7
        assert -number in _ANSWERS, f"operation {operation}: {os.strerror(-number)}"
        assert number == 0 or size == 16
        return answer[16:]

    def close(self) -> None:
        """End it.

        Raises:
            AssertionError: where it does not end well.
        """
        self._ours.close()
        self._thread.join()
        if self._problem is not None:
            raise AssertionError("it has not ended well") from self._problem


def examine(data: bytes) -> int:
    """Ask for everything that is in an image.

    Args:
        data: the image.

    Returns:
        how many requests it took; 0 where the image could not even be opened.

    Raises:
        AssertionError: where something else comes of it than answers and errors.
    """
    descriptor = os.memfd_create("image")
    try:
        os.write(descriptor, data)
        try:
            files = vfs.FileSystem(squashfs.Image(descriptor), threads=0)
        except (squashfs.FormatError, codecs.CodecError, OSError):
            return 0
        client = Client(files)
        try:
            _walk(client)
        finally:
            client.close()
        return client.asked
    finally:
        os.close(descriptor)


def _walk(client: Client) -> None:
    left = [_ROOT]
    seen = set()
    while left and client.asked < REQUESTS:
        node = left.pop()
        attributes = client.ask(_GETATTR, node, bytes(16))
        if len(attributes) == 104 and node not in seen:
            size, mode = struct.unpack_from("<8xQ44xI", attributes, 16)
            left += _visit(client, node, size, mode & 0o170000)
        seen.add(node)


def _visit(client: Client, node: int, size: int, kind: int) -> list[int]:
    """Ask for what an inode has; gives the nodes that it leads to."""
    client.ask(_LISTXATTR, node, struct.pack("<II", _ROOM, 0))
    client.ask(_LISTXATTR, node, struct.pack("<II", 0, 0))
    client.ask(_GETXATTR, node, struct.pack("<II", _ROOM, 0) + b"user.name\0")
    if kind == 0o120000:
        client.ask(_READLINK, node)
    elif kind == 0o040000:
        return [entry for entry, _ in _entries(client, node)]
    elif kind == 0o100000:
        for offset in {0, size // 2, max(0, size - _ROOM // 2)}:
            data = client.ask(_READ, node, _range(offset))
            assert len(data) in {0, max(0, min(_ROOM, size - offset))}
    return []


def _entries(client: Client, node: int) -> Iterator[tuple[int, bytes]]:
    cookie = 0
    while client.asked < REQUESTS:
        answer = client.ask(_READDIRPLUS, node, _range(cookie))
        place = 0
        while place < len(answer):
            (entry,) = struct.unpack_from("<Q", answer, place)
            cookie, length = struct.unpack_from("<8xQI", answer, place + _ENTRY)
            start = place + _ENTRY + 24
            name = answer[start : start + length]
            assert len(name) == length > 0
            place = start + length + -length % 8
            if entry:
                yield entry, name
            if cookie % 8 == 0:
                client.ask(_LOOKUP, node, name + b"\0")
        if not answer:
            return


def _range(offset: int) -> bytes:
    return struct.pack("<QQIIQII", 0, offset, _ROOM, 0, 0, 0, 0)


# Damage


def metadata(image: bytes) -> tuple[int, int]:
    """Where the tables of an image begin and end: from that of the inodes on."""
    begin, end = struct.unpack_from("<64xQ", image)[0], struct.unpack_from("<40xQ", image)[0]
    return begin, end


_VALUES = (
    b"\xff\xff\xff\xff",
    b"\0\0\0\0",
    b"\xff\xff\xff\x7f",
    b"\0\0\0\x80",
    b"\xff\xff",
    b"\0\0",
)


def damaged(image: bytes, seed: int) -> bytes:
    """An image with some damage, mostly in its metadata; some are cut short."""
    chance = random.Random(seed)  # noqa: S311
    begin, end = metadata(image)
    data = bytearray(image)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        low, high = chance.choice(((begin, end),) * 18 + ((96, end), (0, 96)))
        place = chance.randrange(low, high - 8)
        match chance.randrange(4):
            case 0:
                data[place] ^= 1 << chance.randrange(8)
            case 1:
                data[place] = chance.randrange(256)
            case 2:
                value = chance.choice(_VALUES)
                data[place : place + len(value)] = value
            case _:
                other = chance.randrange(begin, end - 8)
                data[place : place + 8] = data[other : other + 8]
    if chance.randrange(20) == 0:
        del data[chance.randrange(len(data)) :]
    return bytes(data)


_EDIT = struct.Struct("<HBI")


def _edited(image: bytes, edits: bytes) -> bytes:
    """An image with some of its metadata changed: where, how many bytes, and to what."""
    begin, end = metadata(image)
    data = bytearray(image)
    whole = len(edits) // _EDIT.size * _EDIT.size
    for place, width, value in _EDIT.iter_unpack(edits[:whole]):
        start = begin + place % (end - begin - 4)
        count = 1 + width % 4
        data[start : start + count] = value.to_bytes(4, "little")[:count]
    return bytes(data)


# The program


def _functions(owner: ModuleType | type) -> Iterator[FunctionType]:
    for value in vars(owner).values():
        if isinstance(value, FunctionType):
            yield value
        elif isinstance(value, type) and value.__module__ == getattr(owner, "__name__", ""):
            yield from _functions(value)


def _in_turn(images: list[bytes], count: int) -> None:
    opened = 0
    for seed in range(count):
        signal.alarm(PATIENCE)
        try:
            opened += examine(damaged(images[seed % len(images)], seed)) > 0
        except BaseException:
            sys.stderr.write(f"with the damage of seed {seed}:\n")
            raise
    sys.stdout.write(f"{opened} of {count} images could be opened\n")


def _by_coverage(images: list[bytes], seconds: int, crashes: Path) -> None:
    import atheris

    for module in (codecs, squashfs, vfs, kernel, operations):
        for function in _functions(module):
            atheris.instrument_func(function)

    def examine_edited(edits: bytes) -> None:
        if edits:
            examine(_edited(images[edits[0] % len(images)], edits[1:]))

    limits = [f"-max_total_time={seconds}", f"-timeout={PATIENCE}", f"-rss_limit_mb={MEMORY >> 20}"]
    inputs = ["-max_len=100", "-len_control=0", f"-artifact_prefix={crashes}/"]
    atheris.Setup([sys.argv[0], *limits, *inputs], examine_edited)
    atheris.Fuzz()


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_fuse")
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--seconds", type=int, default=0)
    parser.add_argument("--crashes", type=Path, default=Path(), help="directory for what fails")
    parser.add_argument("images", nargs="+", type=Path)
    asked = parser.parse_args()
    images = [path.read_bytes() for path in asked.images]
    if asked.seconds:
        _by_coverage(images, asked.seconds, asked.crashes)
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    if asked.count:
        _in_turn(images, asked.count)
        return
    for image in images:
        signal.alarm(PATIENCE)
        sys.stdout.write(f"{examine(image)} requests\n")


if __name__ == "__main__":
    main()
