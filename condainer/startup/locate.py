"""`python -m condainer.startup.locate IMAGE`: finds the part of an image that holds some files.

It reads the files' paths from standard input, with null bytes between them. It prints the first
byte of the part and the one behind its last; `0 0` if the files have no data in the image.
"""

from __future__ import annotations

import sys

from condainer.squashfs import REG, FileSystem, NotFoundError, WrongKindError
from condainer.squashfs.program import with_image

_GAP = 1 << 20
"""Bytes between two files that are read as well: this takes less time than a jump."""


def main(arguments: list[str]) -> int:
    """Run the program.

    Args:
        arguments: of the command line, without the program's name.

    Returns:
        the exit status.
    """
    (image,) = arguments

    def show(files: FileSystem) -> None:
        start, end = extent(files, sys.stdin.buffer.read().split(b"\0"))
        sys.stdout.write(f"{start} {end}\n")

    return with_image(image, show)


def extent(files: FileSystem, paths: list[bytes]) -> tuple[int, int]:
    """The largest part of the image that holds data of the files with no large gap in between.

    Some of the files' data may lie elsewhere: the ends of files are in fragments that others share.

    Args:
        files: the image.
        paths: of the files; what is no regular file does not count.

    Returns:
        the first byte, and the one behind the last; 0 and 0 if the files have no data.

    Raises:
        FormatError: If the image is damaged.
    """
    found: list[tuple[int, int]] = []
    for path in paths:
        try:
            inode = files.inode(files.resolve(path))
        except (NotFoundError, WrongKindError):
            continue
        if inode.kind == REG:
            found += (extent for extent in files.extents(inode) if extent[0] < extent[1])
    best = run = (0, 0)
    for start, end in sorted(found):
        run = (run[0], max(run[1], end)) if start <= run[1] + _GAP else (start, end)
        best = max(best, run, key=lambda part: part[1] - part[0])
    return best


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
