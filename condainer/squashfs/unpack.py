"""`python -m condainer.squashfs.unpack IMAGE [DIRECTORY]`: unpacks an image without unsquashfs.

Without DIRECTORY it prints how many inodes and how many bytes of files it would make. Everything
belongs to the user who runs it, as with unsquashfs. Devices, pipes and sockets are left out.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from condainer.squashfs.program import with_image
from condainer.squashfs.structures import DIR, REG, SYMLINK
from condainer.squashfs.walking import walk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from condainer.squashfs.inodes import Inode
    from condainer.squashfs.vfs import FileSystem

_CHUNK = 1 << 20
_MADE = {DIR, REG, SYMLINK}
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

    def do(files: FileSystem) -> None:
        if directory:
            unpack(files, os.fsencode(directory[0]))
        else:
            sys.stdout.write("{} {}\n".format(*measure(files)))

    return with_image(image, do, threads=2)


def measure(files: FileSystem) -> tuple[int, int]:
    """The number of inodes that `unpack` makes, and the bytes of all files.

    Args:
        files: the image.

    Raises:
        FormatError: If the image is damaged.
    """
    seen = set()
    size = 0
    for _, inode in _inodes(files):
        if inode.number not in seen and inode.kind in _MADE:
            seen.add(inode.number)
            size += inode.size if inode.kind == REG else 0
    return len(seen), size


def unpack(files: FileSystem, top: bytes) -> None:
    """Unpack all of an image.

    Args:
        files: the image.
        top: the directory to make, or one that is empty.

    Raises:
        OSError: If something cannot be written.
        FormatError: If the image is damaged.
    """
    first: dict[int, Path] = {}
    directories = []
    for name, inode in _inodes(files):
        path = Path(os.fsdecode(top + name))
        if inode.kind == DIR:
            path.mkdir(0o700, exist_ok=not name)
            if name:  # whoever made the topmost one has chosen its mode
                directories.append((path, inode))
        elif inode.number in first:
            os.link(first[inode.number], path, follow_symlinks=False)
        elif inode.kind in _MADE:
            _make(files, inode, path)
            if inode.links > 1:
                first[inode.number] = path
    # Only now, from the deepest on: until then, entries were made in them.
    for path, inode in reversed(directories):
        path.chmod(inode.mode & _KEPT)
        os.utime(path, (inode.mtime, inode.mtime))


def _make(files: FileSystem, inode: Inode, path: Path) -> None:
    if inode.kind == SYMLINK:
        path.symlink_to(os.fsdecode(files.target(inode)))
    else:
        _write(files, inode, path)
    os.utime(path, (inode.mtime, inode.mtime), follow_symlinks=False)


def _inodes(files: FileSystem) -> Iterator[tuple[bytes, Inode]]:
    """All paths with a slash before them, and their inodes; the root has an empty path."""
    yield b"", files.inode(files.root)
    for name, entry in walk(files):
        yield b"/" + name, files.inode(entry.ref)


def _write(files: FileSystem, inode: Inode, path: Path) -> None:
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
