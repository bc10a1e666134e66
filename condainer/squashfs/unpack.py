"""`python -m condainer.squashfs.unpack IMAGE [DIRECTORY]`: unpacks where there is no unsquashfs.

Without DIRECTORY it says how many inodes and bytes of files the image holds. Owners are those of
whoever runs it, as with unsquashfs; devices, pipes and sockets are left out.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from condainer.squashfs import image, reading, vfs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from condainer.squashfs.image import Inode

_CHUNK = 1 << 20
_KEPT = 0o755
"""Permissions: no setuid, setgid or sticky bit, and nobody but the owner writes."""


def main(arguments: list[str]) -> int:
    """Run the program.

    Args:
        arguments: of the command line, without the program's name.

    Returns:
        the exit status.
    """
    image, *directory = arguments

    def do(files: vfs.FileSystem) -> None:
        if directory:
            unpack(files, os.fsencode(directory[0]))
        else:
            sys.stdout.write("{} {}\n".format(*measure(files)))

    return reading.with_image(image, do, threads=2)


def measure(files: vfs.FileSystem) -> tuple[int, int]:
    """The number of inodes that `unpack` makes, and the bytes of all files."""
    seen = set()
    size = 0
    for _, inode in walk(files):
        if inode.number not in seen and inode.kind in _MADE:
            seen.add(inode.number)
            size += inode.size if inode.kind == image.REGULAR else 0
    return len(seen), size


def unpack(files: vfs.FileSystem, top: bytes) -> None:
    """Unpack all of an image.

    Args:
        files: the image.
        top: the directory to make, or one that is empty.

    Raises:
        OSError: where something cannot be written.
        FormatError: where the image is damaged.
        CodecError: where a block is.
    """
    first: dict[int, Path] = {}
    directories = []
    for name, inode in walk(files):
        path = Path(os.fsdecode(top + name))
        if inode.number in first:
            os.link(first[inode.number], path, follow_symlinks=False)
            continue
        if inode.kind == image.DIRECTORY:
            path.mkdir(0o700, exist_ok=not name)
            if name:  # the topmost is as whoever made it wants it
                directories.append((path, inode))
            continue
        if inode.kind == image.LINK:
            path.symlink_to(os.fsdecode(files.target(inode)))
        elif inode.kind == image.REGULAR:
            _write(files, inode, path)
        else:
            continue
        if inode.links > 1:
            first[inode.number] = path
        os.utime(path, (inode.mtime, inode.mtime), follow_symlinks=False)
    for path, inode in reversed(directories):
        path.chmod(inode.mode & _KEPT)
        os.utime(path, (inode.mtime, inode.mtime))


def walk(files: vfs.FileSystem) -> Iterator[tuple[bytes, Inode]]:
    """All paths of an image, a directory before what is in it, each with its inode."""
    yield b"", files.inode(files.root)
    for name, entry in files.walk():
        yield b"/" + name, files.inode(entry.ref)


def _write(files: vfs.FileSystem, inode: Inode, path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.ftruncate(descriptor, inode.size)  # what is not written is a hole, as in the image
        for offset in range(0, inode.size, _CHUNK):
            data = b"".join(files.read(inode, offset, _CHUNK))
            if data.count(0) != len(data):
                os.pwrite(descriptor, data, offset)
        os.fchmod(descriptor, inode.mode & _KEPT)
    finally:
        os.close(descriptor)


_MADE = {image.DIRECTORY, image.LINK, image.REGULAR}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
