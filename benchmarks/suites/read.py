"""How fast files are read from an image: small and large, in order and at random."""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from benchmarks import charts, contenders, host, summary, turns, writing
from benchmarks.contenders import DIRECTORY, EXTRACT
from benchmarks.measure import program
from benchmarks.samples import Figure, Sample, Table
from condainer.units import human

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from benchmarks.contenders import Served
    from benchmarks.samples import Bench

TITLE = "Reading"
ABOUT = """\
All files of a small environment of up to 64 KiB are read whole, in the order of the directories;
some of them at random; all of 1 MiB and more in order; and 4 KiB at random places of these. Each of
these begins with a new mount. In the first table, contenders read the image that a build writes,
with empty page caches where they could be dropped; `extract` is left out, since what it has
unpacked is a directory. In the second one, one file system in user space reads images by
compressor and block size, which are in memory: what differs is decompressing. A cold start is the
import of the heaviest package of that environment right after mounting."""
BASE = DIRECTORY
BASES = (BASE, writing.PLAIN.name)

SMALL, SMALL_RANDOM = "small files in order", "small files at random"
LARGE, LARGE_RANDOM = "large files in order", "4 KiB at random"
START = "cold start"
_UP_TO, _FROM = 64 << 10, 1 << 20
_PIECE, _CHUNK = 4 << 10, 1 << 20
_SEED = 5
_BACKENDS = ("squashfuse_ll", "python", "squashfuse")
"""Those that read images by setting, the first that is there."""
MARGIN_OF_START, SHARE_OF_GZIP = 1.1, 0.2
"""What the default may cost: of the quickest cold start, and of the time gzip takes to write."""


@dataclass(frozen=True)
class Load:
    """What is read.

    Attributes:
        small: paths below the prefix.
        large: likewise, with sizes.
        count: how many at random.
    """

    small: tuple[str, ...]
    large: tuple[tuple[str, int], ...]
    count: int

    def works(self) -> dict[str, Callable[[Path], int]]:
        """What is done at a prefix, each giving the bytes that it has read."""
        rng = random.Random(_SEED)  # noqa: S311  (the same files each time)
        some = rng.choices(self.small, k=self.count)
        weights = [size for _, size in self.large]
        files = rng.choices(self.large, weights, k=self.count)
        places = [(name, rng.randrange(size - _PIECE)) for name, size in files]
        return {
            SMALL: partial(_read_whole, self.small),
            SMALL_RANDOM: partial(_read_whole, some),
            LARGE: partial(_read_whole, [name for name, _ in self.large]),
            LARGE_RANDOM: partial(_read_pieces, places),
        }


def _read_whole(names: Sequence[str], prefix: Path) -> int:
    done = 0
    for name in names:
        with (prefix / name).open("rb", buffering=0) as file:
            while chunk := file.read(_CHUNK):
                done += len(chunk)
    return done


def _read_pieces(places: Sequence[tuple[str, int]], prefix: Path) -> int:
    """Read at places of files, which are open already."""
    names = {name for name, _ in places}
    files = {name: os.open(prefix / name, os.O_RDONLY) for name in names}
    try:
        return sum(len(os.pread(files[name], _PIECE, place)) for name, place in places)
    finally:
        for descriptor in files.values():
            os.close(descriptor)


def measure(bench: Bench) -> Iterator[Sample]:
    """Contenders with the image of a build, then images by setting."""
    load = _load(bench)
    names = [name for name in turns.here(bench) if name != EXTRACT]
    yield from turns.in_turn(bench, names, partial(_contend, bench, load))
    backend = next((name for name in _BACKENDS if name in names), None)
    if backend is None:
        bench.missing["images by setting"] = "there is no file system in user space that mounts"
        return
    settings = {setting.name: setting for setting in writing.settings(bench)}
    yield from turns.in_turn(
        bench,
        settings,
        lambda name, number: _by_setting(bench, load, backend, settings[name], number),
    )


def _load(bench: Bench) -> Load:
    tree = contenders.directory_of(bench.small)
    files = sorted(path for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
    sizes = {str(path.relative_to(tree)): path.stat().st_size for path in files}
    large = tuple((name, size) for name, size in sizes.items() if size >= _FROM)
    small = tuple(name for name, size in sizes.items() if size <= _UP_TO)
    return Load(small, large, 500 if bench.quick else 1000)


def _contend(bench: Bench, load: Load, name: str, number: int) -> Iterator[Sample]:
    """One contender's turn with the image of a build."""
    for work, act in load.works().items():
        with contenders.served(name, bench.small) as served:
            caches = {"page caches": host.drop_caches(contenders.source(name, bench.small))}
            values = _timed(served, act)
        yield Sample("read", work, name, number, values, caches)


def _by_setting(
    bench: Bench, load: Load, backend: str, setting: writing.Setting, number: int
) -> Iterator[Sample]:
    """The same, and a cold start, with an image of some setting, which is in memory."""
    image, seconds = writing.written(bench, setting)
    about = {"file system": backend}
    prefix = bench.small.prefix
    image.read_bytes()
    for work, act in load.works().items():
        with contenders.mounted(backend, image, prefix) as served:
            values = _timed(served, act)
        yield Sample("read", work, setting.name, number, values, about)
    words = [str(prefix / "bin/python"), "-I", "-c", f"import {bench.small.specs[-1]}"]
    with contenders.mounted(backend, image, prefix) as served:
        before = served.cpu()
        wall, cpu = program(words, {"PATH": "/usr/bin:/bin", "HOME": str(bench.small.home)})
        values = {"wall_s": wall, "cpu_s": cpu, "daemon_cpu_s": served.cpu() - before}
    values["image_bytes"] = image.stat().st_size
    if number <= len(seconds):  # `build` has written it once a round; or it was done here, once
        values["write_s"] = seconds[number - 1]
    yield Sample("read", START, setting.name, number, values, about)


def _timed(served: Served, act: Callable[[Path], int]) -> dict[str, float]:
    before, start = served.cpu(), time.perf_counter()
    done = act(served.prefix)
    wall = time.perf_counter() - start
    cpu = served.cpu() - before
    return {"wall_s": wall, "daemon_cpu_s": cpu, "bytes": done, "bytes_per_s": done / wall}


def _split(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Those of contenders, and those by setting."""
    by_setting = [sample for sample in samples if "file system" in sample.settings]
    return [sample for sample in samples if "file system" not in sample.settings], by_setting


def tables(samples: Sequence[Sample]) -> list[Table]:
    """Contenders, and settings."""
    of_contenders, by_setting = _split(samples)
    found = []
    if of_contenders:
        found.append(_contenders_table(of_contenders))
    if by_setting:
        found.append(_settings_table(by_setting))
    return found


def _contenders_table(samples: Sequence[Sample]) -> Table:
    rows = [
        _contenders_row(own, summary.pick(samples, work, BASE))
        for work in summary.works(samples)
        for name in summary.contenders(samples)
        if (own := summary.pick(samples, work, name))
    ]
    columns = ("reading", "from", "time, s", "ratio", "MB/s", "daemon, s")
    return Table("Reading the image of a build", columns, tuple(rows), _caches(samples))


def _contenders_row(own: Sequence[Sample], base: Sequence[Sample]) -> tuple[str, ...]:
    return (
        own[0].work,
        own[0].contender,
        summary.spread(summary.values(own, "wall_s")),
        summary.ratio_text(summary.ratio(own, base, "wall_s")),
        _rate(own),
        summary.number(summary.median(own, "daemon_cpu_s")),
    )


def _caches(samples: Sequence[Sample]) -> str:
    found = " and ".join(sorted({str(sample.settings["page caches"]) for sample in samples}))
    return f"Page caches: {found}. Ratios are to the directory; less is better."


def _rate(samples: Sequence[Sample]) -> str:
    return summary.number(summary.median(samples, "bytes_per_s") / 1e6)


def _settings_table(samples: Sequence[Sample]) -> Table:
    rows = []
    for name in summary.contenders(samples):
        start = summary.pick(samples, START, name)
        if not start:
            continue  # it could not go on
        works = [summary.pick(samples, work, name) for work in _RATES]
        rows.append(
            (
                name,
                human(summary.median(start, "image_bytes")),
                summary.number(summary.median(start, "write_s")),
                summary.spread(summary.values(start, "wall_s")),
                summary.number(summary.median(start, "daemon_cpu_s")),
                *(_rate(own) for own in works),
            )
        )
    columns = ("setting", "image", "written in, s", "cold start, s", "daemon, s", *_RATES.values())
    backend = samples[0].settings["file system"]
    note = f"By {backend}; what is read of small and large files, and 4 KiB of these, in MB/s."
    return Table(
        "By compressor and block size", columns, tuple(rows), f"{note} {_default(samples)}"
    )


_RATES = {SMALL: "small", SMALL_RANDOM: "at random", LARGE: "large", LARGE_RANDOM: "4 KiB"}


def follows(samples: Sequence[Sample]) -> str:
    """The setting that the default ought to be; empty where that cannot be said.

    Of what is written quickly enough and is no larger than with gzip, and starts about as quickly
    as any of that, the smallest.
    """
    starts = {
        name: summary.pick(samples, START, name)
        for name in summary.contenders(summary.pick(samples, START))
    }
    if writing.PLAIN.name not in starts:
        return ""
    plain = starts[writing.PLAIN.name]
    most = {"write_s": SHARE_OF_GZIP * summary.median(plain, "write_s")}
    most["image_bytes"] = summary.median(plain, "image_bytes")
    quick = {
        name: own
        for name, own in starts.items()
        if all(summary.median(own, quantity) <= limit for quantity, limit in most.items())
    }
    if not quick:
        return ""
    best = min(summary.median(own, "wall_s") for own in quick.values()) * MARGIN_OF_START
    good = {name: own for name, own in quick.items() if summary.median(own, "wall_s") <= best}
    return min(good, key=lambda name: summary.median(good[name], "image_bytes"))


def _default(samples: Sequence[Sample]) -> str:
    found = follows(samples)
    if not found:
        return ""
    return (
        f"Of what is written in a fifth of the time of {writing.PLAIN.name} and is no larger, and "
        f"whose cold start is within {MARGIN_OF_START - 1:.0%} of the quickest among that, "
        f"**{found}** is the smallest here. The default is {writing.DEFAULT.name}."
    )


def figures(samples: Sequence[Sample]) -> list[Figure]:
    """Contenders as bars; settings as a cloud."""
    of_contenders, by_setting = _split(samples)
    found = []
    if of_contenders:
        caption = "Bars are medians, lines the least and the most; higher is better."
        draw = partial(_draw_contenders, of_contenders)
        found.append(Figure("read", "Reading right after mounting", caption, draw))
    if summary.pick(by_setting, START):
        caption = (
            "Each point is a setting; lines join the block sizes of one compressor. Further left "
            "is smaller, further down starts sooner. The ring is the default."
        )
        draw = partial(_draw_settings, summary.pick(by_setting, START))
        found.append(Figure("read-settings", "Image size and cold start", caption, draw))
    return found


def _draw_contenders(samples: Sequence[Sample], axes: Axes) -> None:
    works = summary.works(samples)
    found = {
        name: [
            [
                rate / 1e6
                for rate in summary.values(summary.pick(samples, work, name), "bytes_per_s")
            ]
            for work in works
        ]
        for name in summary.contenders(samples)
    }
    charts.logarithmic(axes.yaxis)
    charts.grouped_bars(axes, [_folded(work) for work in works], found)
    axes.set_ylabel("MB/s (logarithmic)")


def _folded(work: str) -> str:
    return work.replace(" files", "\nfiles").replace("4 KiB at", "4 KiB of\nlarge at")


def _draw_settings(samples: Sequence[Sample], axes: Axes) -> None:
    charts.settings_cloud(axes, samples, ("image_bytes", 1e-6), ("wall_s", 1.0))
    axes.set_xlabel("image, MB")
    axes.set_ylabel("cold start, s")
    axes.set_ylim(bottom=0)
