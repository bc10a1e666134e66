"""What a build shows: the board as lines of text, on a real terminal, and plain lines elsewhere."""

from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from condainer import units
from condainer.commands import progress
from condainer.commands.progress import Board
from condainer.pipeline.events import (
    Built,
    Note,
    Output,
    Progress,
    Stage,
    StageFinished,
    StageStarted,
    Unit,
)

if TYPE_CHECKING:
    from condainer.pipeline.events import Event

BUILT = Built("a", "/p/x.squashfs", 2_000_000, 1234, 9_000_000, 3, ((Stage.SOLVE, 1.25),), 1.5)


def board(*events: tuple[float, Event]) -> Board:
    made = Board()
    for when, event in events:
        made.update(event, when)
    return made


def test_nothing_is_going_on() -> None:
    assert Board().render(0.0, 80) == []


def test_a_stage_and_its_time() -> None:
    shown = board((10.0, StageStarted("a", Stage.SOLVE))).render(75.0, 80)
    assert [line[2:] for line in shown] == ["a: solve 1:05"]


def test_a_bar_a_rate_and_the_time_left() -> None:
    (line,) = board(
        (0.0, StageStarted("a", Stage.INSTALL)),
        (0.0, Progress("a", Stage.INSTALL, 0, 40, Unit.PACKAGES)),
        (5.0, Progress("a", Stage.INSTALL, 10, 40, Unit.PACKAGES, "numpy")),
    ).render(10.0, 200)
    assert "a: fetch and link 0:10" in line
    assert line.count("━") == 6
    assert line.count("╌") == 18
    assert line.endswith("10 of 40 packages, 1/s, 0:30 left  numpy")


def test_bytes_where_there_are_some_to_fetch() -> None:
    (line,) = board(
        (0.0, StageStarted("a", Stage.INSTALL)),
        (0.0, Progress("a", Stage.INSTALL, 1, 4, Unit.PACKAGES, "", 5_000_000, 20_000_000)),
    ).render(5.0, 200)
    assert line.endswith("1 of 4 packages, 5.0 MB of 20.0 MB, 1.0 MB/s, 0:15 left")


def test_a_total_that_nobody_knows() -> None:
    (line,) = board(
        (0.0, StageStarted("a", Stage.COMPILE)),
        (0.0, Progress("a", Stage.COMPILE, 1200, None, Unit.FILES)),
    ).render(0.5, 200)
    assert line.endswith("1,200 files")


def test_more_done_than_there_was() -> None:
    (line,) = board(
        (0.0, StageStarted("a", Stage.COMPILE)),
        (0.0, Progress("a", Stage.COMPILE, 50, 40, Unit.FILES)),
    ).render(2.0, 200)
    assert line.count("━") == 24
    assert "left" not in line


def test_what_has_ended_is_not_shown() -> None:
    started = (0.0, StageStarted("a", Stage.SOLVE))
    assert board(started, (1.0, StageFinished("a", Stage.SOLVE, 1.0))).render(2.0, 80) == []
    assert board(started, (1.0, BUILT)).render(2.0, 80) == []


def test_several_projects_have_a_line_each() -> None:
    shown = board(
        (0.0, StageStarted("a", Stage.SOLVE)), (0.0, StageStarted("b", Stage.SQUASH))
    ).render(1.0, 80)
    assert [line[2:] for line in shown] == ["a: solve 0:01", "b: squash 0:01"]


def test_stages_that_go_on_at_once_have_a_line_each() -> None:
    made = board(
        (0.0, StageStarted("a", Stage.INSTALL)),
        (1.0, StageStarted("a", Stage.SQUASH)),
        (2.0, Progress("a", Stage.INSTALL, 3, 9, Unit.PACKAGES)),
        (2.0, Progress("a", Stage.SQUASH, 7, None, Unit.BLOCKS)),
    )
    install, squash = made.render(3.0, 100)
    assert "a: fetch and link 0:03" in install
    assert "3 of 9 packages" in install
    assert "a: squash 0:02" in squash
    assert "7 blocks" in squash
    made.update(StageFinished("a", Stage.INSTALL, 3.0), 3.0)
    (left,) = made.render(4.0, 100)
    assert "squash" in left


def test_words_and_output_of_programs_are_no_lines() -> None:
    assert board((0.0, Note("a", "x")), (0.0, Output("a", "y"))).render(1.0, 80) == []


def test_a_detail_stays_on_its_line() -> None:
    (line,) = board(
        (0.0, StageStarted("a", Stage.PIP)),
        (0.0, Progress("a", Stage.PIP, 1, None, Unit.PACKAGES, "one\ntwo\x1b[2J\rthree")),
    ).render(1.0, 200)
    assert line.isprintable()


TEXT = st.text(max_size=30)
EVENTS = st.one_of(
    st.builds(StageStarted, TEXT, st.sampled_from(Stage)),
    st.builds(
        Progress,
        *(TEXT, st.sampled_from(Stage), st.integers(0, 10**9), st.none() | st.integers(0, 10**9)),
        *(st.sampled_from(Unit), TEXT, st.integers(0, 10**13), st.integers(0, 10**13)),
    ),
    st.builds(StageFinished, TEXT, st.sampled_from(Stage), st.floats(0, 1e6), TEXT),
)


@given(st.lists(st.tuples(st.floats(0, 1e5), EVENTS)), st.floats(0, 1e5), st.integers(1, 200))
def test_no_line_is_wider_than_the_terminal(
    events: list[tuple[float, Event]], later: float, width: int
) -> None:
    events.sort(key=lambda pair: pair[0])
    made = board(*events)
    now = (events[-1][0] if events else 0.0) + later
    from rich.cells import cell_len

    for line in made.render(now, width):
        assert cell_len(line) <= width
        assert line.isprintable()


# Plain lines


def plain(*events: Event, verbose: bool = False, several: bool = False) -> str:
    stream = io.StringIO()
    with progress.reporter(
        quiet=False, verbose=verbose, several=several, stream=stream
    ) as reporter:
        for event in events:
            reporter.handle(event)
    return stream.getvalue()


def test_a_log_has_plain_lines_with_times() -> None:
    told = plain(
        StageStarted("a", Stage.CHECK),
        StageFinished("a", Stage.CHECK, 0.01),
        StageStarted("a", Stage.SOLVE),
        Progress("a", Stage.SOLVE, 1, 2, Unit.PACKAGES),
        Output("a", "noise"),
        Note("a", "look"),
        StageFinished("a", Stage.SOLVE, 1.26, "3 packages"),
    )
    assert told == "check: 0.0 s\nsolve …\nlook\nsolve: 1.3 s (3 packages)\n"


def test_a_log_of_several_projects_names_them() -> None:
    told = plain(Note("a", "one\ntwo"), Note("b", "three"), several=True)
    assert told == "a: one\na:   two\nb: three\n"


def test_the_output_of_programs_on_request() -> None:
    assert plain(Output("a", "noise"), verbose=True) == "  | noise\n"


def test_what_a_terminal_would_obey_is_spelled_out() -> None:
    events = Note("a", "\x1b[2J\ttwo\nlines"), Output("a", "\x9b1m\x7fü")
    text = plain(*events, verbose=True, several=True)
    assert text == "a: \\x1b[2J\ttwo\na:   lines\na:   | \\x9b1m\\x7fü\n"


def test_the_summary() -> None:
    assert plain(BUILT) == (
        "/p/x.squashfs\n"
        "  1,234 files, 9.0 MB -> 1 file, 2.0 MB (4.5 times smaller)\n"
        "  1.5 s: solve 1.2\n"
    )


def test_quiet_says_nothing() -> None:
    stream = io.StringIO()
    with progress.reporter(quiet=True, verbose=True, several=True, stream=stream) as reporter:
        reporter.handle(BUILT)
    assert stream.getvalue() == ""


def test_lines_of_several_threads_do_not_mix() -> None:
    class Slow(io.StringIO):
        """Writes one character after the other."""

        def write(self, text: str) -> int:
            return sum(super(Slow, self).write(letter) for letter in text)

    stream = Slow()
    reporter = progress.reporter(quiet=False, verbose=False, several=False, stream=stream)

    def write(letter: str) -> None:
        for _ in range(50):
            reporter.handle(Note("a", letter * 50))

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 200
    assert all(len(line) == 50 and len(set(line)) == 1 for line in lines)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 KB"),
        (99_949, "99.9 KB"),
        (123_456, "123 KB"),
        (999_960, "1.0 MB"),
        (10_887_168, "10.9 MB"),
        (2_500_000_000, "2.5 GB"),
    ],
)
def test_sizes_for_people(size: int, words: str) -> None:
    assert units.human(size) == words
