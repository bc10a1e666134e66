"""Notes which files of an image are read, in the order of their first reads.

For laying an image out anew: `python -m condainer.fuse` does so where the variable
CONDAINER_FUSE_RECORD names a file, and writes their paths there when it ends, a null byte behind
each.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from condainer.fuse.squashfs import DIRECTORY
from condainer.fuse.vfs import FileSystem

if TYPE_CHECKING:
    from condainer.fuse.squashfs import Image, Inode


class Recorder(FileSystem):
    """A file system that remembers what was read; its arguments are those of any."""

    def __init__(self, image: Image, *, threads: int) -> None:
        super().__init__(image, threads=threads)
        self._seen: dict[int, None] = {}

    def _read(self, inode: Inode, offset: int, size: int, *, wait: bool) -> list[memoryview] | None:
        self._seen.setdefault(inode.ref)
        return super()._read(inode, offset, size, wait=wait)

    def write(self, path: str) -> None:
        """Write the paths of what was read.

        Raises:
            OSError: where that cannot be done.
            FormatError: where the image is damaged.
        """
        names: dict[int, bytes] = {}
        waiting = [(b"", self.root)]
        while waiting:
            above, directory = waiting.pop()
            for _, entry in self.listing(directory):
                name = above + entry.name
                if entry.kind == DIRECTORY:
                    waiting.append((name + b"/", entry.ref))
                elif entry.ref in self._seen:
                    names[entry.ref] = name
        with open(f"{path}.part", "wb") as file:  # noqa: PTH123  (pathlib is slow to import)
            file.writelines(names[ref] + b"\0" for ref in self._seen if ref in names)
        os.replace(f"{path}.part", path)  # noqa: PTH105
