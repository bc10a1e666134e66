"""What travels between the suites, the report and the comparison: samples, tables and figures.

What is measured is the business of `suites`, who is measured that of `contenders`, how it is shown
that of `report`.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import places

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Sample:
    """What came of one contender's doing a piece of work once.

    Attributes:
        suite: which load, as its module is called.
        work: what was done.
        contender: who did it.
        round: in which turn, from 1.
        values: by quantity, whose name ends with its unit: `wall_s`, `daemon_cpu_s`, `bytes`.
        settings: what else it depends on, as the number of ranks.
    """

    suite: str
    work: str
    contender: str
    round: int
    values: Mapping[str, float]
    settings: Mapping[str, str | float] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """For the terminal and the report.

    Attributes:
        title: over it.
        columns: their heads.
        rows: cells; the first of each names the row.
        note: below it; how to read it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def is_numeric(self, column: int) -> bool:
        """Whether all that stands in a column is a number, or a dash for none."""
        cells = [row[column] for row in self.rows]
        return all(not cell or cell[0].isdigit() or cell == "-" for cell in cells)


@dataclass(frozen=True)
class Figure:
    """One picture of the report.

    Attributes:
        name: of its file, without the ending.
        title: over it.
        caption: below it, in the report; what is to be seen.
        draw: puts it on axes, with units and a legend.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Axes], None]


@dataclass
class Bench:
    """What a suite works with.

    Args:
        directory: temporary; holds everything.
        rounds: how often each contender has its turn.
        quick: whether to show the way in a minute rather than to measure well.
        on_note: takes a line about what is being done.

    Attributes:
        missing: what was left out, and why.
        failed: what began to take part and could not go on, and why.
    """

    directory: Path
    rounds: int
    quick: bool
    on_note: Callable[[str], None]
    missing: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @cached_property
    def place(self) -> places.Place:
        """A project with the scientific environment, or in a hurry a part of it, built."""
        self.on_note("building the environment")
        specs = ("python", "numpy", "pandas") if self.quick else places.SPECS
        place = places.make(Path(tempfile.mkdtemp(dir=self.directory)), specs=specs)
        place.condainer("build")
        return place

    @cached_property
    def small(self) -> places.Place:
        """A project with few packages, built, for what takes long with many."""
        specs = ("python", "numpy") if self.quick else ("python", "numpy", "pandas")
        self.on_note(f"building the small environment: {', '.join(specs)}")
        place = places.make(Path(tempfile.mkdtemp(dir=self.directory)), specs=specs)
        place.condainer("build")
        return place
