"""What `condainer exec` adds to the start of a program, mounted or not, one or many at once.

`benchmarks.exec` measures one start against bars that must be met, as each backend and as another
user; this one goes from one to many.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import charts, contenders, launcher, style, summary, turns
from benchmarks.samples import Figure, Sample, Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.axes import Axes

    from benchmarks.places import Place
    from benchmarks.samples import Bench

TITLE = "Many programs at once"
ABOUT = """\
One process starts N programs at once and waits for all. *Interpreter* is `python3 -c pass` with the
Python that condainer itself runs by, which is the least that `exec` can take; *live* is
`condainer exec -- true` while the image is mounted; *cold* is the same while it is not, so that one
of them mounts and all others wait for it. All of a node share that one mount, and the ratios say
what it costs."""
BASE, LIVE, COLD = "interpreter", "exec, live", "exec, cold"
BASES = (BASE,)
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)
_QUICK = (1, 8, 64)
_FEW = 5
_PATIENCE = 60.0
_STYLES = {BASE: (style.BLACK, "o", "-"), LIVE: (style.BLUE, "^", "--"),
           COLD: (style.VERMILLION, "D", "-.")}  # fmt: skip


def measure(bench: Bench) -> Iterator[Sample]:
    """All counts in each turn."""
    bench.on_note("once, so that everything is compiled and in memory")
    for name in (BASE, COLD):
        _launch(bench.small, name, 2)
        _forget(bench.small)
    yield from turns.in_turn(bench, (BASE, LIVE, COLD), partial(_turn, bench))


def _turn(bench: Bench, name: str, number: int) -> Iterator[Sample]:
    place = bench.small
    if name == LIVE:
        place.condainer("mount")
    try:
        # What is over in a moment is done several times, to be less of a chance.
        for count in [n for n in _counts(bench) for _ in range(max(1, _FEW // n))]:
            values = _launch(place, name, count)
            if name == COLD:
                _forget(place)
            yield Sample("exec", f"{count} at once", name, number, values, {"at once": count})
    finally:
        _forget(place)


def _counts(bench: Bench) -> tuple[int, ...]:
    return _QUICK if bench.quick else COUNTS


def _launch(place: Place, name: str, count: int) -> dict[str, float]:
    """Start so many at once, and wait for them."""
    script = Path(sys.executable).with_name("condainer")  # as users have it
    condainer = [str(script)] if script.exists() else [sys.executable, "-m", "condainer"]
    program = [sys.executable, "-c", "pass"]
    if name != BASE:
        program = [*condainer, "exec", "--", "/bin/true"]
    words = [sys.executable, launcher.__file__, str(count), str(place.prefix), *program]
    variables = {**os.environ, "HOME": str(place.home)}
    done = subprocess.run(
        words, cwd=place.project, env=variables, check=True, stdout=subprocess.PIPE
    )
    found = json.loads(done.stdout)
    if set(found["statuses"]) != {"0"} or found["mounts"] != (name == COLD):
        raise RuntimeError(f"statuses {found['statuses']}, {found['mounts']} mounts")
    return {"wall_s": found["seconds"], "mounts": found["mounts"]}


def _forget(place: Place) -> None:
    """See that nothing is mounted, and nothing left of a mount."""
    place.condainer("umount")
    deadline = time.monotonic() + _PATIENCE
    # All that its keeper has there goes, the mountpoint first; then the keeper has ended.
    while [path for path in place.prefix.parent.iterdir() if path != contenders.where(place)]:
        if time.monotonic() > deadline:
            raise RuntimeError("the mount does not go")
        time.sleep(0.01)


def tables(samples: Sequence[Sample]) -> list[Table]:
    """By how many at once."""
    rows = []
    for work in summary.works(samples):
        base = summary.pick(samples, work, BASE)
        for name in summary.contenders(samples):
            if own := summary.pick(samples, work, name):
                seconds = summary.values(own, "wall_s")
                ratio = summary.ratio_text(summary.ratio(own, base, "wall_s"))
                mounts = f"{max(summary.values(own, 'mounts')):.0f}"
                rows.append((work, name, summary.spread(seconds), ratio, mounts))
    columns = ("how many", "what", "until all have ended, s", "ratio", "mounts made")
    note = "Ratios are to as many bare starts of the interpreter."
    return [Table("Starting many at once", columns, tuple(rows), note)]


def headlines(samples: Sequence[Sample]) -> list[str]:
    """What exec adds, where the image is mounted."""
    found = []
    works = summary.works(summary.pick(samples, contender=LIVE))
    if works:
        live, base = (summary.pick(samples, works[0], name) for name in (LIVE, BASE))
        if base:
            more = summary.median(live, "wall_s") - summary.median(base, "wall_s")
            found.append(
                f"`condainer exec` adds **{more * 1000:.1f} ms** to the start of a program where "
                "the image is mounted already."
            )
    return found


def figures(samples: Sequence[Sample]) -> list[Figure]:
    """Time over how many."""
    caption = "Medians, with the least and the most as a band. Both axes are logarithmic."
    return [Figure("exec", "Starting many at once", caption, partial(_draw, samples))]


def _draw(samples: Sequence[Sample], axes: Axes) -> None:
    for name in summary.contenders(samples):
        own = summary.pick(samples, contender=name)
        counts = sorted({int(sample.settings["at once"]) for sample in own})
        each = [
            summary.values([s for s in own if s.settings["at once"] == count], "wall_s")
            for count in counts
        ]
        colour, marker, line = _STYLES[name]
        middles = [statistics.median(values) for values in each]
        axes.plot(counts, middles, color=colour, marker=marker, linestyle=line, label=name)
        lows, highs = [min(values) for values in each], [max(values) for values in each]
        axes.fill_between(counts, lows, highs, color=colour, alpha=0.15, linewidth=0)
    charts.logarithmic(axes.xaxis)
    charts.logarithmic(axes.yaxis)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xlabel("programs at once")
    axes.set_ylabel("until all have ended, s")
    charts.legend_below(axes)
