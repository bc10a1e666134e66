"""What a parallel file system makes of start-up, measured in the small and modelled further.

Ranks, each a node of its own with cold caches (a mount of `layer` in a mount namespace), start
Python together at one simulated server, whose delays and limits are those published for Lustre,
GPFS and NFS. Counting on an undelayed layer is the business of `metadata`.

This machine has few processors and 64 Pythons take turns on them, which 64 nodes would not. So the
time to start is put together from two figures that do not disturb each other:

    start(n) = compute + waited(n)

`compute` is what one rank alone takes on the layer without delays: work of a node's own processors.
`waited(n)` is the time in which a rank has an operation in line or in service at the simulated
server, as the server reckons it itself: from the arrival of an operation until it is due, be the
answer written later or not; of the slowest of n ranks. With one rank the sum can be compared with
the wall time of the same run, and the table does.

Where more ranks than the server has places ask at once, the line before it matters, and it grows
only when they ask as fast as nodes would. There all the server's times are stretched until this
machine keeps up, and what is waited is divided by the same factor. The sum is an upper bound then:
nodes compute while others are served, so that up to `compute` of it may be saved. That holds for
all contenders, and for the model.

The model for more ranks is that of asymptotic bounds for a closed network of queues (Denning and
Buzen, The Operational Analysis of Queueing Network Models, ACM Computing Surveys 10(3), 1978):

    start(n) = compute + max(alone, n * share)
    share = max(metadata operations * delay / limit, bytes read / bandwidth)

`alone`, what a rank waits where nobody is in its way, is fitted: the median over the measurements
with no more ranks than places. `share`, for how long each rank keeps the busiest part of the server
busy, is not: it follows from what was counted and from the settings. So the measurements with more
ranks than places try the model; their residuals are in the table.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import charts, contenders, layer, style, summary, turns
from benchmarks.contenders import DIRECTORY
from benchmarks.samples import Figure, Sample, Table
from benchmarks.suites.metadata import NUMPY, crowd

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.axes import Axes

    from benchmarks.places import Place
    from benchmarks.samples import Bench


@dataclass(frozen=True)
class Source:
    """Where a figure comes from.

    Attributes:
        title: of the document.
        year: of it.
        url: where a copy was read.
        says: what is taken from it.
    """

    title: str
    year: int
    url: str
    says: str


@dataclass(frozen=True)
class FileSystem:
    """A shared file system as it was published; where a choice was open, the faster one.

    Attributes:
        name: of its kind.
        delay: seconds that one metadata operation takes where nobody is in its way.
        rate: metadata operations a second, at the most.
        data_delay: seconds that one read takes.
        bandwidth: bytes a second, at the most.
        keep: seconds for which a node believes what it knows; negative for ever.
        sources: of the figures.
        assumed: what was not found, what is taken instead, and why.
    """

    name: str
    delay: float
    rate: float
    data_delay: float
    bandwidth: float
    keep: float
    sources: tuple[Source, ...]
    assumed: str

    @property
    def limit(self) -> int:
        """How many operations are served at once, so that this rate comes of that delay."""
        return round(self.rate * self.delay)

    def settings(self, stretched: float = 1.0) -> layer.Settings:
        """For the layer: none forgets what it knows, for a start takes less than any of them keeps.

        On this machine it may take longer, as ranks take turns.

        Args:
            stretched: the factor by which all takes longer.
        """
        return layer.Settings(
            delay=self.delay * stretched,
            limit=self.limit,
            data_delay=self.data_delay * stretched,
            bandwidth=self.bandwidth / stretched,
        )


_DELL_LUSTRE = (
    "https://www.manualshelf.com/manual/dell/high-performance-computing-solution-resources/"
)
LUSTRE = FileSystem(
    name="Lustre",
    delay=0.5e-3,
    rate=544_000,
    data_delay=0.5e-3,
    bandwidth=18.5e9,
    keep=-1,
    sources=(
        Source(
            "Dell HPC Lustre Storage solution with Intel Omni-Path",
            2016,
            f"{_DELL_LUSTRE}24-23-22-21-20-19-18-17-16-15-14-13-12-11-10-9-8-7-6-5-4-3-2-1-"
            "white-papers-english/page-23.html",
            "mdtest, file stat: over 2,000 a second by one thread",
        ),
        Source(
            "Dell HPC Lustre Storage solution with Mellanox Infiniband EDR",
            2016,
            f"{_DELL_LUSTRE}22-21-20-19-18-17-16-15-14-13-12-11-10-9-8-7-6-5-4-3-2-1-"
            "white-papers-english/page-21.html",
            "mdtest, file stat: more than 544,000 a second by 240 threads (page 21); "
            "sequential reads: 18.5 GB/s (page 17)",
        ),
    ),
    assumed=(
        "Every metadata operation is as cheap as stat, the cheapest (creating is 19 times as "
        "slow there). A read of what servers have in memory takes as long as a stat. Locks keep "
        "what a node knows."
    ),
)
_PIXSTOR = "Dell EMC Ready Solution for HPC PixStor Storage, Administrator Guide"
GPFS = FileSystem(
    name="GPFS",
    delay=0.7e-3,
    rate=44_800,
    data_delay=0.7e-3,
    bandwidth=24.2e9,
    keep=-1,
    sources=(
        Source(
            _PIXSTOR,
            2020,
            "https://www.manualshelf.com/manual/dell/storage-solution-resources/"
            "1-administrator-guide-english/page-34.html",
            "Spectrum Scale 5.0.4; mdtest, read of 4 KiB files: 44,800 a second by 512 threads "
            "(page 34); random reads: 1,400 a second by one thread (page 32); sequential reads: "
            "24.2 GB/s (page 35)",
        ),
    ),
    assumed=(
        "What a node does not know yet takes a small read at a server, so an operation on "
        "metadata takes as long as a random read, and there are as many as small files read. "
        "(stat by those who made the files, answered by their own tokens, is at 11 million.) "
        "Tokens keep what a node knows."
    ),
)
NFS = FileSystem(
    name="NFS",
    delay=0.3e-3,
    rate=180_538,
    data_delay=0.3e-3,
    bandwidth=12.5e9,
    keep=3,
    sources=(
        Source(
            "SPECsfs2008_nfs.v3 result, Avere Systems FXT 3800 (3 nodes)",
            2014,
            "http://spec.org/sfs2008/results/res2014q2/sfs2008-20140428-00246.html",
            "180,538 operations a second; 0.3 ms where there are few",
        ),
        Source(
            "NFS file-attribute cache tuning, AIX 7.1 documentation",
            2010,
            "https://www.ibm.com/support/knowledgecenter/en/ssw_aix_71/performance/"
            "nfs_file_attr_cache_tun.htm",
            "acregmin: 3 seconds",
        ),
    ),
    assumed=(
        "Reads take as long as other operations, as in that mixture. The server has one link of "
        "100 Gbit/s: the result does not say what it reads at the most."
    ),
)
BUSY = replace(
    GPFS,
    name="GPFS, a tenth of it",
    rate=GPFS.rate / 10,
    bandwidth=GPFS.bandwidth / 10,
    assumed=f"Other jobs take nine tenths of the servers. {GPFS.assumed}",
)
FILE_SYSTEMS = (GPFS, LUSTRE, NFS, BUSY)
"""The first one is for those in a hurry: its figure is for reading files, and not only for stat."""

TITLE = "A parallel file system, in the small and on paper"
ABOUT = f"""\
Each of N ranks is a node of its own, with cold caches, and all start Python ({NUMPY}) from one
simulated file system, the environment lying there as a plain directory or as one image. Below both
lies a layer that serves operations on metadata with a delay, so many at once and not more, and data
with a delay and a bandwidth, as published for Lustre, GPFS and NFS; where a choice was open, the
faster figure was taken, which favours the directory. Ranks on this machine take turns on its
processors, which nodes do not: so a start is what one rank takes on an undelayed layer, plus the
time that the slowest of N has waited for the simulated server, by the server's own reckoning. Where
there are more ranks than the server has places, all of its times are stretched until this machine
keeps up with them, and divided by the same factor again. Dashed lines are a model, not a
measurement: start(n) = compute + max(alone, n * share), where alone, what a rank waits where nobody
is in its way, is fitted to the measurements, and share, what each rank keeps the busiest part of
the server busy (metadata operations * delay / places, or bytes / bandwidth), follows from what was
counted. Left out is what nobody publishes: what servers keep in memory, that a single file may lie
on a single server, and what other jobs do meanwhile, but for the file system of which only a tenth
is left."""

BASES = (DIRECTORY,)

_QUICK, _ALWAYS, _AT_FIRST = (1, 16), (1, 4, 16), (1, 2, 4, 8, 16, 32, 64)
"""Ranks in a hurry, of every round, and of the first: all of them take long, and vary little."""
_MODELLED = (64, 256, 1024, 4096, 16384)
_KEEPS_UP = 2000
"""Operations a second that Pythons on two processors ask for, and the layer serves, with ease; not
where others need the processors as well, and then fewer wait in line than would."""
_BASELINES = 3

_BIND = 'mount --bind "$1" "$2" && exec "$2/bin/python" -I -c "$3"'
_SERVE = 'prefix=$2; code=$3; shift 3; "$@" && "$prefix/bin/python" -I -c "$code"'


def measure(bench: Bench) -> Iterator[Sample]:
    """Start-up over ranks, from each of the file systems: the directory and an image, in turn."""
    if os.getuid() != 0:
        bench.missing["parallel"] = "only root can have ranks see the same path on mounts of theirs"
        return
    names = turns.here(bench, (DIRECTORY, *contenders.DAEMONS))[:2]
    yield from turns.in_turn(bench, names, partial(_turn, bench))


def _turn(bench: Bench, name: str, number: int) -> Iterator[Sample]:
    """All ranks and file systems, with one contender."""
    undelayed = [_start(bench, name, 1, layer.Settings())[0] for _ in range(_BASELINES)]
    compute = statistics.median(undelayed)
    measured = _QUICK if bench.quick else _ALWAYS if number > 1 else _AT_FIRST
    for system in FILE_SYSTEMS[:1] if bench.quick else FILE_SYSTEMS:
        for ranks in measured:
            stretched = max(1.0, system.rate / _KEEPS_UP) if ranks > system.limit else 1.0
            wall, report = _start(bench, name, ranks, system.settings(stretched))
            waited = max(node.waited for node in report.nodes) / stretched
            values = {
                "start_s": compute + waited,
                "compute_s": compute,
                "waited_s": waited,
                "wall_s": wall,
                "metadata_operations": sum(node.metadata for node in report.nodes) / ranks,
                "read_operations": sum(n.operations.get("read", 0) for n in report.nodes) / ranks,
                "read_bytes": sum(node.read_bytes for node in report.nodes) / ranks,
            }
            settings: dict[str, str | float] = {
                "file system": system.name,
                "ranks": ranks,
                "delay_s": system.delay,
                "limit": system.limit,
                "data_delay_s": system.data_delay,
                "bandwidth_bytes_per_s": system.bandwidth,
                "stretched": stretched,
            }
            yield Sample("parallel", NUMPY, name, number, values, settings)


def _start(
    bench: Bench, name: str, ranks: int, settings: layer.Settings
) -> tuple[float, layer.Report]:
    """Seconds until the last of some ranks, each a node, has started, and what they asked for."""
    place = bench.small
    below = contenders.directory_of(place) if name == DIRECTORY else place.project
    place.prefix.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=bench.directory, prefix="nodes-") as nodes:
        mountpoints = [Path(nodes) / str(rank) for rank in range(ranks)]
        with layer.below(below, mountpoints, settings) as running:
            words = _rank(name, place, Path(nodes) / "{rank}")
            seconds = json.loads(crowd("start", ranks, *words, home=place.home))["seconds"]
            report = running.report()
    place.prefix.rmdir()
    return max(seconds), report


def _rank(name: str, place: Place, node: Path) -> list[str]:
    """What starts Python on a node, in namespaces that end, with all in them, when it ends."""
    start = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c"]
    words = [str(node), str(place.prefix), NUMPY]
    if name == DIRECTORY:
        return [*start, _BIND, "sh", *words]
    program = [word for word in contenders.DAEMONS[name] if word != "-f"]  # until it is live
    image = str(node / place.image.name)
    return [*start, _SERVE, "sh", *words, *program, image, str(place.prefix)]


@dataclass(frozen=True)
class Model:
    """Asymptotic bounds of a closed network: see the module.

    Attributes:
        compute: seconds that a rank takes by itself.
        alone: seconds that it waits where nobody is in its way.
        share: seconds for which it keeps the busiest part of the server busy.
        busiest: which part that is.
    """

    compute: float
    alone: float
    share: float
    busiest: str

    def start(self, ranks: float) -> float:
        """Seconds until the last of so many ranks has started."""
        return self.compute + max(self.alone, ranks * self.share)


def fit(samples: Sequence[Sample]) -> Model:
    """The model for one contender on one file system."""
    settings = {key: float(samples[0].settings[key]) for key in _OF_MODEL}
    free = [s for s in samples if float(s.settings["ranks"]) <= settings["limit"]]
    metadata = summary.median(samples, "metadata_operations")
    shares = {
        "metadata": metadata * settings["delay_s"] / settings["limit"],
        "bandwidth": summary.median(samples, "read_bytes") / settings["bandwidth_bytes_per_s"],
    }
    busiest = max(shares, key=lambda part: shares[part])
    compute = summary.median(samples, "compute_s")
    return Model(compute, summary.median(free, "waited_s"), shares[busiest], busiest)


_OF_MODEL = ("delay_s", "limit", "bandwidth_bytes_per_s")


def tables(samples: Sequence[Sample]) -> list[Table]:
    """What was measured against the model, what this says of more ranks, and the settings."""
    return [
        _table_of_ranks(samples),
        _table_of_model(samples),
        _table_of_settings(samples),
        _table_of_sources(samples),
    ]


def _of(
    samples: Sequence[Sample], system: str, name: str, ranks: float | None = None
) -> list[Sample]:
    """The samples of a contender on a file system; None is for any number of ranks."""
    return [
        sample
        for sample in summary.pick(samples, None, name)
        if sample.settings["file system"] == system and ranks in {None, sample.settings["ranks"]}
    ]


def headlines(samples: Sequence[Sample]) -> list[str]:
    """What the model says of many nodes."""
    ranks, found = _MODELLED[2], {}
    for system in _systems(samples):
        models = _models(samples, system)
        if DIRECTORY in models and len(models) > 1:
            base = models.pop(DIRECTORY).start(ranks)
            found[system] = (base, min(model.start(ranks) for model in models.values()))
    texts = [
        f"{summary.number(image)} s instead of {summary.number(base)} s on {system}"
        for system, (base, image) in found.items()
    ]
    if not texts:
        return []
    text = (
        f"{ranks:,} nodes that start Python ({NUMPY}) at once from an image instead of a plain "
        f"directory, by a model fitted to measurements: **{'; '.join(texts)}**."
    )
    return [text]


def _models(samples: Sequence[Sample], system: str) -> dict[str, Model]:
    """The models of all contenders on a file system."""
    return {
        name: fit(own)
        for name in summary.contenders(samples)
        if (own := _of(samples, system, name))
    }


def _systems(samples: Sequence[Sample]) -> list[str]:
    return list(dict.fromkeys(str(sample.settings["file system"]) for sample in samples))


def _ranks(samples: Sequence[Sample]) -> list[float]:
    return sorted({float(sample.settings["ranks"]) for sample in samples})


def _table_of_ranks(samples: Sequence[Sample]) -> Table:
    rows = []
    for system in _systems(samples):
        for name in summary.contenders(samples):
            own = _of(samples, system, name)
            rows += [_row_of_ranks(own, system, name, ranks) for ranks in _ranks(own)]
    columns = (
        "file system",
        "from",
        "nodes",
        "start, s",
        "waited, s",
        "stretched",
        "wall, s",
        "model, s",
        "ratio",
    )
    note = (
        "Medians (least-most). start = compute + waited; the ratio is to the model. Wall time is "
        "that of this machine, where all take turns: with 1 node it should be the start. Where "
        "the line matters the ratio is below 1: the model is an upper bound, for nodes compute "
        "while others are served, and on a machine with other work beside it they also come one "
        "after the other."
    )
    return Table(
        f"Time until the last of N nodes has started ({NUMPY})", columns, tuple(rows), note
    )


def _row_of_ranks(own: Sequence[Sample], system: str, name: str, ranks: float) -> tuple[str, ...]:
    found = [sample for sample in own if sample.settings["ranks"] == ranks]
    start, predicted = summary.median(found, "start_s"), fit(own).start(ranks)
    return (
        *(system, name, f"{ranks:.0f}"),
        summary.spread(summary.values(found, "start_s")),
        summary.spread(summary.values(found, "waited_s")),
        f"{float(found[0].settings['stretched']):.3g}",
        summary.number(summary.median(found, "wall_s")),
        summary.number(predicted),
        f"{start / predicted:.2f}",
    )


def _table_of_model(samples: Sequence[Sample]) -> Table:
    rows = []
    for system in _systems(samples):
        models = _models(samples, system)
        for name, model in models.items():
            base = models.get(DIRECTORY, model)
            times = [model.start(ranks) for ranks in _MODELLED]
            ratios = [base.start(ranks) / model.start(ranks) for ranks in _MODELLED]
            rows.append(
                (
                    *(system, name),
                    *(
                        f"{summary.number(time)} s"
                        + ("" if name == DIRECTORY else f" (1/{summary.number(ratio)})")
                        for time, ratio in zip(times, ratios, strict=True)
                    ),
                    model.busiest,
                )
            )
    columns = ("file system", "from", *(f"{ranks:,} nodes" for ranks in _MODELLED), "busiest part")
    note = "Modelled, not measured. In brackets the part of what the plain directory takes."
    return Table("Time until the last node has started, by the model", columns, tuple(rows), note)


def _table_of_settings(samples: Sequence[Sample]) -> Table:
    shown = _systems(samples)
    rows = [
        (
            system.name,
            f"{system.delay * 1e3:g} ms",
            f"{system.rate:,.0f}/s",
            str(system.limit),
            f"{system.data_delay * 1e3:g} ms",
            f"{system.bandwidth / 1e9:g} GB/s",
            "for ever" if system.keep < 0 else f"{system.keep:g} s",
        )
        for system in FILE_SYSTEMS
        if system.name in shown
    ]
    head = ("metadata delay", "metadata rate", "places", "read delay", "bandwidth", "a node keeps")
    columns = ("file system", *head)
    note = "Places: so many operations are served at once; delay and rate say how many."
    return Table("Settings of the simulated file systems", columns, tuple(rows), note)


def _table_of_sources(samples: Sequence[Sample]) -> Table:
    shown = [system for system in FILE_SYSTEMS if system.name in _systems(samples)]
    rows = [
        (system.name, source.title, str(source.year), source.says, source.url)
        for system in shown
        for source in system.sources
    ]
    columns = ("file system", "source", "year", "says", "read at")
    note = "Assumed, " + " ".join(f"{system.name}: {system.assumed}" for system in shown)
    return Table("Where the settings come from", columns, tuple(rows), note)


def figures(samples: Sequence[Sample]) -> list[Figure]:
    """One for each file system."""
    return [
        Figure(
            "parallel-" + "".join(c if c.isalnum() else "-" for c in system.lower()),
            f"{system}: N nodes start Python ({NUMPY}) at once",
            _caption(samples, system),
            partial(_draw, samples, system),
        )
        for system in _systems(samples)
    ]


def _caption(samples: Sequence[Sample], system: str) -> str:
    texts = [
        f"{name}: compute {summary.number(model.compute)} s, alone {summary.number(model.alone)} "
        f"s, share {model.share * 1e3:.3g} ms ({model.busiest})"
        for name, model in _models(samples, system).items()
    ]
    return (
        "Less is better. Markers are measured, dashed lines are the "
        f"model, start(n) = compute + max(alone, n * share): {'; '.join(texts)}."
    )


def _draw(samples: Sequence[Sample], system: str, axes: Axes) -> None:
    from matplotlib.ticker import LogLocator

    for name, model in _models(samples, system).items():
        own = _of(samples, system, name)
        ranks = _ranks(own)
        colour, marker = style.COLOURS[name], style.MARKERS[name]
        measured = [summary.median(_of(own, system, name, n), "start_s") for n in ranks]
        label = f"{name}, measured"
        axes.plot(ranks, measured, color=colour, marker=marker, linestyle="", label=label)
        further = [2.0**power for power in range(15)]
        modelled = [model.start(n) for n in further]
        axes.plot(further, modelled, color=colour, linestyle="--", label=f"{name}, model")
    axes.axvspan(_ranks(samples)[-1], 2**14, color="#EEEEEE", zorder=0)
    axes.set_xscale("log", base=2)
    charts.logarithmic(axes.yaxis)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    ticks = [4**power for power in range(8)]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_xlabel("nodes that start at once (logarithmic; grey: more than were measured)")
    axes.set_ylabel("until the last has started, s (logarithmic)")
    axes.legend(loc="upper left")
