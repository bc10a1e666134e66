"""What an image saves on this machine: `python -m benchmarks`. This module owns the command line.

Measuring is done by `suites`, writing by `results` and `report`, comparing by `compare`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from benchmarks import board, compare, contenders, environment, host, report, results, suites
from benchmarks.samples import Bench

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from benchmarks.results import Results
    from benchmarks.samples import Sample

_ROUNDS, _QUICK_ROUNDS = 3, 2
_INTERRUPTED = 128
_UNUSABLE = 2
_FAILURES = (OSError, RuntimeError, subprocess.SubprocessError)
_EXAMPLES = """\
examples:
  python -m benchmarks --quick                    everything, in three minutes
  python -m benchmarks                            everything, in half an hour
  python -m benchmarks startup exec --rounds 10   two suites, measured better
  python -m benchmarks --directory /scratch/me    on another file system than /tmp
  python -m benchmarks --compare OLD NEW          what became slower; 1 where something did
  python -m benchmarks --render results.json      writes the report of old results again
"""


class Interrupted(KeyboardInterrupt):
    """A signal asks for an end.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        self.number = number


@dataclass
class Run:
    """What has been measured so far.

    Attributes:
        samples: all of them.
        seconds: wall time, by suite.
        failed: what could not go on, and why.
    """

    samples: list[Sample] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def main() -> int:
    """Do what the command line says; gives the exit status."""
    parser = _parser()
    arguments = parser.parse_args()
    try:
        if arguments.compare:
            return compare.main(*arguments.compare)
        if arguments.render:
            found = results.read(arguments.render)
            arguments.out.mkdir(parents=True, exist_ok=True)
            sys.stdout.write(f"{report.write(found, arguments.out)}\n")
            return 0
    except results.UnusableError as error:
        parser.exit(_UNUSABLE, f"{error}\n")
    wanted = suites.NAMES if "all" in arguments.suites else arguments.suites
    arguments.suites = [name for name in suites.NAMES if name in wanted]
    return _measure(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures what an image saves on this machine, against what there is "
        "otherwise, and writes results.json, pictures, report.md and report.html.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("suites", nargs="*", choices=[*suites.NAMES, "all"], default="all", metavar="SUITE",
        help=f"{', '.join(suites.NAMES)} or all (default)")  # fmt: skip
    add("--quick", action="store_true", help="show the way: less work, fewer rounds")
    add("--rounds", type=_positive, help=f"default: {_ROUNDS}, or {_QUICK_ROUNDS} with --quick")
    add("--out", type=Path, default=Path("benchmark-results"), metavar="DIR",
        help="for results and report (default: benchmark-results)")  # fmt: skip
    add("--directory", type=Path, default=Path(tempfile.gettempdir()), metavar="DIR",
        help="on the file system to be measured (default: %(default)s)")  # fmt: skip
    add("--compare", nargs=2, type=Path, metavar=("OLD", "NEW"), help="compare two results")
    add("--render", type=Path, metavar="RESULTS", help="write the report of results into --out")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _measure(arguments: argparse.Namespace) -> int:
    """Measure, write, and show tables."""
    shown = board.Board()
    run = Run()
    status = 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    described = host.describe(arguments.directory)
    with _signals(), _directory(arguments.directory) as directory:
        rounds = arguments.rounds or (_QUICK_ROUNDS if arguments.quick else _ROUNDS)
        bench = Bench(directory, rounds, arguments.quick, shown.note)
        try:
            with shown.shown():
                for name in arguments.suites:
                    _suite(name, bench, run, shown)
        except Interrupted as interrupt:
            status = _INTERRUPTED + interrupt.number
        settings = {
            "suites": arguments.suites,
            "rounds": rounds,
            "quick": arguments.quick,
            "seconds": run.seconds,
        }
        found = results.Results(
            date=host.now(),
            complete=status == 0,
            host=described,
            settings=settings,
            environment=environment.describe(bench),
            samples=tuple(run.samples),
            missing=bench.missing,
            failed=run.failed,
        )
    results.write(found, arguments.out)
    page = report.write(found, arguments.out)
    _show(found, page)
    return status or (1 if run.failed else 0)


def _suite(name: str, bench: Bench, run: Run, shown: board.Board) -> None:
    """Measure one suite; where it fails as a whole, say so and go on."""
    start = time.monotonic()
    with shown.suite(name):
        try:
            for sample in suites.by_name(name).measure(bench):
                run.samples.append(sample)
                shown.sample()
        except _FAILURES as error:
            bench.failed["the suite"] = str(error)
            shown.note(f"failed: {error}")
    run.seconds[name] = round(time.monotonic() - start, 1)
    run.failed |= {f"{name}: {who}": why for who, why in bench.failed.items()}
    bench.failed.clear()


def _show(found: Results, page: Path) -> None:
    for suite, name in report.measured(found):
        for table in suite.tables(found.of(name)):
            board.show(table, sys.stdout)
    sys.stdout.writelines(f"left out: {who}: {why}\n" for who, why in found.missing.items())
    sys.stdout.writelines(f"FAILED: {who}: {why}\n" for who, why in found.failed.items())
    sys.stdout.write(f"{page.resolve()}\n")


@contextmanager
def _directory(parent: Path) -> Iterator[Path]:
    """A directory for everything, of which nothing is left."""
    directory = Path(tempfile.mkdtemp(prefix="cndb-", dir=parent))
    try:
        yield directory
    finally:
        contenders.clear(directory)
        shutil.rmtree(directory)


@contextmanager
def _signals() -> Iterator[None]:
    """The first signal ends the measuring, the next ones nothing: what there is gets written."""
    asked = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    heeded = [number for number in asked if signal.getsignal(number) is not signal.SIG_IGN]

    def end(number: int, _: FrameType | None) -> NoReturn:
        for each in heeded:
            signal.signal(each, lambda *_: None)  # which, unlike SIG_IGN, nobody inherits
        raise Interrupted(number)

    before = {number: signal.signal(number, end) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main())
