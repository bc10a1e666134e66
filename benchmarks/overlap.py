"""What it saves to compress while packages are still being fetched, and what the way there costs.

    python -m benchmarks.overlap [--rounds N] [--installer NAME] [http|file|hand|jobs|feeder ...]

`http` takes packages from a server on this machine that sends as many bytes a second, to all
together, as make fetching take as long as compressing; `file` from a `file://` channel, and `hand`
compares that with `micromamba create` and `mksquashfs` as it comes. All begin with an empty package
cache. The limit is what it would take if what is done one after the other kept all processors busy
throughout. `jobs` is the time of mksquashfs alone; `feeder` sends files to a
program that only reads.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from benchmarks import byhand, measure, places
from condainer.pipeline.archive import Archive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_CHUNK = 1 << 16
_BEHIND = 0.25
"""Seconds that the server may be behind its rate, and make up for."""
_SMALL_FILES = 20_000
_LARGE = 1 << 30


class Slow(SimpleHTTPRequestHandler):
    """Serves files, to all who ask together at no more than a rate in bytes a second."""

    protocol_version = "HTTP/1.1"
    rate = 0.0
    guard = threading.Lock()
    due = 0.0

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def copyfile(self, source: BinaryIO, target: BinaryIO) -> None:  # type: ignore[override]
        """Send a file in small pieces, each when its time has come."""
        while chunk := source.read(_CHUNK):
            with Slow.guard:
                # What it loses while others have the processors it may make up for.
                Slow.due = max(Slow.due, time.monotonic() - _BEHIND) + len(chunk) / Slow.rate
                due = Slow.due
            time.sleep(max(0.0, due - time.monotonic()))
            target.write(chunk)


def serve(directory: str, rate: str) -> None:
    """In a process of its own: serve, and print the port."""
    Slow.rate = float(rate)
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Slow, directory=directory))
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()


def main() -> int:
    """Measure, and print tables; gives the exit status."""
    if sys.argv[1:2] == ["serve"]:
        serve(*sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overlap")
    parser.add_argument("what", nargs="*", default=["http", "file", "hand", "jobs", "feeder"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--installer", default="rattler")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cndb-") as name:
        place = places.make(Path(name))
        place.condainer("build", "--installer", arguments.installer)
        for what in arguments.what:
            sys.stdout.write(f"{what}\n")
            if what == "feeder":
                sys.stdout.write(feeder(Path(name)))
                continue
            if what == "jobs":
                results = jobs(place, arguments.rounds)
            elif what == "hand":
                results = hand(place, arguments.installer, arguments.rounds)
            else:
                results = builds(place, what, arguments.installer, arguments.rounds)
            sys.stdout.write(measure.table(results, results[0]) + "\n")
    return 0


def builds(place: places.Place, what: str, installer: str, rounds: int) -> list[measure.Result]:
    """Whole builds, one after the other and at once."""
    busy: list[float] = []

    def after() -> int:
        before, begin = _used(), time.perf_counter()
        size = _build(place, installer, "--no-overlap")
        busy.append(
            (_used() - before) / (time.perf_counter() - begin) / len(os.sched_getaffinity(0))
        )
        return size

    contenders = {"one after the other": after, "at once": lambda: _build(place, installer)}
    with contextlib.ExitStack() as stack:
        if what == "http":
            stack.enter_context(_served(place))
        results = measure.alternate(contenders, rounds)
    sys.stdout.write(f"limit: {statistics.median(busy):.2f}\n")
    return results


def hand(place: places.Place, installer: str, rounds: int) -> list[measure.Result]:
    """What one does without condainer, and a build."""
    micromamba, is_real = byhand.micromamba(place.directory)
    if not is_real:
        sys.stdout.write(f"micromamba: {byhand.STAND_IN}\n")

    def make() -> int:
        shutil.rmtree(place.home)
        place.home.mkdir()
        return byhand.make(micromamba, byhand.plain, place).stat().st_size

    contenders = {"create + mksquashfs": make, "condainer": lambda: _build(place, installer)}
    return measure.alternate(contenders, rounds)


def _build(place: places.Place, installer: str, *how: str) -> int:
    shutil.rmtree(place.home)
    place.home.mkdir()
    place.condainer("build", "--force", "--installer", installer, *how)
    return place.image.stat().st_size


def _used() -> float:
    """Seconds of processors that programs have taken which have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextlib.contextmanager
def _served(place: places.Place) -> Iterator[None]:
    """Have the packages come from a server that is as fast as compressing is."""
    packages = sum(path.stat().st_size for path in place.channel.rglob("*.conda"))
    rate = packages / compressing(place)
    sys.stdout.write(f"{packages / 1e6:.0f} MB of packages at {rate / 1e6:.1f} MB/s\n")
    command = [sys.executable, "-m", "benchmarks.overlap", "serve", str(place.channel), str(rate)]
    file = place.project / "environment.yml"
    text = file.read_text()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None  # noqa: S101
            port = server.stdout.readline().strip()
            file.write_text(text.replace(f"file://{place.channel}", f"http://127.0.0.1:{port}"))
            yield
        finally:
            file.write_text(text)
            server.kill()


def tree(place: places.Place) -> Path:
    """What is in the image, unpacked."""
    top = place.directory / "tree"
    if not top.exists():
        command = ["unsquashfs", "-quiet", "-no-progress", "-dest", str(top), str(place.image)]
        subprocess.run(command, check=True)
    return top


def compress(place: places.Place, processors: int) -> int:
    """What a build does, after all is installed."""
    image = place.directory / "again.squashfs"
    how = ("-comp", "zstd", "-Xcompression-level", "6", "-b", "256K", "-quiet", "-no-progress")
    few = ("-noappend", "-processors", str(processors))
    subprocess.run(["mksquashfs", str(tree(place)), str(image), *how, *few], check=True)
    return image.stat().st_size


def compressing(place: places.Place) -> float:
    """Seconds that compressing takes alone."""
    results = measure.alternate({"alone": lambda: compress(place, os.cpu_count() or 1)}, 3)
    return results[0].median


def jobs(place: places.Place, rounds: int) -> list[measure.Result]:
    """Compressing with one processor, and with two."""
    contenders = {f"{n} processors": functools.partial(_bound, place, n) for n in (1, 2)}
    return measure.alternate(contenders, rounds)


def _bound(place: places.Place, processors: int) -> int:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:processors])
    try:
        return compress(place, processors)
    finally:
        os.sched_setaffinity(0, allowed)


def feeder(directory: Path) -> str:
    """Files and bytes a second."""
    small = directory / "small"
    small.mkdir()
    for number in range(_SMALL_FILES):
        (small / str(number)).write_bytes(os.urandom(3000))
    large = directory / "large"
    with large.open("wb") as file:
        for _ in range(_LARGE >> 20):
            file.write(os.urandom(1 << 20))
    files = _timed(lambda archive: _send_all(archive, small))
    whole = _timed(lambda archive: archive.add("large", str(large), large.lstat(), 0))
    return f"{_SMALL_FILES / files:,.0f} files/s, {_LARGE / whole / 1e6:,.0f} MB/s\n"


def _send_all(archive: Archive, directory: Path) -> None:
    for entry in os.scandir(directory):
        archive.add(entry.name, entry.path, entry.stat(follow_symlinks=False), 0)


def _timed(work: Callable[[Archive], None]) -> float:
    reader, writer = os.pipe()
    command = ["dd", "of=/dev/null", "bs=1M", "status=none"]
    with subprocess.Popen(command, stdin=reader):
        os.close(reader)
        archive = Archive(writer)
        start = time.perf_counter()
        work(archive)
        archive.close()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
