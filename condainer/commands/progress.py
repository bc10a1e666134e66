"""Shows the progress of a build: a live board on a terminal, plain lines elsewhere.

`Board` collects events and renders them as lines for a given moment and width, so that it can be
tested without a terminal.
"""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from condainer.pipeline.events import (
    Built,
    Failed,
    Note,
    Output,
    Progress,
    Stage,
    StageFinished,
    StageStarted,
)
from condainer.units import foreign, human, indented, printable

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import TextIO

    from rich.text import Text
    from typing_extensions import Self

    from condainer.pipeline.events import Event

_REFRESH = 8
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_BAR_WIDTH = 24


class Reporter(Protocol):
    """Takes the events of builds; a context manager that leaves the terminal tidy."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
    def handle(self, event: Event) -> None:
        """Show an event.

        Args:
            event: comes from any thread.
        """


def reporter(
    *, quiet: bool, verbose: bool, several: bool, stream: TextIO | None = None
) -> Reporter:
    """Choose a reporter for a stream.

    Args:
        quiet: show nothing.
        verbose: write plain lines with the output of every program, even on a terminal.
        several: write the name of the project in every line.
        stream: None for standard error.
    """
    stream = stream or sys.stderr
    if quiet:
        return Silent()
    if stream.isatty() and not verbose:
        return Live(stream)
    return Plain(stream, verbose=verbose, several=several)


class Silent:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def handle(self, event: Event) -> None:
        """Ignore an event.

        Args:
            event: any event.
        """


class Plain(Silent):
    """Writes plain lines, for logs: one when a long stage begins, one when a stage ends.

    Args:
        stream: takes the lines.
        verbose: write the output of programs as well.
        several: write the name of the project in every line.
    """

    def __init__(self, stream: TextIO, *, verbose: bool = False, several: bool = False) -> None:
        self._stream = stream
        self._verbose = verbose
        self._several = several
        self._guard = threading.Lock()

    def handle(self, event: Event) -> None:
        """Write the line of an event, if it has one.

        Args:
            event: comes from any thread.
        """
        text = _plain(event, verbose=self._verbose)
        if text is None:
            return
        name = f"{event.project}: " if self._several else ""
        with self._guard:
            for line in printable(text).split("\n"):
                self._stream.write(f"{foreign(name)}{line}\n")
            self._stream.flush()


def _plain(event: Event, *, verbose: bool) -> str | None:
    if isinstance(event, StageStarted):
        return f"{event.stage.value} …" if event.stage in _LONG else None
    if isinstance(event, StageFinished):
        detail = f" ({foreign(event.detail)})" if event.detail else ""
        return f"{event.stage.value}: {event.seconds:.1f} s{detail}"
    if isinstance(event, Note):
        return indented(event.text)
    if isinstance(event, Output) and verbose:
        return f"  | {foreign(event.line)}"
    if isinstance(event, Built):
        return summary(event)
    return None


_LONG = {Stage.SOLVE, Stage.INSTALL, Stage.PIP, Stage.COMPILE, Stage.SQUASH}


def summary(built: Built) -> str:
    """Describe a finished build in a few lines.

    Args:
        built: the build.
    """
    ratio = built.tree_bytes / max(1, built.image_bytes)
    stages = ", ".join(f"{stage.value} {seconds:.1f}" for stage, seconds in built.stages)
    return (
        f"{foreign(built.image)}\n"
        f"  {built.files:,} files, {human(built.tree_bytes)} -> 1 file, "
        f"{human(built.image_bytes)} ({ratio:.1f} times smaller)\n"
        f"  {built.seconds:.1f} s: {stages}"
    )


@dataclass
class _Row:
    """What the board knows about a stage that has not ended."""

    started: float
    progress: Progress | None = None
    counting_since: float = 0.0


class Board:
    """The stages of all builds that have not ended, as lines of text."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, Stage], _Row] = {}

    def update(self, event: Event, now: float) -> None:
        """Take in an event.

        Args:
            event: the event.
            now: when it came, in seconds.
        """
        if isinstance(event, StageStarted):
            self._rows[event.project, event.stage] = _Row(started=now)
        elif isinstance(event, Progress):
            row = self._rows.get((event.project, event.stage))
            if row is not None:
                if row.progress is None or event.done == 0:
                    row.counting_since = now
                row.progress = event
        elif isinstance(event, StageFinished):
            self._rows.pop((event.project, event.stage), None)
        elif isinstance(event, (Built, Failed)):
            for project, stage in list(self._rows):
                if project == event.project:
                    del self._rows[project, stage]

    def render(self, now: float, width: int) -> list[str]:
        """Give the lines to show.

        Args:
            now: the time, in seconds, as for `update`.
            width: columns that a line may have.
        """
        lines = []
        for (project, stage), row in self._rows.items():
            spinner = _SPINNER[int(now * _REFRESH) % len(_SPINNER)]
            elapsed = now - row.started
            line = f"{spinner} {project}: {stage.value} {_clock(elapsed)}"
            if row.progress is not None:
                line += "  " + _measure(row.progress, now - row.counting_since)
            lines.append(_fitted(line, width))
        return lines


def _fitted(line: str, width: int) -> str:
    """A line that is no wider than some columns, whatever characters it has."""
    from rich.cells import cell_len, set_cell_size

    line = "".join(letter if letter.isprintable() else " " for letter in line)
    return line if cell_len(line) <= width else set_cell_size(line, width)


def _measure(progress: Progress, elapsed: float) -> str:
    """A bar, a count, a rate and the time left, as far as they are known."""
    count = f"{progress.done:,}"
    if progress.total:
        share = min(1.0, progress.done / progress.total)
        filled = round(share * _BAR_WIDTH)
        bar = "━" * filled + "╌" * (_BAR_WIDTH - filled)
        text = f"{bar} {count} of {progress.total:,} {progress.unit.value}"
    else:
        text = f"{count} {progress.unit.value}"
    if progress.bytes_total > progress.bytes_done:
        text += f", {human(progress.bytes_done)} of {human(progress.bytes_total)}"
        text += _pace(progress.bytes_done, progress.bytes_total, elapsed, human)
    else:
        text += _pace(progress.done, progress.total, elapsed, "{:,.0f}".format)
    return f"{text}  {progress.detail}".rstrip()


def _pace(done: int, total: int | None, elapsed: float, amount: Callable[[float], str]) -> str:
    """The rate, and the time left at that rate."""
    if not done or elapsed < 1:
        return ""
    rate = done / elapsed
    text = f", {amount(rate)}/s"
    if total and total > done:
        text += f", {_clock((total - done) / rate)} left"
    return text


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes}:{seconds:02d}"


class Live:
    """Draws the board on a terminal; stages that have ended scroll away above it.

    Args:
        stream: the terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live as RichLive

        self._console = Console(file=stream, highlight=False)
        self._board = Board()
        self._guard = threading.Lock()
        self._live = RichLive(
            console=self._console,
            get_renderable=self._renderable,
            refresh_per_second=_REFRESH,
            transient=True,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    def handle(self, event: Event) -> None:
        """Draw an event.

        Args:
            event: comes from any thread.
        """
        from rich.text import Text

        with self._guard:
            self._board.update(event, time.monotonic())
        if isinstance(event, StageFinished):
            detail = f"  {event.detail}" if event.detail else ""
            text = Text.assemble(
                ("✓ ", "green"),
                foreign(f"{event.project}: {event.stage.value} "),
                (foreign(f"{event.seconds:.1f} s{detail}"), "dim"),
            )
            self._console.print(text)
        elif isinstance(event, Note):
            self._console.print(
                Text(printable(f"{foreign(event.project)}: {indented(event.text)}"))
            )
        elif isinstance(event, Built):
            self._console.print(Text(printable(summary(event)), style="bold"))

    def _renderable(self) -> Text:
        from rich.text import Text

        with self._guard:
            lines = self._board.render(time.monotonic(), self._console.width)
        return Text("\n".join(lines))
