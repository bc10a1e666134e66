"""What programs see of large trees, as the kernel shows them and as the file system in Python does.

    python -m tests.compare_fuse                             20,000 names, all that there are below
    python -m tests.compare_fuse --names 200000 zstd/64K lzma/1M     more, of these images only

Takes minutes to hours, and is for changes that the tests may be too small for. Only root can have
the kernel mount an image; it has no lzma, for which an image of the same tree by gzip stands.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import stat
import sys
import tempfile
import time
from pathlib import Path

from tests import images

BLOCKS = ("4K", "64K", "256K", "1M")
LAYOUTS = tuple(f"{name}/{block}" for name in images.COMPRESSORS for block in BLOCKS)
_DIRECTORIES = 100
"""Names for each directory, on average."""


class Planter:
    """Makes a tree at random, the same one each time.

    Args:
        top: its root.
        seed: of chance.
    """

    def __init__(self, top: Path, seed: int) -> None:
        self._top = top
        self._chance = random.Random(seed)  # noqa: S311
        self._files = [os.fsencode(top / "hard")]
        self._contents = [self._chance.randbytes(6000) for _ in range(50)]

    def plant(self, names: int) -> None:
        """Make the tree: every kind, one directory with a tenth of all names, and many others."""
        images.make_every_kind(self._top)
        top = os.fsencode(self._top)
        wide = top + b"/wide"
        os.mkdir(wide)  # noqa: PTH102  (any bytes)
        for number in range(names // 10):
            self._make(wide, number)
        directories = [top]
        for number in range(names - names // 10):
            if number % _DIRECTORIES == 0:
                parent = self._chance.choice(directories[-20:])
                directories.append(parent + b"/D%d" % number)
                os.mkdir(directories[-1])  # noqa: PTH102
                self._dress(directories[-1])
            self._make(self._chance.choice(directories[-3:]), number)

    def _make(self, directory: bytes, number: int) -> None:
        path = directory + b"/" + self._name(number)
        kind = self._chance.random()
        if kind < 0.80:
            self._write(path, is_large=kind < 0.001)
            self._files.append(path)
        elif kind < 0.88:
            os.symlink(b"t" * self._chance.choice((1, 20, 300, 4000)), path)  # noqa: PTH211
        elif kind < 0.94:
            os.link(self._chance.choice(self._files), path)
            return
        else:
            kinds = (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
            device = os.makedev(self._chance.randrange(4096), self._chance.randrange(1 << 20))
            os.mknod(path, self._chance.choice(kinds), device)
        self._dress(path)

    def _name(self, number: int) -> bytes:
        if number % 50:
            return b"%d-%s" % (number, b"n" * self._chance.randrange(20))
        strange = self._chance.randbytes(self._chance.randrange(230))
        return b"%d-%s" % (number, strange.replace(b"/", b"").replace(b"\0", b""))

    def _write(self, path: bytes, *, is_large: bool) -> None:
        with open(path, "wb") as file:  # noqa: PTH123
            if not is_large:
                content = self._chance.choice(self._contents)
                start = self._chance.randrange(0, 5000, 1000)
                file.write(content[start : self._chance.randrange(6000)])
                return
            for _ in range(self._chance.randrange(1, 8)):
                file.seek(self._chance.randrange(1 << 21), os.SEEK_CUR)
                file.write(self._chance.choice(self._contents) * self._chance.randrange(1, 90))
            file.truncate(file.tell() + self._chance.choice((0, 1, 1 << 20)))

    def _dress(self, path: bytes) -> None:
        """Modes, owners, times, and extended attributes."""
        chance = self._chance
        if chance.random() < 0.1:
            value = b"v" * chance.choice((0, 1, 30, 600))
            os.setxattr(path, "trusted.same", value, follow_symlinks=False)
            if chance.random() < 0.5:
                number = b"%d" % chance.randrange(1 << 30)
                os.setxattr(path, "security.number", number, follow_symlinks=False)
        if chance.random() < 0.2:
            os.chown(path, chance.randrange(9) << 28, chance.randrange(5000), follow_symlinks=False)
        if not os.path.islink(path):  # noqa: PTH114
            os.chmod(path, chance.randrange(1 << 12))  # noqa: PTH101
        when = chance.randrange(1 << 32)
        os.utime(path, (when, when), follow_symlinks=False)


def compare(tree: Path, layout: str, directory: Path) -> list[str]:
    """The differences between both mounts of an image of a tree."""
    name, block = layout.split("/")
    image = directory / f"{name}-{block}.squashfs"
    images.pack(tree, image, "-comp", name, "-b", block)
    known = image
    if name == "lzma":
        known = images.pack(tree, directory / "known.squashfs", "-comp", "gzip", "-b", block)
    with (
        images.loop_mounted(known, directory / "kernel") as kernel,
        images.served(image, directory / "fuse") as fuse,
    ):
        found = images.differences(kernel, fuse, closely=True)
        if known == image and images.totals(kernel) != images.totals(fuse):
            found.append("the totals differ")
        (daemon,) = images.daemons(fuse)
        _say(f"{layout}: {len(found)} differences, {images.status_of(daemon, 'VmHWM')} KiB at most")
    image.unlink()
    known.unlink(missing_ok=True)
    return found


def _say(text: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()


def main() -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(prog="python -m tests.compare_fuse")
    parser.add_argument("--names", type=int, default=20_000, help="in the tree")
    parser.add_argument("--seed", type=int, default=1, help="of chance")
    parser.add_argument("layouts", nargs="*", metavar="COMPRESSOR/BLOCK")
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="compare-fuse-"))
    status = 0
    try:
        tree = directory / "tree"
        Planter(tree, arguments.seed).plant(arguments.names)
        for layout in arguments.layouts or LAYOUTS:
            for difference in compare(tree, layout, directory)[:20]:
                _say(f"  {difference}")
                status = 1
    finally:
        shutil.rmtree(directory)
    return status


if __name__ == "__main__":
    sys.exit(main())
