"""Writes a tar archive into a pipe, as mksquashfs reads it with `-tar`.

Everything belongs to root. What goes in when, and where it lies, is the business of `overlap`.

The format: POSIX ustar with GNU's long names, https://www.gnu.org/software/tar/manual/html_node/
Standard.html; the headers are the standard library's. Files of more than a few blocks go from the
page cache into the pipe without passing through here: sendfile(2).
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
"""Bytes of a file that is read into memory; a larger one is not worth it."""
_CHUNK = 1 << 30
_PIPE = 1 << 20
"""Bytes that the pipe is to hold, as an ordinary user may have it: /proc/sys/fs/pipe-max-size."""

_LONG = 100
"""Bytes of a name that takes a header of its own."""
_LARGE = 8 << 30
_ROOT = b"0000000\0" * 2
_MAGIC = b"ustar  \0root".ljust(40, b"\0") + b"root"
_SPACES = 8 * ord(" ")
"""What the checksum itself counts for."""
_REST = _BLOCK - 156

_KINDS = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}


def mode_of(status: os.stat_result) -> int:
    """The permissions that the archive tells of a file, as `tree.close` leaves them."""
    mode = stat.S_IMODE(status.st_mode)
    return mode if stat.S_ISLNK(status.st_mode) else mode & tree.KEPT


class ChangedError(Exception):
    """The archive is of no use any more; tells of a path why, as by default that it has changed."""

    def __init__(self, path: object, why: str = "has changed since it was done") -> None:
        super().__init__(f"{path} {why}")


class Archive:
    """An archive that is being written.

    Args:
        descriptor: a pipe; closed by `close`.

    Attributes:
        bytes: of files, that have been written.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.bytes = 0
        with contextlib.suppress(OSError):  # where all of a user's pipes hold too much already
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE)

    def add(self, name: str, path: str, status: os.stat_result, mtime: int) -> None:
        """Put a file, directory, symbolic link or named pipe in; blocks while the pipe is full.

        Args:
            name: in the archive.
            path: where it is.
            status: what it is, by `lstat`.
            mtime: the time of change that the archive is to tell, in seconds.

        Raises:
            ChangedError: where it is something else by now, or no archive can hold it.
            BrokenPipeError: where nobody reads any more.
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
        """Put a hard link in, to what is in the archive already."""
        self._write(_header(name, tarfile.LNKTYPE, 0o644, mtime, target=target))

    def end(self) -> None:
        """Write the mark of the end."""
        self._write(_END)

    def close(self) -> None:
        """Close the pipe; without `end` before, whoever reads finds the archive cut short."""
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
    """The header of a member; the usual ones in a tenth of the time that the library takes."""
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
