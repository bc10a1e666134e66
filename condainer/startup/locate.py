"""`python -m condainer.startup.locate IMAGE`: where the data of some files lie in an image.

Their paths come from standard input, a null byte between two. It prints the first byte of the
image that they need, and the one behind the last; `0 0` where they need none.
"""

from __future__ import annotations

import sys

from condainer.squashfs import REG, FileSystem, NotFoundError, WrongKindError
from condainer.squashfs.program import with_image

_GAP = 1 << 20
"""Bytes between two files that are read with them: fewer than it takes to go elsewhere."""


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
    """The first byte of the part that files need most of, and the one behind the last.

    The last of the small files may lie far behind, with the end of others.

    Args:
        files: the image.
        paths: of the files; what is no regular file does not count.

    Raises:
        FormatError: where the image is damaged.
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
