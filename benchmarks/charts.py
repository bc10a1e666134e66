"""Kinds of pictures that several suites draw."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from benchmarks import style, summary
from benchmarks.writing import COMPRESSORS, DEFAULT, Setting

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

    from benchmarks.samples import Sample

_MEGA = 1024
_WIDTH = 0.84
"""Of a group of bars; groups are 1 apart."""


def grouped_bars(
    axes: Axes, groups: Sequence[str], series: Mapping[str, Sequence[Sequence[float]]]
) -> None:
    """Medians as bars next to each other, with lines from the least to the most.

    Args:
        axes: where to.
        groups: names below the axis.
        series: by name, what was found for each group; nothing where there is nothing.
    """
    width = _WIDTH / max(1, len(series))
    for index, (name, found) in enumerate(series.items()):
        places = [group - _WIDTH / 2 + (index + 0.5) * width for group in range(len(groups))]
        there = [(x, values) for x, values in zip(places, found, strict=True) if values]
        middles = [statistics.median(values) for _, values in there]
        below = [middle - min(values) for middle, (_, values) in zip(middles, there, strict=True)]
        above = [max(values) - middle for middle, (_, values) in zip(middles, there, strict=True)]
        axes.bar(
            [x for x, _ in there],
            middles,
            width * 0.92,
            yerr=[below, above],
            label=name,
            color=style.COLOURS.get(name, style.CYCLE[index % len(style.CYCLE)]),
            hatch=style.HATCHES.get(name, ""),
            edgecolor="white",
            linewidth=0,
            error_kw={"elinewidth": 1.2, "ecolor": "#666666", "capsize": 2},
        )
    axes.set_xticks(range(len(groups)), groups)
    axes.grid(visible=False, axis="x")
    legend_below(axes)


def lying_bars(axes: Axes, names: Sequence[str], found: Sequence[Sequence[float]]) -> None:
    """One bar for each name, the first at the top, with the median written at its end."""
    middles = [statistics.median(values) for values in found]
    spread = [
        [middle - min(values) for middle, values in zip(middles, found, strict=True)],
        [max(values) - middle for middle, values in zip(middles, found, strict=True)],
    ]
    how = {"elinewidth": 1.2, "ecolor": "#666666", "capsize": 3}
    colours = [style.CYCLE[index % len(style.CYCLE)] for index in range(len(names))]
    axes.barh(range(len(names)), middles, 0.6, color=colours, xerr=spread, error_kw=how)
    for place, (middle, values) in enumerate(zip(middles, found, strict=True)):
        axes.annotate(
            summary.number(middle),
            (max(values), place),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    axes.grid(visible=False, axis="y")


def settings_cloud(
    axes: Axes, samples: Sequence[Sample], across: tuple[str, float], up: tuple[str, float]
) -> None:
    """Settings of compression as points of two quantities, joined along the block sizes.

    Args:
        axes: where to.
        samples: whose contenders are settings.
        across: quantity on the horizontal axis, and what it is multiplied with.
        up: quantity on the vertical axis, likewise.
    """
    settings = [Setting.parse(name) for name in summary.contenders(samples)]
    compressors = list(dict.fromkeys(setting.compressor for setting in settings))
    for compressor in compressors:
        index = COMPRESSORS.index(compressor)  # the same colour each time
        own = [setting for setting in settings if setting.compressor == compressor]
        each = [summary.pick(samples, contender=setting.name) for setting in own]
        xs = [summary.median(found, across[0]) * across[1] for found in each]
        ys = [summary.median(found, up[0]) * up[1] for found in each]
        colour, symbol = style.CYCLE[index % len(style.CYCLE)], style.SYMBOLS[index]
        axes.plot(xs, ys, f"{symbol}-", color=colour, label=compressor)
        for number, (x, y, setting) in enumerate(zip(xs, ys, own, strict=True)):
            block, offset = setting.block, (7, 5) if number % 2 else (7, -13)
            text = f"{block // _MEGA}M" if block >= _MEGA else f"{block}K"
            if number in {0, len(own) - 1}:  # the others lie between
                axes.annotate(text, (x, y), xytext=offset, textcoords="offset points", fontsize=9)
            if setting == DEFAULT:
                axes.plot([x], [y], "o", markersize=17, fillstyle="none", color=style.BLACK)
    legend_below(axes)


def legend_below(axes: Axes) -> None:
    """Name the series under the picture, where they hide nothing."""
    handles, names = axes.get_legend_handles_labels()
    how: dict[str, Any] = {"handlelength": 1.5, "columnspacing": 1.2, "handletextpad": 0.5}
    axes.figure.legend(handles, names, loc="outside lower center", ncols=min(7, len(names)), **how)


def logarithmic(axis: Axis) -> None:
    """Make an axis logarithmic, with plain numbers at it."""
    from matplotlib.ticker import LogLocator

    set_scale = axis.axes.set_yscale if axis is axis.axes.yaxis else axis.axes.set_xscale
    set_scale("log", subs=(2, 5))
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(lambda *_: "")
