"""Feeds damaged images to the file system: nothing may come of them but answers and errors.

    python -m tests.fuzz_fuse --count 10000     damage of all kinds, the same each time
    python -m tests.fuzz_fuse --mounted 300     the same, but the images are really mounted
    python -m tests.fuzz_fuse --seconds 600     damage that coverage leads to, by atheris
    python -m tests.fuzz_fuse IMAGE...          these images, as they are

The images are small ones of all compressors, with small blocks and large. Each is opened, and
everything in it is asked for in the way the kernel asks, through a socket instead of /dev/fuse. An
exception that is no answer, an answer that is no valid one, memory beyond a limit, or a request
that takes for ever ends the program with a status other than 0.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import faulthandler
import os
import resource
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, NoReturn

from condainer.fuse import kernel, posix
from condainer.fuse.log import Log
from condainer.squashfs import (
    CodecError,
    FileSystem,
    FormatError,
    Image,
    blocks,
    codecs,
    directories,
    inodes,
    layout,
    superblock,
    tables,
    vfs,
    xattrs,
)
from tests import damage, images

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

MEMORY = 512 << 20
"""Bytes of address space that are enough, whatever an image claims."""
RESIDENT = 192 << 20
"""Bytes that may be in use of it."""
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
_ANSWERS_WHERE_MOUNTED = {*_ANSWERS, errno.ELOOP, errno.EACCES}
"""The kernel takes no directory that is in itself."""
_DEEP = 40
"""Directories in each other that are gone into."""
_ROOM = 32768
"""Bytes that a request has room for."""
_ENTRY = 128
"""Bytes that an answer of READDIRPLUS has before each entry."""


class _Strict(Log):
    """Whatever is told of a damaged image, it is damage: all else is a fault of our own."""

    def failed(self, operation: str, error: BaseException) -> None:
        if not isinstance(error, FormatError):
            raise AssertionError(operation) from error  # noqa: TRY004


class Client:
    """Asks as the kernel does.

    Args:
        files: what is to answer.
    """

    def __init__(self, files: FileSystem) -> None:
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._session = kernel.Session(self._theirs.fileno(), files)
        self._session.log = _Strict()
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


def examine(data: bytes, threads: int = 0) -> int:
    """Ask for everything that is in an image.

    Args:
        data: the image.
        threads: that read ahead.

    Returns:
        how many requests it took; 0 where the image could not even be opened.

    Raises:
        AssertionError: where something else comes of it than answers and errors.
    """
    descriptor = os.memfd_create("image")
    try:
        os.write(descriptor, data)
        try:
            files = FileSystem(Image(descriptor), threads=threads)
        except (FormatError, CodecError, OSError):
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


def examine_mounted(data: bytes, directory: Path) -> int:
    """Mount an image, and do with it what programs do.

    Args:
        data: the image.
        directory: for the image and its mountpoint.

    Returns:
        how many names were looked at; 0 where the image could not be mounted.

    Raises:
        AssertionError: where the program ends otherwise than it should, or takes too much memory.
    """
    image, mountpoint = directory / "image.squashfs", directory / "mnt"
    image.write_bytes(data)
    mountpoint.mkdir(exist_ok=True)
    command = [*images.FUSE, "-f", str(image), str(mountpoint)]
    daemon = subprocess.Popen(command, stderr=subprocess.PIPE, preexec_fn=_limit)  # noqa: PLW1509
    assert daemon.stderr is not None
    try:
        while not images.is_mounted(mountpoint) and daemon.poll() is None:
            signal.sigtimedwait([signal.SIGCHLD], 0.01)
        if daemon.poll() is None:
            seen = _walk_mounted(mountpoint)
            images.unmount(mountpoint)
    finally:
        if images.is_mounted(mountpoint):
            images.unmount(mountpoint, "-z")
        words = daemon.stderr.read().decode()
        daemon.stderr.close()
        _, status, used = os.wait4(daemon.pid, 0) if daemon.returncode is None else (0, 0, None)
    if used is None:
        assert daemon.returncode == 255, words
        assert words.startswith(f"condainer.fuse: {image}: "), words
        assert len(words.splitlines()) == 1, words
        return 0
    assert status == 0
    assert all(": FormatError: " in line for line in words.splitlines()), words
    assert used.ru_maxrss << 10 < RESIDENT
    return seen


def _walk_mounted(top: Path) -> int:
    seen = 0
    left = [(os.fsencode(top), 0)]
    while left and seen < REQUESTS:
        path, depth = left.pop()
        seen += 1
        try:
            left += [(name, depth + 1) for name in _use(path) if depth < _DEEP]
        except OSError as error:
            if error.errno not in _ANSWERS_WHERE_MOUNTED:
                raise AssertionError(os.fsdecode(path)) from error
    return seen


def _use(path: bytes) -> list[bytes]:
    """Do with a file what programs do; gives what is in it where it is a directory."""
    status = os.lstat(path)
    with contextlib.suppress(OSError):
        for name in os.listxattr(path, follow_symlinks=False):
            os.getxattr(path, name, follow_symlinks=False)
    if stat.S_ISLNK(status.st_mode):
        os.readlink(path)  # noqa: PTH115
    elif stat.S_ISDIR(status.st_mode):
        return [os.path.join(path, name) for name in os.listdir(path)]  # noqa: PTH118, PTH208
    elif stat.S_ISREG(status.st_mode):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            for offset in {0, status.st_size // 2, max(0, status.st_size - _ROOM)}:
                os.pread(descriptor, 2 * _ROOM, offset)
        finally:
            os.close(descriptor)
    return []


def _limit() -> None:
    """Bound the memory of this process, and the time it takes."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.alarm(PATIENCE)


# The program


def _functions(owner: ModuleType | type) -> Iterator[FunctionType]:
    for value in vars(owner).values():
        if isinstance(value, FunctionType):
            yield value
        elif isinstance(value, type) and value.__module__ == getattr(owner, "__name__", ""):
            yield from _functions(value)


def _in_turn(originals: list[damage.Original], count: int, ask: Callable[[bytes], int]) -> None:
    """Ask each image in a process of its own, whose memory and time are bounded."""
    opened = most = 0
    for seed in range(count):
        data = damage.damaged(originals[seed % len(originals)], seed)
        child = os.fork()
        if child == 0:
            _ask_and_exit(data, ask)
        _, status, used = os.wait4(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code not in {_OPENED, _NOT_OPENED} or used.ru_maxrss << 10 > RESIDENT:
            what = f"status {code}, {used.ru_maxrss >> 10} MiB"
            sys.exit(f"{originals[seed % len(originals)].path.name}, seed {seed}: {what}")
        opened += code == _OPENED
        most = max(most, used.ru_maxrss)
    sys.stdout.write(f"{opened} of {count} images could be opened\n")
    sys.stdout.write(f"{most >> 10} MiB at most\n")


_OPENED, _NOT_OPENED, _FAILED = 10, 11, 12


def _ask_and_exit(data: bytes, ask: Callable[[bytes], int]) -> NoReturn:
    code = _FAILED
    try:
        code = _OPENED if ask(data) > 0 else _NOT_OPENED
    except BaseException:  # noqa: BLE001  (shown, and told by the status)
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code)


def _examine_within_limits(data: bytes) -> int:
    _limit()
    if data[-1:] > b"\x80":  # as where there is no library of lz4 and lzo
        vars(codecs)["_library"] = lambda _: None
    return examine(data, threads=len(data) % 3)


def _by_coverage(originals: list[damage.Original], seconds: int, crashes: Path) -> None:
    import atheris

    parsers = (superblock, blocks, codecs, tables, inodes, directories, xattrs, layout, vfs)
    for module in (*parsers, kernel, posix):
        for function in _functions(module):
            atheris.instrument_func(function)

    def examine_edited(edits: bytes) -> None:
        if edits:
            examine(damage.edited(originals[edits[0] % len(originals)].data, edits[1:]))

    limits = [f"-max_total_time={seconds}", f"-timeout={PATIENCE}", f"-rss_limit_mb={MEMORY >> 20}"]
    inputs = ["-max_len=100", "-len_control=0", f"-artifact_prefix={crashes}/"]
    atheris.Setup([sys.argv[0], *limits, *inputs], examine_edited)
    atheris.Fuzz()


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_fuse")
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--mounted", type=int, default=0)
    parser.add_argument("--seconds", type=int, default=0)
    parser.add_argument("--crashes", type=Path, default=Path(), help="directory for what fails")
    parser.add_argument("images", nargs="*", type=Path)
    asked = parser.parse_args()
    faulthandler.enable()
    for path in asked.images:
        _limit()
        sys.stdout.write(f"{examine(path.read_bytes())} requests\n")
    with tempfile.TemporaryDirectory(prefix="cndt-") as directory:
        originals = [] if asked.images else damage.originals(Path(directory))
        if asked.count:
            _in_turn(originals, asked.count, _examine_within_limits)
        if asked.mounted:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
            place = Path(directory)
            _in_turn(originals, asked.mounted, lambda data: examine_mounted(data, place))
        if asked.seconds:
            child = os.fork()  # as atheris ends the process that it runs in
            if child == 0:
                _by_coverage(originals, asked.seconds, asked.crashes)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if code:
                sys.exit(f"atheris: status {code}")


if __name__ == "__main__":
    main()
