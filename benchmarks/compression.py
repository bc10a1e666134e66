"""Writing an image by algorithm, level and block size, and a cold start from it.

    python -m benchmarks.compression [--rounds N] [--starts N]

The default of `condainer.yml` follows from this table. Measured on two cores, 16,552 files and
506 MB, mksquashfs 4.5.1 and squashfuse_ll 0.1.104 (medians; start: import of numpy, scipy, pandas,
matplotlib and scikit-learn right after mounting):

    gzip 128K      27.5 s  154.9 MB
    zstd 3  256K    1.9 s  154.6 MB
    zstd 6  128K    3.5 s  150.0 MB  start 2.93 s  daemon 0.66 s
    zstd 6  256K    3.6 s  147.4 MB  start 2.91 s  daemon 0.70 s
    zstd 6  512K    3.6 s  142.4 MB  start 3.18 s  daemon 0.86 s
    zstd 6  1M      3.3 s  138.1 MB  start 3.31 s  daemon 1.08 s
    zstd 8  256K    4.7 s  143.3 MB
    zstd 15 256K   35.9 s  134.5 MB

Level 6 leaves a margin to a fifth of gzip's time; blocks of 256K are the largest that cost a cold
start nothing.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks import measure, places

_SETTINGS = {
    "gzip 128K": ("-comp", "gzip"),
    **{
        f"zstd {level} {block}": ("-comp", "zstd", "-Xcompression-level", level, "-b", block)
        for level in ("3", "6", "8")
        for block in ("128K", "256K", "512K", "1M")
    },
}
_IMPORTS = "import numpy, scipy.stats, pandas, matplotlib.pyplot, sklearn.ensemble"


def main() -> int:
    """Measure, and print two tables; gives the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compression")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--starts", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cndb-") as name:
        place = places.make(Path(name))
        place.condainer("build", "--installer", "rattler")
        prefix = place.directory / "base" / f"condainer-{place.uuid}"
        tree = _copy(place, prefix)
        images = {
            name: place.directory / f"{name.replace(' ', '-')}.squashfs" for name in _SETTINGS
        }
        writing = {name: partial(_write, tree, images[name], _SETTINGS[name]) for name in _SETTINGS}
        written = measure.alternate(writing, arguments.rounds)
        sys.stdout.write("writing\n" + measure.table(written, written[0]) + "\n")
        starting = {name: partial(_start, images[name], prefix) for name in _SETTINGS}
        started = measure.alternate(starting, arguments.starts)
        sys.stdout.write("cold start\n" + measure.table(started, started[0]) + "\n")
    return 0


def _copy(place: places.Place, prefix: Path) -> Path:
    """The environment as an ordinary directory."""
    tree = place.directory / "tree"
    place.condainer("mount")
    try:
        shutil.copytree(prefix, tree, symlinks=True)
    finally:
        place.condainer("umount")
    return tree


def _write(tree: Path, image: Path, settings: tuple[str, ...]) -> int:
    command = ["mksquashfs", str(tree), str(image), "-noappend", "-no-progress", "-no-xattrs"]
    subprocess.run([*command, *settings], check=True, stdout=subprocess.DEVNULL)
    return image.stat().st_size


def _start(image: Path, prefix: Path) -> int:
    prefix.mkdir(exist_ok=True)
    subprocess.run(["squashfuse_ll", "-o", "ro", str(image), str(prefix)], check=True)
    try:
        subprocess.run([str(prefix / "bin" / "python"), "-I", "-c", _IMPORTS], check=True)
    finally:
        subprocess.run(["umount", str(prefix)], check=True)
        prefix.rmdir()
    return image.stat().st_size


if __name__ == "__main__":
    sys.exit(main())
