"""How long an image takes to be made: whole builds, and compressing by setting."""

from __future__ import annotations

import shutil
import sysconfig
import time
from functools import partial
from typing import TYPE_CHECKING

from benchmarks import byhand, charts, summary, turns, writing
from benchmarks.measure import program
from benchmarks.samples import Figure, Sample, Table
from condainer.units import human

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from benchmarks.places import Place
    from benchmarks.samples import Bench

TITLE = "Building images"
ABOUT = """\
Whole builds go from an `environment.yml` to an image, of a small environment from a channel on this
machine, with empty package caches. *At once* compresses packages while others are still being
fetched, *one after the other* does not (`--no-overlap`). What one would do by hand is
`micromamba create` followed by `mksquashfs` as it comes, or by `conda-pack --format squashfs`.
Compressing is `mksquashfs` alone, on that environment, by compressor, level and block size."""

AT_ONCE = "condainer, at once"
AFTER = "condainer, one after the other"
ONE = "condainer, -j 1"
BASE = "create + mksquashfs"
PACK = "create + conda-pack"
BYTES, SECONDS = "bytes", "wall_s"
BASES = (BASE, writing.PLAIN.name)
_BUILD, _COMPRESS = "build", "compress"


def measure(bench: Bench) -> Iterator[Sample]:
    """Whole builds, then compressing."""
    ways = _ways(bench)
    yield from turns.in_turn(bench, ways, lambda name, number: [_build(bench, ways, name, number)])
    settings = {setting.name: setting for setting in writing.settings(bench)}
    yield from turns.in_turn(
        bench, settings, lambda name, number: [_compress(bench, settings[name], number)]
    )


def _ways(bench: Bench) -> dict[str, Callable[[Place], Path]]:
    """Ways to an image."""
    micromamba, is_real = byhand.micromamba(bench.directory)
    if not is_real:
        bench.missing["micromamba"] = byhand.STAND_IN
    ways: dict[str, Callable[[Place], Path]] = {
        AT_ONCE: _condainer,
        AFTER: partial(_condainer, more=("--no-overlap",)),
        ONE: partial(_condainer, more=("-j", "1")),
        BASE: partial(byhand.make, micromamba, byhand.plain),
    }
    pack = shutil.which("conda-pack") or shutil.which("conda-pack", path=_beside())
    if pack:
        ways[PACK] = partial(byhand.make, micromamba, partial(_conda_pack, pack))
    else:
        bench.missing["conda-pack"] = "it is not installed (pip install 'condainer[bench]')"
    if bench.quick:
        for name in (AFTER, ONE, PACK):
            ways.pop(name, None)
            bench.missing[name] = "left out of a quick run"
    return ways


def _beside() -> str:
    """The directory of this interpreter's own programs, which PATH may lack."""
    return sysconfig.get_path("scripts")


def _build(
    bench: Bench, ways: Mapping[str, Callable[[Place], Path]], name: str, number: int
) -> Sample:
    """One build with empty caches."""
    place = bench.small
    shutil.rmtree(place.home)
    place.home.mkdir()
    start = time.perf_counter()
    image = ways[name](place)
    values = {"wall_s": time.perf_counter() - start, "bytes": float(image.stat().st_size)}
    return Sample("build", _BUILD, name, number, values)


def _condainer(place: Place, more: Sequence[str] = ()) -> Path:
    place.condainer("build", "--force", "--installer", "rattler", *more)
    return place.image


def _conda_pack(executable: str, prefix: Path, image: Path) -> None:
    how = ["--format", "squashfs", "--force", "--quiet", "--n-threads", "-1"]
    program([executable, "--prefix", str(prefix), "--output", str(image), *how])


def _compress(bench: Bench, setting: writing.Setting, number: int) -> Sample:
    values = writing.write(bench, setting)
    return Sample("build", _COMPRESS, setting.name, number, values)


def tables(samples: Sequence[Sample]) -> list[Table]:
    """Whole builds, and compressing."""
    builds = summary.pick(samples, _BUILD)
    compressing = summary.pick(samples, _COMPRESS)
    found = []
    if builds:
        found.append(_table("From environment.yml to an image", "way", builds, BASE))
    if compressing:
        found.append(_table("Compressing", "setting", compressing, writing.PLAIN.name))
    return found


def _table(title: str, head: str, samples: Sequence[Sample], base: str) -> Table:
    reference = summary.pick(samples, contender=base)
    rows = []
    for name in summary.contenders(samples):
        own = summary.pick(samples, contender=name)
        ratios = [summary.ratio_text(summary.ratio(own, reference, q)) for q in (SECONDS, BYTES)]
        size = human(summary.median(own, BYTES))
        rows.append(
            (name, summary.spread(summary.values(own, SECONDS)), ratios[0], size, ratios[1])
        )
    columns = (head, "time, s", "ratio", "image", "ratio")
    return Table(title, columns, tuple(rows), f"Ratios are to {base}.")


def headlines(samples: Sequence[Sample]) -> list[str]:
    """A build against what one would do by hand."""
    builds = summary.pick(samples, _BUILD)
    own, base = (summary.pick(builds, contender=name) for name in (AT_ONCE, BASE))
    ratios = [summary.ratio(own, base, quantity) for quantity in (SECONDS, BYTES)]
    if None in ratios:
        return []
    time_, size = (summary.ratio_text(ratio) for ratio in ratios)
    line = (
        f"A build takes **{time_} times** as long as creating the environment and running "
        f"mksquashfs by hand, and the image is {size} times as large."
    )
    return [line]


def figures(samples: Sequence[Sample]) -> list[Figure]:
    """Builds as bars; compressing as a cloud of sizes and times."""
    builds = summary.pick(samples, _BUILD)
    compressing = summary.pick(samples, _COMPRESS)
    found = []
    if builds:
        caption = "Bars are medians, lines the least and the most; shorter is better."
        draw = partial(_draw_builds, builds)
        found.append(Figure("build", "From environment.yml to an image", caption, draw))
    if compressing:
        caption = (
            "Each point is a setting; lines join the block sizes of one compressor. Further left "
            "is smaller, further down is quicker. The ring is the default."
        )
        draw = partial(_draw_compressing, compressing)
        found.append(Figure("build-compress", "Compressing: size and time", caption, draw))
    return found


def _draw_builds(samples: Sequence[Sample], axes: Axes) -> None:
    names = summary.contenders(samples)
    values = [summary.values(summary.pick(samples, contender=name), SECONDS) for name in names]
    charts.lying_bars(axes, names, values)
    axes.set_xlabel("wall time, s")


def _draw_compressing(samples: Sequence[Sample], axes: Axes) -> None:
    charts.logarithmic(axes.yaxis)
    charts.settings_cloud(axes, samples, (BYTES, 1e-6), (SECONDS, 1.0))
    axes.set_xlabel("image, MB")
    axes.set_ylabel("time to compress, s (logarithmic)")
