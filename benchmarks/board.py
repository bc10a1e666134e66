"""Shows what is being measured: a live board on a terminal, plain lines elsewhere; and tables.

The build's own board (`condainer.commands.progress`) knows stages; this one knows suites and
contenders.
"""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO

    from benchmarks.samples import Table


class Board:
    """What goes on, on standard error.

    Args:
        stream: where to.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._live = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.fields[suite]:10}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[samples]:5} samples  {task.fields[note]}", markup=False),
            console=Console(file=self._stream, highlight=False),
            disable=not self._stream.isatty(),
        )
        self._suite = ""
        self._count = 0

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Draw meanwhile."""
        with self._live:
            yield

    @contextmanager
    def suite(self, name: str) -> Iterator[None]:
        """One suite is measured meanwhile."""
        self._suite, self._count = name, 0
        start = time.monotonic()
        task = self._live.add_task(name, total=1, suite=name, samples=0, note="")
        self.note("begins")
        yield
        self._live.update(task, completed=1, note="")
        self._say(f"{time.monotonic() - start:.0f} s, {self._count} samples")

    def sample(self) -> None:
        """There is one more."""
        self._count += 1
        for task in self._live.task_ids[-1:]:
            self._live.update(task, samples=self._count)

    def note(self, text: str) -> None:
        """What is being done now."""
        for task in self._live.task_ids[-1:]:
            self._live.update(task, note=text)
        self._say(text)

    def _say(self, text: str) -> None:
        if self._live.disable:
            self._stream.write(f"{self._suite}: {text}\n" if self._suite else f"{text}\n")
            self._stream.flush()


def show(table: Table, stream: TextIO) -> None:
    """Print a table: with lines and colours on a terminal, as plain text elsewhere."""
    if not stream.isatty():
        stream.write(plain(table))
        return
    drawn = RichTable(title=table.title, title_justify="left", caption=table.note or None)
    drawn.caption_justify = "left"
    for index, column in enumerate(table.columns):
        drawn.add_column(column, justify="right" if table.is_numeric(index) else "left")
    for row in table.rows:
        drawn.add_row(*(Text(cell) for cell in row))
    console = Console(file=stream, highlight=False)
    console.print(drawn)
    console.print()


def plain(table: Table) -> str:
    """A table in plain text, each column as wide as it needs to be."""
    lines = [table.columns, *table.rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(table.columns))]
    rows = [
        "  ".join(
            cell.rjust(width) if table.is_numeric(index) else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([table.title, *(f"  {row}" for row in rows), ""]) + "\n"
