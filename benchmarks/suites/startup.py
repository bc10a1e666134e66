"""How long programs take to start: imports of growing weight, first and second time."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from benchmarks import charts, contenders, host, summary, turns
from benchmarks.contenders import DIRECTORY, EXTRACT
from benchmarks.measure import program
from benchmarks.samples import Figure, Sample, Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.axes import Axes

    from benchmarks.contenders import Served
    from benchmarks.samples import Bench

TITLE = "Starting programs"
ABOUT = """\
Each contender serves the same environment at the same path, and Python is started from it with
imports of growing weight. *First* is right after mounting, with empty page caches where they could
be dropped; *again* is the same program once more, when the kernel keeps what it has seen. Ratios
are to the plain directory, round by round. The CPU time of a daemon comes in addition to that of
the program; `extract` unpacks the image beforehand, which the second table counts."""
BASE = DIRECTORY
BASES = (BASE,)

FIRST, AGAIN = "first", "again"
IMPORTS = {
    "bare Python": "pass",
    "numpy": "import numpy",
    "pandas + scipy": "import pandas, scipy.stats, scipy.optimize",
    "scikit-learn + matplotlib": "import sklearn.ensemble, matplotlib.pyplot",
    "everything": (
        "import numpy, scipy.stats, scipy.optimize, scipy.signal, pandas, matplotlib.pyplot, "
        "sklearn.linear_model, sklearn.ensemble"
    ),
}
QUICK = {"numpy": "import numpy", "pandas": "import pandas"}
_SERVING = "until it is there"


def measure(bench: Bench) -> Iterator[Sample]:
    """All contenders in turn."""
    names = turns.here(bench)
    with contenders.served(DIRECTORY, bench.place) as served:
        bench.on_note("starting once, for what programs make on first use")
        _start(bench, served, list(QUICK if bench.quick else IMPORTS)[-1])
    yield from turns.in_turn(bench, names, partial(_turn, bench))


def _turn(bench: Bench, name: str, number: int) -> Iterator[Sample]:
    """One contender's turn."""
    works = tuple(QUICK if bench.quick else IMPORTS)
    # What nobody mounts has nothing to forget between two kinds of work but the page cache.
    parts = [works] if name in {DIRECTORY, EXTRACT} else [(work,) for work in works]
    for part in parts:
        with contenders.served(name, bench.place) as served:
            if name != DIRECTORY:
                yield Sample("startup", _SERVING, name, number, {"wall_s": served.start})
            for work in part:
                caches = {"page caches": host.drop_caches(contenders.source(name, bench.place))}
                values = _start(bench, served, work)
                yield Sample("startup", f"{work}, {FIRST}", name, number, values, caches)
                values = _start(bench, served, work)
                yield Sample("startup", f"{work}, {AGAIN}", name, number, values)


def _start(bench: Bench, served: Served, work: str) -> dict[str, float]:
    """Start Python once."""
    words = [str(served.prefix / "bin" / "python"), "-I", "-c", {**IMPORTS, **QUICK}[work]]
    before = served.cpu()
    wall, cpu = program(words, {"PATH": "/usr/bin:/bin", "HOME": str(bench.place.home)})
    return {"wall_s": wall, "cpu_s": cpu, "daemon_cpu_s": served.cpu() - before}


def tables(samples: Sequence[Sample]) -> list[Table]:
    """Starts, and what comes before them."""
    columns = ("imports", "from", "first, s", "ratio", "again, s", "ratio", "CPU, s", "daemon, s")
    names = summary.contenders(samples)
    rows = [
        _row(samples, work, name)
        for work in _works(samples)
        for name in names
        if summary.pick(samples, f"{work}, {FIRST}", name)
    ]
    note = (
        "Wall time: median (least-most). Ratios are to the directory. CPU: of the program, and of "
        "the daemon that serves it, at the first start; the kernel's own work for a mount is in "
        "neither."
    )
    found = [Table("Starting Python", columns, tuple(rows), note)]
    return [*found, _serving(samples)] if summary.pick(samples, _SERVING) else found


def _row(samples: Sequence[Sample], work: str, name: str) -> tuple[str, ...]:
    first = summary.pick(samples, f"{work}, {FIRST}", name)
    again = summary.pick(samples, f"{work}, {AGAIN}", name)
    return (
        work,
        name,
        summary.spread(summary.values(first, "wall_s")),
        ratio(samples, f"{work}, {FIRST}", name),
        summary.spread(summary.values(again, "wall_s")),
        ratio(samples, f"{work}, {AGAIN}", name),
        summary.number(summary.median(first, "cpu_s")),
        summary.number(summary.median(first, "daemon_cpu_s")),
    )


def ratio(samples: Sequence[Sample], work: str, name: str) -> str:
    """Wall time, to the plain directory."""
    own = summary.pick(samples, work, name)
    base = summary.pick(samples, work, BASE)
    return summary.ratio_text(summary.ratio(own, base, "wall_s"))


def _serving(samples: Sequence[Sample]) -> Table:
    found = summary.pick(samples, _SERVING)
    rows = [
        (name, summary.spread(summary.values(summary.pick(found, contender=name), "wall_s")))
        for name in summary.contenders(found)
    ]
    note = "Mounting or unpacking; a directory lies there already."
    return Table("Until the environment is there", ("by", "s"), tuple(rows), note)


def _works(samples: Sequence[Sample]) -> list[str]:
    """Kinds of imports, lightest first."""
    done = {sample.work.rpartition(", ")[0] for sample in samples}
    return [work for work in {**IMPORTS, **QUICK} if work in done]


def headlines(samples: Sequence[Sample]) -> list[str]:
    """What starting from an image costs, with the best file system in user space."""
    works = _works(samples)
    found = []
    for time, condition in ((FIRST, "right after mounting"), (AGAIN, "once more")):
        work = f"{works[-1]}, {time}" if works else ""
        medians = {
            name: summary.median(own, "wall_s")
            for name in contenders.DAEMONS
            if (own := summary.pick(samples, work, name))
        }
        if medians and summary.pick(samples, work, BASE):
            best = min(medians, key=medians.__getitem__)
            found.append(
                f"Python with {works[-1]}, {condition}: {summary.number(medians[best])} s from an "
                f"image ({best}), **{ratio(samples, work, best)} times** what it takes from a "
                "plain directory on the file system here."
            )
    return found


def figures(samples: Sequence[Sample]) -> list[Figure]:
    """First and second starts as bars."""
    return [
        Figure(
            f"startup-{time}",
            f"Starting Python, {time} time" if time == FIRST else "Starting Python again",
            caption,
            partial(_draw, samples, time),
        )
        for time, caption in (
            (FIRST, "Right after mounting. Bars are medians, lines the least and the most."),
            (AGAIN, "The same once more. Bars are medians, lines the least and the most."),
        )
    ]


def _draw(samples: Sequence[Sample], time: str, axes: Axes) -> None:
    works = _works(samples)
    found = {
        name: [
            summary.values(summary.pick(samples, f"{work}, {time}", name), "wall_s")
            for work in works
        ]
        for name in summary.contenders(samples)
    }
    charts.logarithmic(axes.yaxis)
    charts.grouped_bars(axes, [work.replace(" + ", "\n+ ") for work in works], found)
    axes.set_ylabel("wall time, s (logarithmic)")
