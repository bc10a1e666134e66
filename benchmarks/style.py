"""How pictures look: colours, markers and lines by contender, sizes and fonts.

Colours are those of Okabe and Ito, which people who are colour-blind can tell apart; markers,
lines and hatches tell the same once more. What is drawn is the business of `suites`, when and
where to that of `report`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.contenders import DIRECTORY, EXTRACT, KERNEL

if TYPE_CHECKING:
    from collections.abc import Mapping

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
CYCLE = (BLUE, ORANGE, GREEN, VERMILLION, SKY, PURPLE, BLACK)
"""For series that are not contenders, as compressors, in this order."""

COLOURS: Mapping[str, str] = {
    DIRECTORY: BLACK,
    KERNEL: ORANGE,
    "squashfuse_ll": BLUE,
    "squashfuse": SKY,
    "python": VERMILLION,
    "fusepy": PURPLE,
    EXTRACT: GREEN,
}
MARKERS: Mapping[str, str] = {
    DIRECTORY: "o",
    KERNEL: "s",
    "squashfuse_ll": "^",
    "squashfuse": "v",
    "python": "D",
    "fusepy": "P",
    EXTRACT: "X",
}
LINES: Mapping[str, str | tuple[int, tuple[int, ...]]] = {
    DIRECTORY: "-",
    KERNEL: "--",
    "squashfuse_ll": "-",
    "squashfuse": ":",
    "python": "-.",
    "fusepy": (0, (1, 3)),
    EXTRACT: (0, (5, 1, 1, 1, 1, 1)),
}
HATCHES: Mapping[str, str] = {
    DIRECTORY: "",
    KERNEL: "///",
    "squashfuse_ll": "",
    "squashfuse": "...",
    "python": "\\\\\\",
    EXTRACT: "xx",
}
SYMBOLS = ("o", "s", "^", "D", "v", "P", "X")
"""Markers that go with `CYCLE`."""

SIZE = (8.0, 4.8)
DPI = 160
"""1280 pixels wide; letters are still ten pixels high when that is halved."""

RC: Any = {
    "figure.figsize": SIZE,
    "figure.dpi": DPI,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.family": "DejaVu Sans",  # comes with matplotlib, so it is there everywhere
    "font.size": 12,
    "axes.titlesize": 14,
    "axes.labelsize": 12,
    "legend.fontsize": 11,
    "legend.frameon": False,
    "lines.linewidth": 2.2,
    "lines.markersize": 7,
    "hatch.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.8,
}
"""Settings of matplotlib for every picture."""
