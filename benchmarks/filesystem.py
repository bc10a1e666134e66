"""What serves an image how fast: the kernel, squashfuse_ll, squashfuse, and the one in Python.

    python -m benchmarks.filesystem [--rounds N] [--files N]

Root only, since the kernel's own mount is the measure. The image is in the page cache throughout.
`cpu` is what the daemon used; `MiB` is the most memory it had until then. Ratios are to
squashfuse_ll.

Measured on two cores (Linux 6.18, squashfuse 0.1.104, Python 3.11; medians of 5 rounds, hardly
anything beside it), wall time and CPU of the daemon against those of squashfuse_ll, which are 1.00:

                                python      squashfuse    kernel
    imports, first              0.74, 0.65  1.09, 1.66    0.72
    imports, again              0.82, 0.33  1.44, 5.89    0.75
    stat of 50,000 files        0.30, 0.20  1.34, 1.34    2.48
    read 4 KiB of each          0.20, 0.16  1.32, 1.33    1.12
    1 GiB in order              0.81, 0.89  0.86, 0.83    0.81
    and all other files         0.23, 0.17  1.55, 1.57    1.34

The first imports vary most: runs of 10 rounds of those alone gave 0.97, 0.90 and 0.99, 0.95.

The imports again take 1.09 to 1.13 of what they take on the kernel's mount. All of that is 1,517
requests of the kind IOCTL: `open` of a Python before 3.14 asks of each file whether it is a
terminal, which the kernel passes on, each time, whatever a file system says, 60 microseconds each
here (on squashfuse_ll 64). With an `isatty` that does not ask, put before the C library's, the
same imports take 1.005 of what they take on the kernel's mount, and on squashfuse_ll 1.12.

From its start to a live mount of 50,000 files it takes 0.03 s and has 13 MiB then (squashfuse_ll
below 0.01); 147 MiB after all has been read, with 64 MiB of decompressed blocks. To open that image
takes 0.003 s and, with all imports, 3 MiB. The contender `fusepy` takes 0.5 s and 71 MiB:
PySquashfsImage reads every inode, two thirds of the time in `_read_inode` and what that calls.

What the own reader and protocol gain over the two libraries (20,000 files, medians of 3 rounds):

                                python      fusepy
    stat of 20,000 files        0.45, 0.38  1.09, 1.40
    read 4 KiB of each          0.46, 0.43  1.25, 1.41
    1 GiB in order              0.63, 0.90  0.67, 1.15
    and all other files         0.36, 0.27  0.68, 1.30

What was tried on the way, for the imports: 8, 16, 32 and 64 MiB of blocks kept, 1070, 970, 922 and
894 blocks decompressed, of 852 that there are; without reading ahead, the same CPU and a slower
large file; one thread only, the same CPU, but nobody answers while it decompresses; without
READDIRPLUS, 1.10 times the CPU; without the collection of cycles, 0.97; with 50 or 0.2 ms between
the turns of threads, 1.00. Of its CPU there decompressing is four tenths, the system calls for
7,600 requests a quarter.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import contenders, places

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.contenders import Served

IMPORTS = (
    "import numpy, scipy.stats, scipy.optimize, scipy.signal, pandas, matplotlib.pyplot, "
    "sklearn.linear_model, sklearn.ensemble"
)
READERS = 4


@dataclass(frozen=True)
class Sample:
    """What one piece of work took.

    Attributes:
        wall: seconds.
        cpu: seconds of the daemon's processors.
        memory: bytes, the most that the daemon has had so far.
    """

    wall: float
    cpu: float
    memory: int


def sample(served: Served, wall: float, cpu_before: float = 0.0) -> Sample:
    """What something has taken that is over now."""
    return Sample(wall, served.cpu() - cpu_before, served.memory())


def timed(served: Served, act: Callable[[], object]) -> Sample:
    """Do some work on a mount."""
    before, start = served.cpu(), time.perf_counter()
    act()
    return sample(served, time.perf_counter() - start, before)


def main() -> None:
    """Measure all, in turn within each round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=int, default=50_000, help="small files (default: 50000)")
    arguments = parser.parse_args()
    if os.getuid() != 0:
        parser.error("only root can mount with the kernel")
    wanted = [contenders.KERNEL, *contenders.DAEMONS]
    names = [name for name in wanted if not contenders.why_not(name)]
    with tempfile.TemporaryDirectory(prefix="cndb-") as directory:
        place = places.make(Path(directory))
        place.condainer("build", "-q")
        many = make_many(Path(directory), arguments.files)
        samples: dict[tuple[str, str], list[Sample]] = {}
        for number in range(arguments.rounds):
            for name in names:
                sys.stderr.write(f"round {number + 1}: {name}\n")
                for work, sample in measure(name, place, many, arguments.files):
                    samples.setdefault((work, name), []).append(sample)
    sys.stdout.write(table(samples, names) + "\n")


def make_many(directory: Path, count: int) -> Path:
    """An image of many small files, and of one of 1 GiB that half compresses."""
    rng = random.Random(3)  # noqa: S311  (the same files each time)
    words = [rng.randbytes(6).hex().encode() for _ in range(3000)]
    top = directory / "many"
    for number in range(count):
        path = small(top, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b" ".join(rng.choices(words, k=rng.choice([10, 50, 200, 600, 1500]))))
    with (top / "large").open("wb") as file:
        for _ in range(1024):
            text = b" ".join(rng.choices(words, k=9000)) + rng.randbytes(200_000)
            file.write(text.ljust(1 << 20, b"\0")[: 1 << 20])
    image = directory / "many.squashfs"
    how = ("-comp", "zstd", "-Xcompression-level", "6", "-b", "256K", "-quiet", "-no-progress")
    subprocess.run(["mksquashfs", str(top), str(image), *how], check=True)
    shutil.rmtree(top)
    return image


def small(top: Path, number: int) -> Path:
    """One of the small files: 700 in a directory."""
    return top / f"lib/d{number // 700}/module_{number}.py"


def measure(name: str, place: places.Place, many: Path, count: int) -> Iterator[tuple[str, Sample]]:
    """All work with one contender; each begins with a new mount."""
    top = place.prefix
    program = [str(top / "bin/python"), "-c", IMPORTS]
    home = {"PATH": "/usr/bin:/bin", "HOME": str(place.home)}
    with mounted(name, place.image, top) as served:
        for work in ("imports, first", *["imports, again"] * 3):
            yield work, timed(served, lambda: subprocess.run(program, env=home, check=True))
    for work, act in (("stat", stat), ("read 4 KiB", read)):
        with mounted(name, many, top) as served:
            yield f"start with {count:,} files", sample(served, served.start)
            work_on = functools.partial(at_once, act, top, count)
            yield f"{work} of {count:,} files", timed(served, work_on)
    with mounted(name, many, top) as served:
        yield f"start with {count:,} files", sample(served, served.start)
        yield "1 GiB in order", timed(served, lambda: read_whole(top / "large"))
        work_on = functools.partial(at_once, read_whole, top, count)
        yield "and all other files", timed(served, work_on)


@contextmanager
def mounted(name: str, image: Path, mountpoint: Path) -> Iterator[Served]:
    """Mount an image that is in the page cache."""
    image.read_bytes()
    with contenders.mounted(name, image, mountpoint) as served:
        yield served


def at_once(act: Callable[[Path], None], top: Path, count: int) -> None:
    """Several processes, each with its part of the small files."""
    share = -(-count // READERS)
    processes = [
        multiprocessing.Process(target=each, args=(act, top, range(n, min(n + share, count))))
        for n in range(0, count, share)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def each(act: Callable[[Path], None], top: Path, numbers: range) -> None:
    """One process's part."""
    for number in numbers:
        act(small(top, number))


def stat(path: Path) -> None:
    """Look at a file."""
    os.stat(path)  # noqa: PTH116


def read(path: Path) -> None:
    """Read the beginning of a file."""
    descriptor = os.open(path, os.O_RDONLY)
    os.read(descriptor, 4096)
    os.close(descriptor)


def read_whole(path: Path) -> None:
    """Read a file in order."""
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 20):
            pass


def table(samples: dict[tuple[str, str], list[Sample]], names: list[str]) -> str:
    """Medians, and the medians of the ratios round by round."""
    lines = [f"{'':28}{'':15}{'wall s':>8}{'ratio':>7}{'cpu s':>8}{'ratio':>7}{'MiB':>6}"]
    for work in dict.fromkeys(work for work, _ in samples):
        base = samples.get((work, "squashfuse_ll"))
        for name in names:
            own = samples[work, name]
            wall = statistics.median(sample.wall for sample in own)
            cpu = statistics.median(sample.cpu for sample in own)
            walls = [a.wall / b.wall for a, b in zip(own, base or own, strict=True)]
            cpus = [a.cpu / b.cpu for a, b in zip(own, base or own, strict=True) if b.cpu]
            memory = max(sample.memory for sample in own) / 2**20
            lines.append(
                f"{work:28}{name:15}{wall:8.2f}{statistics.median(walls):7.2f}{cpu:8.2f}"
                f"{statistics.median(cpus or [0]):7.2f}{memory:6.0f}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
