"""Has many programs use one mount of the file system at once, for long.

    python -m tests.endure_fuse [--readers 64] [--seconds 300] [--forget] [-- OPTION...]

Each reader asks for random ranges, whole files, maps, listings, attributes and links, and compares
all of it with the tree that the image was made of; what the kernel keeps of a file it then has
forgotten, so that the next one who asks, asks the file system. Some are killed in the middle of
that. Every second the memory, threads and descriptors of the file system are looked at. A byte that
is not the right one, more memory than allowed, or growth ends the program with a status other than
0.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import os
import random
import signal
import stat
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NamedTuple, NoReturn

from tests import images

RESIDENT = 192 << 20
"""Bytes of memory that the file system may have."""
GROWTH = 8 << 20
"""Bytes that it may have more of in the last quarter of the time than in the second."""
_DROP_CACHES = Path("/proc/sys/vm/drop_caches")
_PATIENCE = 60.0
_SETTLING = 200
"""Samples from which on growth can be told."""
_HOW = ("-comp", "zstd", "-Xcompression-level", "3", "-b", "256K")
_PIECES = 12
_MOST = 1 << 20


class Sample(NamedTuple):
    """What the file system has at some moment.

    Attributes:
        resident: bytes of memory.
        threads: how many.
        descriptors: how many.
    """

    resident: int
    threads: int
    descriptors: int


def make_tree(top: Path) -> None:
    """Files of all sizes, of what compresses and what does not; links and directories."""
    images.make_plain(top)
    chance = random.Random(11)  # noqa: S311
    words = [chance.randbytes(6).hex().encode() for _ in range(3000)]
    for number in range(2000):
        directory = top / "modules" / f"m{number % 40}"
        directory.mkdir(parents=True, exist_ok=True)
        text = b" ".join(chance.choices(words, k=chance.choice((5, 50, 500, 2000))))
        (directory / f"{number}.py").write_bytes(text)
        (directory / f"link{number}").symlink_to(f"{number}.py")
    text = b" ".join(chance.choices(words, k=100_000))
    for number in range(4):
        pieces = (text[chance.randrange(len(text)) :] for _ in range(_PIECES))
        (top / f"library{number}").write_bytes(chance.randbytes(_MOST).join(pieces))


def read_for_ever(tree: Path, mountpoint: Path, seed: int) -> NoReturn:
    """Be a reader, until killed; ends with status 1 where something is not as it should be."""
    chance = random.Random(seed)  # noqa: S311
    status = 1
    try:
        names = [Path(top, name).relative_to(tree) for top, d, f in os.walk(tree) for name in d + f]
        while True:
            name = chance.choice(names)
            compare(tree / name, mountpoint / name, chance)
    except BaseException:  # noqa: BLE001  (shown, and told by the status)
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def compare(expected: Path, actual: Path, chance: random.Random) -> None:
    """See that a file is as it should be, in one of many ways.

    Raises:
        AssertionError: where it is not.
    """
    one, other = expected.lstat(), actual.lstat()
    assert (one.st_mode, one.st_size) == (other.st_mode, other.st_size) or stat.S_ISDIR(one.st_mode)
    assert int(one.st_mtime) == int(other.st_mtime), actual
    if stat.S_ISLNK(one.st_mode):
        assert expected.readlink() == actual.readlink(), actual
    elif stat.S_ISDIR(one.st_mode):
        assert sorted(os.listdir(expected)) == sorted(os.listdir(actual)), actual  # noqa: PTH208
    elif one.st_size:
        with expected.open("rb", buffering=0) as right, actual.open("rb", buffering=0) as file:
            _compare_contents(right.fileno(), file.fileno(), one.st_size, chance)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _compare_contents(right: int, file: int, size: int, chance: random.Random) -> None:
    match chance.randrange(4):
        case 0:
            place = 0
            while (data := os.pread(file, _MOST, place)) or place < size:
                assert data == os.pread(right, len(data), place), place
                assert data, place
                place += len(data)
        case 1:
            with mmap.mmap(file, 0, prot=mmap.PROT_READ) as memory:
                for _ in range(10):
                    place = chance.randrange(size)
                    data = memory[place : place + chance.randrange(50_000)]
                    assert data == os.pread(right, len(data), place), place
        case _:
            for _ in range(10):
                place = chance.randrange(size)
                length = chance.randrange(1, 300_000)
                data = os.pread(file, length, place)
                assert data == os.pread(right, length, place), place


class Daemon:
    """The file system, in the foreground.

    Args:
        image: what it serves.
        mountpoint: where.
        options: of its command line.
    """

    def __init__(self, image: Path, mountpoint: Path, options: list[str]) -> None:
        self.mountpoint = mountpoint
        mountpoint.mkdir(exist_ok=True)
        self.process = subprocess.Popen([*images.FUSE, "-f", *options, image, mountpoint])
        while not images.is_mounted(mountpoint):
            assert self.process.poll() is None, "it cannot be mounted"
            time.sleep(0.02)

    def sample(self) -> Sample:
        """What it has now."""
        resident, threads = (
            images.status_of(self.process.pid, name) for name in ("VmRSS", "Threads")
        )
        descriptors = len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))
        return Sample(resident << 10, threads, descriptors)


def read_everything(top: Path) -> None:
    """Fill the caches, which are to grow no more from then on."""
    for directory, _, names in os.walk(top):
        for name in names:
            path = Path(directory, name)
            if not path.is_symlink() and path.is_file():
                path.read_bytes()


def endure(daemon: Daemon, tree: Path, asked: argparse.Namespace) -> list[Sample]:
    """Let readers read, kill some, and look at the file system once a second."""
    chance = random.Random(1)  # noqa: S311
    readers: set[int] = set()
    samples: list[Sample] = []
    seed = 0
    read_everything(daemon.mountpoint)
    begin = time.monotonic()
    try:
        while (passed := time.monotonic() - begin) < asked.seconds:
            while len(readers) < asked.readers:
                seed += 1
                readers.add(_start(tree, daemon.mountpoint, seed))
            time.sleep(0.1)
            for victim in chance.sample(sorted(readers), max(1, asked.readers // 32)):
                os.kill(victim, signal.SIGKILL)
            _reap(readers)
            if passed > len(samples):
                samples.append(daemon.sample())
                with contextlib.suppress(OSError):  # so that names are asked for again, too
                    _DROP_CACHES.write_text("2") if asked.forget else None
    finally:
        for reader in readers:
            os.kill(reader, signal.SIGKILL)
        _reap(readers, wait=True)
    sys.stdout.write(f"{seed} readers\n")
    return samples


def _start(tree: Path, mountpoint: Path, seed: int) -> int:
    pid = os.fork()
    if pid == 0:
        read_for_ever(tree, mountpoint, seed)
    return pid


def _reap(readers: set[int], *, wait: bool = False) -> None:
    for reader in sorted(readers):
        pid, status = os.waitpid(reader, 0 if wait else os.WNOHANG)
        if pid:
            readers.discard(reader)
            assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, "a reader has failed"


def check(samples: list[Sample]) -> None:
    """See that the file system has had no more than it may, and has not grown.

    Raises:
        AssertionError: where it has.
    """
    resident = [sample.resident for sample in samples]
    quarter = len(samples) // 4
    sys.stdout.write(f"{max(resident) >> 20} MiB at most, ")
    assert max(resident) < RESIDENT, "it has more memory than it may"
    if len(samples) >= _SETTLING:
        parts = [statistics.mean(resident[n * quarter :][:quarter]) for n in range(4)]
        sys.stdout.write(", ".join(f"{part / 2**20:.1f}" for part in parts) + " in each quarter, ")
        assert parts[3] < parts[1] + GROWTH, "it has grown"
        early = max(sample.threads for sample in samples[: 2 * quarter])
        assert samples[-1].threads <= early, "it has more threads"
    descriptors = {sample.descriptors for sample in samples}
    assert len(descriptors) == 1, f"it had {descriptors} descriptors"
    sys.stdout.write(f"{samples[-1].threads} threads, {samples[-1].descriptors} descriptors\n")


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(prog="python -m tests.endure_fuse")
    parser.add_argument("--readers", type=int, default=64)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--forget", action="store_true", help="have the kernel forget names (root)")
    parser.add_argument("--subdir", default="", help="directory of the image that is mounted")
    parser.add_argument("--offset", type=int, default=0, help="bytes before the image")
    parser.add_argument("options", nargs="*", help="of the file system, after --")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cndt-") as directory:
        tree = Path(directory) / "tree"
        make_tree(tree)
        image = images.pack(tree, Path(directory) / "image", *_HOW)
        image.write_bytes(bytes(asked.offset) + image.read_bytes())
        options = [*asked.options, "-o", f"offset={asked.offset}"]
        if asked.subdir:
            options += ["-o", f"subdir={asked.subdir}"]
        daemon = Daemon(image, Path(directory) / "mnt", options)
        try:
            samples = endure(daemon, tree / asked.subdir, asked)
            if not any("timeout=" in option for option in options):
                images.unmount(daemon.mountpoint)
            assert daemon.process.wait(_PATIENCE) == 0
        finally:
            if daemon.process.poll() is None:
                images.unmount(daemon.mountpoint, "-z")
                daemon.process.kill()
        check(samples)


if __name__ == "__main__":
    main()
