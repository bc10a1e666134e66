"""Notes which files of an image are read, in the order of their first reads.

For laying an image out anew: `python -m condainer.fuse` does so where the variable
CONDAINER_FUSE_RECORD names a file, to which it adds the place of each file's inode, in eight bytes,
before that file is read for the first time. What that means:

    python -m condainer.fuse.record RECORD IMAGE

prints the paths of these files, a null byte behind each.
"""

from __future__ import annotations

import os
import struct
import sys
from typing import TYPE_CHECKING

from condainer.fuse.codecs import CodecError
from condainer.fuse.squashfs import DIRECTORY, FormatError, Image
from condainer.fuse.vfs import FileSystem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from condainer.fuse.squashfs import Inode

_PLACE = struct.Struct("<Q")


class Recorder(FileSystem):
    """A file system that notes what is read.

    Args:
        image: what it shows.
        threads: as of any.
        path: of the file that it is noted in; made.

    Raises:
        OSError: where that cannot be written.
    """

    def __init__(self, image: Image, *, threads: int, path: str) -> None:
        super().__init__(image, threads=threads)
        self._seen: set[int] = set()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = os.open(path, flags, 0o600)

    def _read(self, inode: Inode, offset: int, size: int, *, wait: bool) -> list[memoryview] | None:
        if inode.ref not in self._seen:
            self._seen.add(inode.ref)
            os.write(self._file, _PLACE.pack(inode.ref))
        return super()._read(inode, offset, size, wait=wait)


def main(arguments: list[str]) -> int:
    """Run the program.

    Args:
        arguments: of the command line, without the program's name.

    Returns:
        the exit status.
    """
    record, image = arguments
    try:
        with open(record, "rb") as file:  # noqa: PTH123  (pathlib is slow to import)
            noted = file.read()
        descriptor = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
        names = read(noted, FileSystem(Image(descriptor), threads=0))
        sys.stdout.buffer.writelines(name + b"\0" for name in names)
    except OSError as error:
        sys.stderr.write(f"{error.filename or image}: {error.strerror}\n")
        return 1
    except (FormatError, CodecError) as error:
        sys.stderr.write(f"{image}: {error}\n")
        return 1
    return 0


def read(record: bytes, files: FileSystem) -> Iterator[bytes]:
    """The paths of what was read, in that order.

    Args:
        record: what was noted.
        files: what the image holds.

    Raises:
        FormatError: where it is damaged.
    """
    whole = record[: len(record) // _PLACE.size * _PLACE.size]
    seen = dict.fromkeys(ref for (ref,) in _PLACE.iter_unpack(whole))
    names = _names(files, seen)
    return (names[ref] for ref in seen if ref in names)


def _names(files: FileSystem, wanted: dict[int, None]) -> dict[int, bytes]:
    names: dict[int, bytes] = {}
    waiting = [(b"", files.root)]
    while waiting:
        above, directory = waiting.pop()
        for _, entry in files.listing(directory):
            name = above + entry.name
            if entry.kind == DIRECTORY:
                waiting.append((name + b"/", entry.ref))
            elif entry.ref in wanted:
                names[entry.ref] = name
    return names


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
