"""Reads SquashFS 4.0 images in Python: a library that depends on nothing else of this project.

What it does: it opens an image, finds files by their paths, lists directories, reads any range of
any file from any number of threads at once, and reads symbolic links and extended attributes. It
knows all six compressions: gzip, lzma, xz and zstd by the modules of Python (zstd by `zstandard`),
lz4 and lzo by their C libraries or, without these, in Python. It does not write images.

    from condainer.squashfs import DIR, REG, opened, walk

    with opened("image.squashfs") as files:
        for path, entry in walk(files):
            print("directory" if entry.kind == DIR else "other", path.decode())
        inode = files.inode(files.resolve(b"etc/hosts"))
        if inode.kind == REG:
            print(b"".join(files.read(inode, 0, inode.size)))

Where to look:

- `opened`, `read_file` (`reading`): an image for a moment.
- `open_image`, `fingerprint` (`file`): the file that an image is in.
- `FileSystem` (`vfs`): names, attributes and contents, with all caches; `walk` (`walking`) goes
through it.
- `Image` (`image`): superblock, blocks, and the tables of inodes, directories and attributes.
- `Superblock`, `read_superblock`, `has_magic` (`superblock`): the head alone, for a quick look.
- `structures`: the numbers and structures of the format, under the kernel's names.

What is bounded, since an image may be hostile: no block is decompressed to more than it may hold,
nothing outside of the image is read, all caches have a limit (64 MiB of decompressed blocks, 32 MiB
of metadata), and a walk ends. An image is not believed: whatever does not fit is a `FormatError`.
Reading a whole file takes as much memory as the file claims to have: `read` takes a range, and
`read_file` a limit.

Errors: `FormatError` for an image that is damaged or none, `CodecError` for a compression that this
machine cannot read, `NotFoundError` and `WrongKindError` for a path; all are `SquashfsError`. An
`OSError` comes from the operating system when it reads the image.

The format: the kernel's Documentation/filesystems/squashfs.rst
(https://docs.kernel.org/filesystems/squashfs.html) and its fs/squashfs/squashfs_fs.h.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from condainer.squashfs.errors import (
        CodecError,
        FormatError,
        NotFoundError,
        SquashfsError,
        WrongKindError,
    )
    from condainer.squashfs.file import fingerprint, open_image
    from condainer.squashfs.image import Image
    from condainer.squashfs.inodes import Inode
    from condainer.squashfs.reading import opened, read_file
    from condainer.squashfs.structures import BLKDEV, CHRDEV, DIR, FIFO, REG, SOCKET, SYMLINK
    from condainer.squashfs.superblock import Superblock, has_magic, read_superblock
    from condainer.squashfs.vfs import FileSystem
    from condainer.squashfs.walking import walk

__all__ = [
    "BLKDEV",
    "CHRDEV",
    "DIR",
    "FIFO",
    "REG",
    "SOCKET",
    "SYMLINK",
    "CodecError",
    "FileSystem",
    "FormatError",
    "Image",
    "Inode",
    "NotFoundError",
    "SquashfsError",
    "Superblock",
    "WrongKindError",
    "fingerprint",
    "has_magic",
    "open_image",
    "opened",
    "read_file",
    "read_superblock",
    "walk",
]

_MODULES = ("errors", "structures", "superblock", "file", "reading", "inodes", "vfs", "walking")
"""Those that hold the names above. Each imports more than those before it."""


def __getattr__(name: str) -> object:
    """A name of the public face, imported when it is first used.

    Looking at a superblock is on the way of each first `exec`, and needs little of all this.
    """
    for module in _MODULES if name in __all__ else ():
        found = vars(importlib.import_module(f"{__name__}.{module}"))
        if name in found:
            globals()[name] = found[name]
            return found[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
