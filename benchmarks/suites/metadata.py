"""The load that hurts parallel file systems: many small operations, from many processes at once.

Three parts: processes that go through files (`crowd`), ranks that start Python together, and what
of a start reaches the file system below, counted by `layer`. What a slow file system makes of the
latter is the business of `parallel`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import charts, contenders, host, layer, style, summary, turns
from benchmarks.contenders import DIRECTORY, EXTRACT
from benchmarks.measure import program
from benchmarks.samples import Figure, Sample, Table
from benchmarks.suites.startup import IMPORTS, QUICK
from condainer.units import human

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from matplotlib.axes import Axes

    from benchmarks.places import Place
    from benchmarks.samples import Bench

TITLE = "Metadata"
ABOUT = """\
An environment is a hundred thousand small files, and what a shared file system suffers from is not
their content but the questions about them. Here processes stat, open, read and close files of the
environment, each its share; ranks on one node start Python together; and what of one start reaches
the host's file system is counted, by a file system that lies below the plain directory, or below
the image, and passes everything on. A look-up or an opening that the kernel answers by itself is
not in that count. It is the figure that does not depend on the machine: each of these operations
is one that a metadata server has to answer, times the number of nodes."""

BASES = (DIRECTORY,)
CROWD = Path(__file__).parent.parent / "crowd.py"
NUMPY = IMPORTS["numpy"]
WORKS = {**IMPORTS, **QUICK}
STARTS = ("bare Python", "numpy", "everything")
"""Those that are counted; in a hurry those that startup has then."""
_WALK, _TOGETHER, _COUNT = "go through files", f"{NUMPY}, together", "reaches the file system"
_KINDS = ("lookup", "getattr", "open", "opendir", "readdir", "readlink")
_UNPACKED = {DIRECTORY, EXTRACT}
"""Whose files lie there as they are: nothing is forgotten by mounting again."""
_COUNTED = 2
"""Rounds in which is counted: more of them tell nothing else."""
_MICRO = 1e6


def measure(bench: Bench) -> Iterator[Sample]:
    """All three, of all contenders in turn."""
    names = turns.here(bench)
    if bench.quick and EXTRACT in names:
        names.remove(EXTRACT)
        bench.missing[f"{EXTRACT}, in metadata"] = "unpacking takes too long for --quick"
    files = _files(contenders.directory_of(bench.place), 300 if bench.quick else 4000)
    bench.on_note("doing everything once, for what programs and disks keep from first use")
    with contenders.served(DIRECTORY, bench.place) as found:
        _walk(found.prefix, files=files, count=1)
        _python(bench.place, WORKS[_starts(DIRECTORY, quick=bench.quick)[-1]])
    yield from turns.in_turn(bench, names, partial(_turn, bench, files))


def _files(top: Path, count: int) -> list[str]:
    """Names of some of the files below a directory, always the same ones, as they lie there."""
    names = sorted(
        os.path.relpath(Path(directory) / name, top)
        for directory, _, files in os.walk(top)
        for name in files
        if (Path(directory) / name).is_file()
    )
    chosen = random.Random(7).sample(range(len(names)), min(count, len(names)))  # noqa: S311
    return [names[number] for number in sorted(chosen)]


def _turn(bench: Bench, files: list[str], name: str, number: int) -> Iterator[Sample]:
    """All works of one contender, each on a mount that nobody has used yet."""
    walkers, ranks = ((1, 4), (1, 8)) if bench.quick else ((1, 4, 16), (1, 4, 16, 64))
    works = [partial(_walk, files=files, count=count) for count in walkers]
    works += [partial(_start_together, home=bench.place.home, count=count) for count in ranks]
    for group in [works] if name in _UNPACKED else [[work] for work in works]:
        with contenders.served(name, bench.place) as found:
            for work in group:
                cache = host.drop_caches()
                what, depends, values = work(found.prefix)
                settings = {**depends, "page cache": cache}
                yield Sample("metadata", what, name, number, values, settings)
    if number <= (1 if bench.quick else _COUNTED):
        for start in _starts(name, quick=bench.quick):
            values = _count(bench.place, name, WORKS[start])
            yield Sample("metadata", _COUNT, name, number, values, {"start": start})


def _starts(name: str, *, quick: bool) -> Sequence[str]:
    """Which starts are counted: in a hurry not what is the same for each file system."""
    if name == EXTRACT or (quick and name not in {DIRECTORY, next(iter(contenders.DAEMONS))}):
        return ("numpy",)
    return tuple(QUICK) if quick else STARTS


_Done = tuple[str, dict[str, "str | float"], dict[str, float]]
"""What was done, on what it depends, and what came of it."""


def _walk(prefix: Path, *, files: list[str], count: int) -> _Done:
    values: dict[str, float] = json.loads(crowd("walk", count, str(prefix), names=files))
    values["operations_per_s"] = values["operations"] / values["wall_s"]
    return _WALK, {"processes": count}, values


def _start_together(prefix: Path, *, home: Path, count: int) -> _Done:
    words = (str(prefix / "bin/python"), "-I", "-c", NUMPY)
    seconds = sorted(json.loads(crowd("start", count, *words, home=home))["seconds"])
    values = {
        "wall_s": seconds[-1],
        "p50_s": seconds[len(seconds) // 2],
        "p99_s": seconds[len(seconds) * 99 // 100],
    }
    return _TOGETHER, {"ranks": count}, values


def crowd(
    mode: str, count: int, *words: str, names: Sequence[str] = (), home: Path = Path("/")
) -> str:
    """Let many do the same at once; gives the JSON that says what came of it.

    Raises:
        subprocess.CalledProcessError: where one of them fails.
    """
    command = [sys.executable, "-I", str(CROWD), mode, str(count), *words]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "HOME": str(home)},
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate("\n".join(names))
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, command)
    return output


def _count(place: Place, name: str, code: str) -> dict[str, float]:
    """What reaches the file system below when Python is started once, mounting included."""
    low = place.prefix if name == DIRECTORY else place.directory / "below"
    below = contenders.directory_of(place) if name == DIRECTORY else place.project
    with layer.below(below, [low]) as running, _above(name, place, low):
        _python(place, code)
        (node,) = running.report().nodes
    return {
        "metadata_operations": node.metadata,
        "read_operations": node.operations.get("read", 0),
        "read_bytes": node.read_bytes,
        **{f"{kind}_operations": node.operations.get(kind, 0) for kind in _KINDS},
    }


def _python(place: Place, code: str) -> None:
    """Start it once."""
    words = [str(place.prefix / "bin/python"), "-I", "-c", code]
    program(words, {"PATH": "/usr/bin:/bin", "HOME": str(place.home)})


@contextmanager
def _above(name: str, place: Place, low: Path) -> Iterator[None]:
    """Have an environment at its prefix whose image, or which itself, lies on the layer."""
    if name == DIRECTORY:
        yield
    elif name == EXTRACT:
        place.condainer("-d", str(low), "mount", "--backend", EXTRACT)
        try:
            yield
        finally:
            place.condainer("umount")
    else:
        with contenders.mounted(name, low / place.image.name, place.prefix):
            yield


def tables(samples: Sequence[Sample]) -> list[Table]:
    """One for each of the three parts."""
    return [
        _table_of_counts(summary.pick(samples, _COUNT)),
        _table_of_times(
            f"Files of an environment: stat, open, read 4 KiB, close; {_page_cache(samples)}",
            summary.pick(samples, _WALK),
            ("operations_per_s", "operations/s"),
            "processes",
            "p50 and p99 are of single operations.",
        ),
        _table_of_times(
            f"Ranks on one node that start Python together ({NUMPY}); {_page_cache(samples)}",
            summary.pick(samples, _TOGETHER),
            ("wall_s", "last s"),
            "ranks",
            "p50 and p99 are of the ranks, each from the start of the first.",
        ),
    ]


def _page_cache(samples: Iterable[Sample]) -> str:
    """What was done with it before."""
    found = {str(s.settings["page cache"]) for s in samples if "page cache" in s.settings}
    return f"page cache {' or '.join(sorted(found))} before each"


def _table_of_counts(samples: Sequence[Sample]) -> Table:
    rows = [
        _row_of_counts(own, _started(samples, DIRECTORY, start), start, name)
        for start in WORKS
        for name in summary.contenders(samples)
        if (own := _started(samples, name, start))
    ]
    columns = ("start", "from", *_KINDS, "all metadata", "of directory", "reads", "bytes read")
    note = (
        "Operations that reach the host's file system while a fresh node starts Python once, "
        "mounting included. Closing, and ioctl, which no server has to answer, do not count as "
        "metadata. Reads are of 128 KiB at most, as the kernel asks a FUSE file system."
    )
    return Table("What reaches the file system", columns, tuple(rows), note)


def _row_of_counts(
    own: Sequence[Sample], base: Sequence[Sample], start: str, name: str
) -> tuple[str, ...]:
    kinds = [f"{summary.median(own, f'{kind}_operations'):,.0f}" for kind in _KINDS]
    metadata = summary.median(own, "metadata_operations")
    part = f"1/{summary.median(base, 'metadata_operations') / metadata:,.0f}" if base else "-"
    return (
        *(start, name, *kinds),
        *(f"{metadata:,.0f}", "1" if name == DIRECTORY else part),
        *(f"{summary.median(own, 'read_operations'):,.0f}",),
        human(summary.median(own, "read_bytes")),
    )


def _started(samples: Sequence[Sample], name: str, start: str) -> list[Sample]:
    return [s for s in summary.pick(samples, _COUNT, name) if s.settings["start"] == start]


def headlines(samples: Sequence[Sample]) -> list[str]:
    """What an image spares the file system."""
    for start in reversed(WORKS):
        base = _started(samples, DIRECTORY, start)
        for name in contenders.DAEMONS:
            if base and (own := _started(samples, name, start)):
                least, most = (summary.median(s, "metadata_operations") for s in (own, base))
                text = (
                    f"A start of Python with {start} sends **{least:,.0f} metadata operations "
                    f"instead of {most:,.0f}** to the file system where the environment is one "
                    f"image ({name})."
                )
                return [text]
    return []


def _table_of_times(
    title: str, samples: Sequence[Sample], shown: tuple[str, str], many: str, note: str
) -> Table:
    quantity, head = shown
    rows = []
    for count, name in _combinations(samples, many):
        own = _of(samples, name, many, count)
        base = _of(samples, DIRECTORY, many, count)
        rows.append(
            (
                f"{count:.0f}",
                name,
                summary.spread(summary.values(own, quantity)),
                summary.ratio_text(summary.ratio(own, base, quantity)),
                *(_time(summary.values(own, each)) for each in ("p50_s", "p99_s")),
            )
        )
    columns = (many, "from", head, "ratio", "p50", "p99")
    note = f"Medians (least-most); ratios are to the directory. {note}"
    return Table(title, columns, tuple(rows), note)


def _time(seconds: Sequence[float]) -> str:
    """Median and spread, in microseconds where it is short."""
    if max(seconds) < 0.1:  # noqa: PLR2004
        return f"{summary.spread([value * _MICRO for value in seconds])} µs"
    return f"{summary.spread(seconds)} s"


def _combinations(samples: Iterable[Sample], many: str) -> list[tuple[float, str]]:
    """How many at once, and who, as far as there are samples."""
    found = {(float(s.settings[many]), s.contender) for s in samples}
    return sorted(found, key=lambda each: (each[0], contenders.ALL.index(each[1])))


def _of(samples: Iterable[Sample], name: str, many: str, count: float) -> list[Sample]:
    return [s for s in summary.pick(samples, None, name) if s.settings[many] == count]


def figures(samples: Sequence[Sample]) -> list[Figure]:
    """The count, and both curves."""
    return [
        Figure(
            "metadata-count",
            "Metadata operations that one start sends to the file system",
            "Logarithmic. A plain directory asks for every file and every place where it might "
            "be; an image is one file, which is looked up and opened once.",
            partial(_draw_counts, summary.pick(samples, _COUNT)),
        ),
        Figure(
            "metadata-files",
            "Files of an environment: stat, open, read, close",
            "More is better. Points are medians, lines at them the least and the most.",
            partial(
                _draw_curves,
                summary.pick(samples, _WALK),
                ("processes", "operations_per_s"),
                ("processes at once (logarithmic)", "operations/s (logarithmic)"),
            ),
        ),
        Figure(
            "metadata-ranks",
            f"Ranks on one node that start Python together ({NUMPY})",
            "Less is better. Time until the last rank has ended: points are medians, lines at "
            "them the least and the most.",
            partial(
                _draw_curves,
                summary.pick(samples, _TOGETHER),
                ("ranks", "wall_s"),
                ("ranks at once (logarithmic)", "until the last has started, s (logarithmic)"),
            ),
        ),
    ]


def _draw_counts(samples: Sequence[Sample], axes: Axes) -> None:
    from matplotlib.container import BarContainer

    starts = [s for s in WORKS if any(sample.settings["start"] == s for sample in samples)]
    found = {
        name: [
            summary.values(_started(samples, name, start), "metadata_operations")
            for start in starts
        ]
        for name in summary.contenders(samples)
    }
    charts.logarithmic(axes.yaxis)
    charts.grouped_bars(axes, starts, found)
    for bars in axes.containers:
        if isinstance(bars, BarContainer):
            axes.bar_label(bars, fmt="{:,.0f}", fontsize=9, padding=3)
    axes.set_ylim(bottom=1)
    axes.set_xlim(-0.5, len(starts) - 0.5)
    axes.set_ylabel("metadata operations (logarithmic)")


def _draw_curves(
    samples: Sequence[Sample], shown: tuple[str, str], labels: tuple[str, str], axes: Axes
) -> None:
    from matplotlib.ticker import LogLocator

    many, quantity = shown
    for name in summary.contenders(samples):
        counts = sorted({float(s.settings[many]) for s in summary.pick(samples, None, name)})
        found = [summary.values(_of(samples, name, many, count), quantity) for count in counts]
        middles = [statistics.median(each) for each in found]
        axes.errorbar(
            counts,
            middles,
            yerr=(
                [middle - min(each) for middle, each in zip(middles, found, strict=True)],
                [max(each) - middle for middle, each in zip(middles, found, strict=True)],
            ),
            label=name,
            color=style.COLOURS[name],
            marker=style.MARKERS[name],
            linestyle=style.LINES[name],
            capsize=3,
        )
    charts.logarithmic(axes.yaxis)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.set_xscale("log", base=2)
    ticks = sorted({float(s.settings[many]) for s in samples})
    axes.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    charts.legend_below(axes)
