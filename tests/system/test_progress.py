"""What a build shows on a real terminal, and when that has gone."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests import support

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("options", ["", "-v"])
@pytest.mark.parametrize("redirect", ["2>/dev/full", "2>&3", "2>&-"])
def test_a_build_goes_on_where_its_words_cannot_be_written(
    workshop: support.Workshop, hard_channel: Path, options: str, redirect: str
) -> None:
    """On a full disk, into a pipe whose reader has gone as `head` does, and where it is closed."""
    workshop.environment("hard-text", channel=hard_channel)
    script = f'exec 3> >(exec true); wait $!; "$@" build {options} {redirect}; echo $?'
    done = subprocess.run(
        ["bash", "-c", script, "bash", *support.CONDAINER],
        cwd=workshop.directory,
        env=workshop.variables,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("0\n", "")
    assert workshop.image.exists()


PLAY = """
import sys
from condainer.commands import progress
from condainer.pipeline.events import *

with progress.reporter(quiet=False, verbose=False, several=False) as reporter:
    reporter.handle(StageStarted("[bold]p", Stage.SOLVE))
    reporter.handle(Progress("[bold]p", Stage.SOLVE, 3, 9, Unit.PACKAGES, "numpy"))
    sys.stdin.readline()
    reporter.handle(StageFinished("[bold]p", Stage.SOLVE, 1.5, "9 packages"))
    reporter.handle(Note("[bold]p", "a [red]note"))
    reporter.handle(Note("p", "a \\x1b]0;title\\x07"))
    sys.stdin.readline()
    if "fail" in sys.argv:
        raise SystemExit(3)
"""


@pytest.mark.parametrize("end", ["well", "fail"])
def test_the_board_on_a_terminal(tmp_path: Path, end: str) -> None:
    env = {"PATH": "/usr/bin:/bin", "TERM": "xterm", "COLUMNS": "100", "HOME": str(tmp_path)}
    with support.terminal(
        [sys.executable, "-c", PLAY, end], cwd=support.REPOSITORY, env=env
    ) as terminal:
        terminal.expect("[bold]p: solve 0:00")
        terminal.expect("3 of 9 packages")
        terminal.type("\n")
        terminal.expect("1.5 s  9 packages")
        terminal.expect("a [red]note")
        terminal.expect(r"a \x1b]0;title\x07")
        terminal.type("\n")
        terminal.expect("\x1b[?25h")  # the cursor is shown again, however it ends
        assert terminal.wait() == (3 if end == "fail" else 0)


def test_a_build_whose_terminal_has_gone_goes_on_under_nohup(
    workshop: support.Workshop, hard_channel: Path
) -> None:
    workshop.environment("hard-text", channel=hard_channel)
    command = ["sh", "-c", "trap '' HUP; exec \"$@\"", "sh", *support.CONDAINER, "build"]
    env = {**workshop.variables, "TERM": "xterm"}
    with support.terminal(command, cwd=workshop.directory, env=env) as terminal:
        terminal.expect("check")
        terminal.hang_up()
        assert terminal.wait() == 0
    assert workshop.image.exists()
