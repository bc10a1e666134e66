"""Writes a tar archive into a pipe, as mksquashfs reads it with `-tar`.

Everything in it belongs to root. `overlap` decides when a file is written and where it lies.

The format is POSIX ustar with GNU's long names,
https://www.gnu.org/software/tar/manual/html_node/Standard.html; the standard library makes the
unusual headers. The content of larger files goes from the page cache into the pipe without passing
through this process: sendfile(2).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import sys
import tarfile

from condainer.pipeline import tree

_BLOCK = 512
_END = bytes(2 * _BLOCK)
_SMALL = 1 << 15
"""Bytes of a file that is read into memory: sendfile(2) is not worth it."""
_CHUNK = 1 << 30
_PIPE = 1 << 20
"""Bytes that the pipe may hold: the most for an ordinary user, see /proc/sys/fs/pipe-max-size."""

_LONG = 100
"""Bytes of a name that needs a header of its own."""
_LARGE = 8 << 30
"""Bytes of a file whose size needs another header."""
_ROOT = b"0000000\0" * 2
_MAGIC = b"ustar  \0root".ljust(40, b"\0") + b"root"
_SPACES = 8 * ord(" ")
"""The checksum counts its own field as spaces."""
_REST = _BLOCK - 156

_KINDS = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}


def mode_of(status: os.stat_result) -> int:
    """The permissions of a file in the archive: as `tree.close` leaves them.

    Args:
        status: of the file, by `lstat`.
    """
    mode = stat.S_IMODE(status.st_mode)
    return mode if stat.S_ISLNK(status.st_mode) else mode & tree.KEPT


class ChangedError(Exception):
    """The archive is of no use any more: a path has changed after it was sent, or cannot be sent.

    Args:
        path: which.
        why: what is wrong with it.
    """

    def __init__(self, path: object, why: str = "has changed since it was sent") -> None:
        super().__init__(f"{path} {why}")


class Archive:
    """A tar archive that is being written.

    Args:
        descriptor: of a pipe; closed by `close`.

    Attributes:
        bytes: content of files that has been written.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.bytes = 0
        with contextlib.suppress(OSError):  # all pipes of a user together have a limit, too
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE)

    def add(self, name: str, path: str, status: os.stat_result, mtime: int) -> None:
        """Write a file, directory, symbolic link or named pipe; blocks while the pipe is full.

        Args:
            name: in the archive.
            path: where it is.
            status: of it, by `lstat`.
            mtime: its modification time in the archive, in seconds since 1970.

        Raises:
            ChangedError: If it has changed since then, or an archive cannot hold it.
            BrokenPipeError: If nobody reads any more.
        """
        kind = stat.S_IFMT(status.st_mode)
        if kind not in _KINDS:
            raise ChangedError(path, "is a device or a socket")
        mode = mode_of(status)
        if kind == stat.S_IFREG:
            header = _header(name, tarfile.REGTYPE, mode, mtime, size=status.st_size)
            self._add_content(header, path, status)
        else:
            target = os.readlink(path) if kind == stat.S_IFLNK else ""  # noqa: PTH115  (thousands)
            self._write(_header(name, _KINDS[kind], mode, mtime, target=target))

    def link(self, name: str, target: str, mtime: int) -> None:
        """Write a hard link to something that is in the archive already.

        Args:
            name: in the archive.
            target: the name of the other.
            mtime: its modification time, in seconds since 1970.
        """
        self._write(_header(name, tarfile.LNKTYPE, 0o644, mtime, target=target))

    def end(self) -> None:
        """Write the mark at the end of the archive."""
        self._write(_END)

    def close(self) -> None:
        """Close the pipe. Without `end` before, the reader finds that the archive is incomplete."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _add_content(self, header: bytes, path: str, status: os.stat_result) -> None:
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise ChangedError(path, f"cannot be read: {error.strerror}") from error
        try:
            now = os.fstat(file)
            if (now.st_ino, now.st_size) != (status.st_ino, status.st_size):
                raise ChangedError(path)
            padding = bytes(-status.st_size % _BLOCK)
            if status.st_size <= _SMALL:
                content = os.read(file, status.st_size) if status.st_size else b""
                if len(content) != status.st_size:
                    raise ChangedError(path)
                self._write(header, content, padding)
            else:
                self._write(header)
                self._send(file, status.st_size, path)
                self._write(padding)
        finally:
            os.close(file)
        self.bytes += status.st_size

    def _send(self, file: int, size: int, path: str) -> None:
        done = 0
        while done < size:
            count = os.sendfile(self._descriptor, file, done, min(size - done, _CHUNK))
            if not count:
                raise ChangedError(path)
            done += count

    def _write(self, *pieces: bytes) -> None:
        total = sum(map(len, pieces))
        done = os.writev(self._descriptor, pieces)
        if done < total:  # as after a signal
            rest = memoryview(b"".join(pieces))[done:]
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]


def _header(
    name: str, kind: bytes, mode: int, mtime: int, *, size: int = 0, target: str = ""
) -> bytes:
    """The header of a member. It makes the usual ones itself, ten times faster than the library."""
    raw, raw_target = os.fsencode(name), os.fsencode(target)
    if kind == tarfile.DIRTYPE:
        raw += b"/"
    if len(raw) >= _LONG or len(raw_target) >= _LONG or size >= _LARGE:
        return _long_header(name, kind, mode, mtime, size=size, target=target)
    numbers = b"%07o\0%b%011o\0%011o\0" % (mode, _ROOT, size, mtime)
    rest = kind + raw_target.ljust(_LONG, b"\0") + _MAGIC
    total = sum(raw) + sum(numbers) + _SPACES + sum(rest)
    return b"%b%b%06o\0 %b" % (raw.ljust(_LONG, b"\0"), numbers, total, rest.ljust(_REST, b"\0"))


def _long_header(name: str, kind: bytes, mode: int, mtime: int, *, size: int, target: str) -> bytes:
    header = tarfile.TarInfo(name)
    header.type, header.mode, header.mtime = kind, mode, mtime
    header.size, header.linkname = size, target
    coding = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
    return header.tobuf(tarfile.GNU_FORMAT, *coding)
