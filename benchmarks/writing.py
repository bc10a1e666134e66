"""Images of the small environment, by compressor, level and block size.

An image that is asked for is written if it is not there yet: `build` measures writing, `read`
reading, also from what `build` has left.

The default of `condainer.yml` follows from such a table. Of 16,552 files and 506 MB, on two cores,
with mksquashfs 4.5.1 and squashfuse_ll 0.1.104 (medians; start: import of numpy, scipy, pandas,
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

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks import contenders
from benchmarks.measure import program
from condainer.system.tools import find_mksquashfs

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from benchmarks.samples import Bench

BLOCKS = (128, 256, 512, 1024)
"""KiB; the first is what mksquashfs takes where nothing is said."""


@dataclass(frozen=True)
class Setting:
    """How an image is compressed.

    Attributes:
        compressor: with the level, where it has some: "gzip", "zstd 6".
        block: KiB.
    """

    compressor: str
    block: int

    @property
    def name(self) -> str:
        """For people, and for files."""
        return f"{self.compressor}, {self.block} KiB"

    @classmethod
    def parse(cls, name: str) -> Setting:
        """The setting of that name."""
        compressor, _, block = name.rpartition(", ")
        return cls(compressor, int(block.removesuffix(" KiB")))

    @property
    def arguments(self) -> list[str]:
        """Of mksquashfs."""
        algorithm, _, level = self.compressor.partition(" ")
        words = ["-comp", algorithm, "-b", f"{self.block}K"]
        return [*words, "-Xcompression-level", level] if level else words


DEFAULT = Setting("zstd 6", 256)
"""What `condainer.yml` has where nothing is said."""
PLAIN = Setting("gzip", 128)
"""What mksquashfs does where nothing is said."""

COMPRESSORS = ("gzip", "xz", "lzo", "lz4", "zstd 3", "zstd 6", "zstd 15")
_QUICK = ("gzip", "lz4", "zstd 6")
_EACH_BLOCK = ("gzip", "lz4", "zstd 6")
"""Those of which all block sizes are looked at; of the others, one."""


def settings(bench: Bench) -> list[Setting]:
    """Those that are looked at; compressors that mksquashfs does not have are noted as missing."""
    compressors = _QUICK if bench.quick else COMPRESSORS
    there = find_mksquashfs().compressors
    for compressor in compressors:
        if compressor.split()[0] not in there:
            bench.missing[f"images with {compressor}"] = "mksquashfs was built without it"
    if bench.quick:
        wanted = [PLAIN, *(Setting(compressor, DEFAULT.block) for compressor in compressors[1:])]
    else:
        wanted = [Setting(compressor, DEFAULT.block) for compressor in compressors]
        wanted += [Setting(compressor, block) for compressor in _EACH_BLOCK for block in BLOCKS]
    found = dict.fromkeys(setting for setting in wanted if setting.compressor.split()[0] in there)
    return sorted(found, key=lambda setting: (compressors.index(setting.compressor), setting.block))


def write(bench: Bench, setting: Setting) -> Mapping[str, float]:
    """Write an image of the small environment as a build does; what it took, and its size."""
    path = _path(bench, setting)
    path.parent.mkdir(exist_ok=True)
    tree = contenders.directory_of(bench.small)
    words = ["mksquashfs", str(tree), str(path), "-noappend", "-no-progress", "-quiet"]
    more = ["-all-root", "-no-xattrs", "-processors", str(len(os.sched_getaffinity(0)))]
    wall, cpu = program([*words, *more, *setting.arguments])
    with path.with_suffix(".seconds").open("a") as seconds:
        seconds.write(f"{wall}\n")
    return {"wall_s": wall, "cpu_s": cpu, "bytes": float(path.stat().st_size)}


def written(bench: Bench, setting: Setting) -> tuple[Path, list[float]]:
    """An image, and the seconds that it took each time when it was written."""
    path = _path(bench, setting)
    if not path.with_suffix(".seconds").exists():
        bench.on_note(f"writing the image with {setting.name}")
        write(bench, setting)
    return path, [float(line) for line in path.with_suffix(".seconds").read_text().splitlines()]


def _path(bench: Bench, setting: Setting) -> Path:
    return bench.directory / "images" / f"{setting.name}.squashfs"
