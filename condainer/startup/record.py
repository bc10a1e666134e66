"""Records which files of an image are read, in the order of their first reads.

`condainer profile` uses it. If the variable CONDAINER_FUSE_RECORD names a file, `python -m
condainer.fuse` appends to it the reference of each inode that is read for the first time, in eight
bytes. `python -m condainer.startup.record RECORD IMAGE` prints the paths of these files, with a
null byte behind each.
"""

from __future__ import annotations

import os
import struct
import sys
from typing import TYPE_CHECKING

from condainer.squashfs import FileSystem, walk
from condainer.squashfs.program import with_image

if TYPE_CHECKING:
    from collections.abc import Iterator

    from condainer.squashfs import Image, Inode

_REFERENCE = struct.Struct("<Q")


class Recorder(FileSystem):
    """A file system that records what is read.

    Args:
        image: an open one.
        threads: how many may decompress ahead of a program that reads in order.
        path: of the file to write to; it is made if it is missing.

    Raises:
        OSError: If that cannot be written.
    """

    def __init__(self, image: Image, *, threads: int, path: str) -> None:
        super().__init__(image, threads=threads)
        self._seen: set[int] = set()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = os.open(path, flags, 0o600)

    def _read(self, inode: Inode, offset: int, size: int, *, wait: bool) -> list[memoryview] | None:
        if inode.ref not in self._seen:
            self._seen.add(inode.ref)
            os.write(self._file, _REFERENCE.pack(inode.ref))
        return super()._read(inode, offset, size, wait=wait)


def main(arguments: list[str]) -> int:
    """Run the program.

    Args:
        arguments: of the command line, without the program's name.

    Returns:
        the exit status.
    """
    record, image = arguments

    def show(files: FileSystem) -> None:
        with open(record, "rb") as file:  # noqa: PTH123  (pathlib is slow to import)
            noted = file.read()
        sys.stdout.buffer.writelines(name + b"\0" for name in read(noted, files))

    return with_image(image, show)


def read(record: bytes, files: FileSystem) -> Iterator[bytes]:
    """The paths of what was read, in that order.

    Args:
        record: what `Recorder` has written.
        files: the image.

    Raises:
        FormatError: If the image is damaged.
    """
    whole = record[: len(record) // _REFERENCE.size * _REFERENCE.size]
    seen = dict.fromkeys(ref for (ref,) in _REFERENCE.iter_unpack(whole))
    names = _names(files, seen)
    return (names[ref] for ref in seen if ref in names)


def _names(files: FileSystem, wanted: dict[int, None]) -> dict[int, bytes]:
    """The paths of some inodes; of a file with several names, the last one."""
    return {entry.ref: name for name, entry in walk(files) if entry.ref in wanted}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
