"""Times a program, and contenders in turn, A B A B …, so that noise hits all of them."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


@dataclass(frozen=True)
class Result:
    """What came of one contender.

    Attributes:
        name: of the contender.
        seconds: wall time of each round.
        size: bytes it produced in the last round.
    """

    name: str
    seconds: tuple[float, ...]
    size: int

    @property
    def median(self) -> float:
        """Of the wall times."""
        return statistics.median(self.seconds)


def program(
    command: Sequence[str], variables: Mapping[str, str] | None = None
) -> tuple[float, float]:
    """Run a program without output, and those that it starts.

    Returns:
        the seconds it took, and how many of them processors were busy with it.

    Raises:
        RuntimeError: where it fails.
    """
    start = time.perf_counter()
    process = subprocess.Popen(
        command, env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        _, status, used = os.wait4(process.pid, 0)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return wall, used.ru_utime + used.ru_stime


def alternate(contenders: Mapping[str, Callable[[], int]], rounds: int) -> list[Result]:
    """Run each contender once a round.

    Args:
        contenders: name to what it does; gives the bytes it produced.
        rounds: how many.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    sizes: dict[str, int] = {}
    for number in range(rounds):
        for name, work in contenders.items():
            start = time.perf_counter()
            sizes[name] = work()
            times[name].append(time.perf_counter() - start)
            sys.stderr.write(f"round {number + 1}: {name}: {times[name][-1]:.2f} s\n")
    return [Result(name, tuple(times[name]), sizes[name]) for name in contenders]


def ratio(result: Result, base: Result) -> float:
    """The median of the ratios round by round."""
    return statistics.median(a / b for a, b in zip(result.seconds, base.seconds, strict=True))


def table(results: Sequence[Result], base: Result) -> str:
    """The results as a table, with time and size as ratios to one of them."""
    width = max(len(result.name) for result in results)
    lines = [f"{'':{width}}  median s   min   max  time ratio      MB  size ratio"]
    lines += [
        f"{r.name:{width}}  {r.median:8.2f} {min(r.seconds):5.2f} {max(r.seconds):5.2f}"
        f"  {ratio(r, base):10.2f}  {r.size / 1e6:6.1f}  {r.size / base.size:10.2f}"
        for r in results
    ]
    return "\n".join(lines)
