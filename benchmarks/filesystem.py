"""What serves an image how fast: the kernel, squashfuse_ll, squashfuse, and the one in Python.

    python -m benchmarks.filesystem [--rounds N] [--files N]

Root only, since the kernel's own mount is the measure. The image is in the page cache throughout.
`cpu` is what the daemon used; `MB` is the most memory it had. Ratios are to squashfuse_ll.

Measured on two cores (Linux 6.18, squashfuse 0.1.104, Python 3.11; medians of 3 rounds, other work
beside it), the file system in Python against squashfuse_ll, whose wall time and CPU are 1.00:

    imports, first              0.96 of the wall time, 0.91 of the CPU
    imports, again              0.87, 0.40
    stat of 50,000 files        0.36, 0.24
    read 4 KiB of each          0.24, 0.18
    1 GiB in order              0.92, 0.86

It had 91 to 102 MB at most, with 64 MiB of decompressed blocks. What was tried on the way, for the
imports: 8, 16, 32 and 64 MiB of blocks kept, 1070, 970, 922 and 894 blocks decompressed, of 852
that there are; without reading ahead, the same CPU and a slower large file; one thread only, the
same CPU, but nobody answers while it decompresses.
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

from benchmarks import places

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

IMPORTS = (
    "import numpy, scipy.stats, scipy.optimize, scipy.signal, pandas, matplotlib.pyplot, "
    "sklearn.linear_model, sklearn.ensemble"
)
READERS = 4
DAEMONS = {
    "squashfuse_ll": ["squashfuse_ll", "-f"],
    "squashfuse": ["squashfuse", "-f"],
    "python": [sys.executable, "-m", "condainer.fuse", "-f"],
}
_TICK = os.sysconf("SC_CLK_TCK")


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


def main() -> None:
    """Measure all, in turn within each round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=int, default=50_000, help="small files (default: 50000)")
    arguments = parser.parse_args()
    if os.getuid() != 0:
        parser.error("only root can mount with the kernel")
    names = ["kernel", *(name for name, argv in DAEMONS.items() if shutil.which(argv[0]))]
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
    with mounted(name, place.image, top) as timed:
        for again in ("imports, first", "imports, again"):
            yield again, timed(lambda: subprocess.run(program, env=home, check=True))
    for work, act in (("stat", stat), ("read 4 KiB", read)):
        with mounted(name, many, top) as timed:
            work_on = functools.partial(at_once, act, top, count)
            yield f"{work} of {count:,} files", timed(work_on)
    with mounted(name, many, top) as timed:
        yield "1 GiB in order", timed(lambda: read_whole(top / "large"))


@contextmanager
def mounted(
    name: str, image: Path, mountpoint: Path
) -> Iterator[Callable[[Callable[[], object]], Sample]]:
    """Mount an image; gives what times work on it."""
    mountpoint.mkdir(exist_ok=True)
    image.read_bytes()  # into the page cache
    places_ = [str(image), str(mountpoint)]
    daemon: subprocess.Popen[bytes] | None = None
    if name == "kernel":
        subprocess.run(["mount", "-o", "loop,ro", *places_], check=True)
    else:
        daemon = subprocess.Popen([*DAEMONS[name], *places_])
        while not mountpoint.is_mount():
            time.sleep(0.005)
        next(mountpoint.iterdir())

    def timed(act: Callable[[], object]) -> Sample:
        before, start = cpu_of(daemon), time.perf_counter()
        act()
        wall = time.perf_counter() - start
        return Sample(wall, cpu_of(daemon) - before, memory_of(daemon))

    try:
        yield timed
    finally:
        subprocess.run(["umount", str(mountpoint)], check=True)
        if daemon is not None:
            daemon.wait()


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


def cpu_of(daemon: subprocess.Popen[bytes] | None) -> float:
    """Seconds of user and system time of a daemon."""
    if daemon is None:
        return 0.0
    fields = Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def memory_of(daemon: subprocess.Popen[bytes] | None) -> int:
    """The most memory that a daemon has had."""
    if daemon is None:
        return 0
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def table(samples: dict[tuple[str, str], list[Sample]], names: list[str]) -> str:
    """Medians, and the medians of the ratios round by round."""
    lines = [f"{'':28}{'':15}{'wall s':>8}{'ratio':>7}{'cpu s':>8}{'ratio':>7}{'MB':>6}"]
    for work in dict.fromkeys(work for work, _ in samples):
        base = samples.get((work, "squashfuse_ll"))
        for name in names:
            own = samples[work, name]
            wall = statistics.median(sample.wall for sample in own)
            cpu = statistics.median(sample.cpu for sample in own)
            walls = [a.wall / b.wall for a, b in zip(own, base or own, strict=True)]
            cpus = [a.cpu / b.cpu for a, b in zip(own, base or own, strict=True) if b.cpu]
            lines.append(
                f"{work:28}{name:15}{wall:8.2f}{statistics.median(walls):7.2f}{cpu:8.2f}"
                f"{statistics.median(cpus or [0]):7.2f}{own[-1].memory / 1e6:6.0f}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
