"""What `condainer exec -- true` takes, against the start of the interpreter that runs it.

    python -m benchmarks.exec [--rounds N] [--at-once N] [--user]

Root only: what mounts is chosen by hiding the programs that come before it, in a mount namespace.
`--user` then measures as an ordinary user. Contenders run in turn within each round, started by
`launcher.py`, and the ratios are to `python3 -c pass` in the same round.

    live                      the image is mounted
    cold, squashfuse_ll       it is not mounted yet; so with the other two
    many x pass, many x exec  128 at once, the latter with nothing mounted yet: one mount is made

The bars are 2.5 for a live mount, 10 for a cold one with squashfuse_ll, and for 128 at once
1.3 times 128 x pass and one cold exec. The exit status is 1 where a command failed, or where there
was not one mount.

Measured on two cores (Linux 6.18, squashfuse 0.1.104, Python 3.11; medians of 4 rounds):

    live                  0.012 s    1.12
    cold, squashfuse_ll   0.067 s    6.44
    cold, squashfuse      0.072 s    6.67
    cold, python          0.094 s    8.97
    128 x exec            0.907 s    1.29 of 128 x pass, where the bar is at 1.40
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import places
from tests import users

if TYPE_CHECKING:
    from collections.abc import Iterator

LAUNCHER = Path(__file__).parent / "launcher.py"
HIDDEN = {
    "squashfuse_ll": (),
    "squashfuse": ("squashfuse_ll",),
    "python": ("squashfuse_ll", "squashfuse"),
}
"""What is hidden so that a backend is the first there is."""
EACH = 5
"""How often short contenders run in a round, in turn."""
PATIENCE = 60.0
MOST = {"condainer-keep": 2}
"""How many processes of a name there may be: a keeper has a shadow."""

PASS, LIVE, MANY_PASS, MANY = "pass", "live", "many x pass", "many x exec"
COLD = {backend: f"cold, {backend}" for backend in HIDDEN}
BARS = {LIVE: 2.5, COLD["squashfuse_ll"]: 10.0}
BAR_OF_MANY = 1.3


@dataclass(frozen=True)
class Run:
    """What came of one start, or of many at once.

    Attributes:
        seconds: until all had ended.
        statuses: how often there was each exit status.
        mounts: how many appeared meanwhile.
        processes: those that were there at the end, by name.
    """

    seconds: float
    statuses: dict[str, int]
    mounts: int
    processes: dict[str, int]


class Bench:
    """A project, and namespaces in which it is used with one backend each.

    Args:
        place: the project.
        namespaces: by backend.
        user: who measures.
    """

    def __init__(self, place: places.Place, namespaces: dict[str, users.Place], user: int) -> None:
        self._place = place
        self._namespaces = namespaces
        self._user = user
        script = Path(sys.executable).parent / "condainer"  # as users have it
        module = [sys.executable, "-m", "condainer"]
        self._condainer = [str(script)] if script.exists() else module
        self._exec = [*self._condainer, "exec", "--", "/bin/true"]

    def round(self, many: int) -> Iterator[tuple[str, Run]]:
        """Everything once, or some times."""
        ready = "squashfuse_ll"
        start = [sys.executable, "-c", "pass"]
        self._run(ready, "mount")
        for _ in range(EACH):
            yield PASS, self._start(ready, 1, *start)
            yield LIVE, self._start(ready, 1, *self._exec)
        self._forget(ready)
        for backend, name in COLD.items():
            yield name, self._start(backend, 1, *self._exec)
            self._forget(backend)
        yield MANY_PASS, self._start(ready, many, *start)
        yield MANY, self._start(ready, many, *self._exec)
        self._forget(ready)

    def _start(self, backend: str, count: int, *argv: str) -> Run:
        prefix = str(self._place.prefix)
        words = [sys.executable, str(LAUNCHER), str(count), prefix, *argv]
        return Run(**json.loads(self._enter(backend, *words)))

    def _run(self, backend: str, *arguments: str) -> None:
        self._enter(backend, *self._condainer, "-q", *arguments)

    def _enter(self, backend: str, *argv: str) -> str:
        done = self._namespaces[backend].enter(
            self._user,
            *argv,
            cwd=self._place.project,
            HOME=str(self._place.home),
            PYTHONPATH="",
        )
        sys.stderr.write(done.stderr)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(argv)} ended with {done.returncode}")
        return done.stdout

    def _forget(self, backend: str) -> None:
        """See that nothing is mounted, and nothing left of a mount."""
        self._run(backend, "umount")
        deadline = time.monotonic() + PATIENCE
        base = self._place.prefix.parent
        while left := [*base.iterdir(), *self._daemons(backend)]:
            if time.monotonic() > deadline:
                raise RuntimeError(f"left: {left}")
            time.sleep(0.02)

    def _daemons(self, backend: str) -> list[str]:
        """What runs in a namespace beside the process that holds it."""
        return [name for name in self._start(backend, 1, "/bin/true").processes if name != "cat"]


def main() -> int:
    """Measure, and print a table; gives the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--at-once", type=int, default=128, metavar="N")
    parser.add_argument("--user", action="store_true", help="measure as an ordinary user")
    arguments = parser.parse_args()
    if os.getuid() != 0:
        parser.error("only root can hide programs")
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cndb-")))
        user = users.ANN if arguments.user else 0
        namespaces = {
            backend: stack.enter_context(users.namespace(hidden))
            for backend, hidden in HIDDEN.items()
        }
        bench = Bench(make(directory, user), namespaces, user)
        rounds: list[dict[str, list[Run]]] = []
        list(bench.round(2))  # so that everything is compiled, and in the page cache
        for number in range(arguments.rounds):
            sys.stderr.write(f"round {number + 1}\n")
            rounds.append({})
            for name, run in bench.round(arguments.at_once):
                rounds[-1].setdefault(name, []).append(run)
    sys.stdout.write(table(rounds) + "\n")
    wrong = list(problems(rounds))
    sys.stdout.write("".join(f"WRONG: {line}\n" for line in wrong))
    return 1 if wrong else 0


def make(directory: Path, user: int) -> places.Place:
    """A small project, built and given to a user."""
    place = places.make(directory, "hard", ("python", "hard-hello"))
    place.condainer("build")
    for path in (directory, *directory.rglob("*")):
        os.chown(path, user, user, follow_symlinks=False)
    return place


def table(rounds: list[dict[str, list[Run]]]) -> str:
    """Medians, the medians of the ratios round by round, and the bars."""
    lines = [f"{'':22}{'median s':>9}{'min':>7}{'max':>7}{'ratio':>7}{'bar':>7}{'mounts':>8}"]
    for name in rounds[0]:
        runs = [run for each in rounds for run in each[name]]
        seconds = [run.seconds for run in runs]
        base = MANY_PASS if name == MANY else PASS
        ratio = statistics.median(typical(each[name]) / typical(each[base]) for each in rounds)
        bar = BARS.get(name, 0.0)
        if name == MANY:
            bar = statistics.median(bar_of_many(each) for each in rounds)
        mounts = "-".join(str(number) for number in sorted({run.mounts for run in runs}))
        lines.append(
            f"{name:22}{statistics.median(seconds):9.3f}{min(seconds):7.3f}{max(seconds):7.3f}"
            f"{ratio:7.2f}{f'{bar:.2f}' if bar else '':>7}{mounts:>8}"
        )
    return "\n".join(lines)


def typical(runs: list[Run]) -> float:
    """The median of one round."""
    return statistics.median(run.seconds for run in runs)


def bar_of_many(each: dict[str, list[Run]]) -> float:
    """What many at once may take, as a ratio to as many bare starts."""
    return BAR_OF_MANY + typical(each[COLD["squashfuse_ll"]]) / typical(each[MANY_PASS])


def problems(rounds: list[dict[str, list[Run]]]) -> Iterator[str]:
    """Commands that failed, and too many mounts or processes."""
    for number, each in enumerate(rounds):
        for name, runs in each.items():
            for run in runs:
                if set(run.statuses) != {"0"}:
                    yield f"round {number + 1}: {name}: exit statuses {run.statuses}"
                if run.mounts != (name in {MANY, *COLD.values()}):
                    yield f"round {number + 1}: {name}: {run.mounts} mounts appeared"
                if several := {key: n for key, n in run.processes.items() if n > MOST.get(key, 1)}:
                    yield f"round {number + 1}: {name}: processes {several}"


if __name__ == "__main__":
    sys.exit(main())
