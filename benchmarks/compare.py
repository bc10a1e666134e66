"""What became slower between two results, beyond the noise: `--compare OLD NEW`.

Each quantity of each contender and work is compared as the ratio of new to old, on a logarithmic
scale. Seconds and rates are first divided, round by round, by those of one of the suite's `BASES`
at the same work, where that takes part: a plain directory does not change with condainer, and what
disturbs the machine disturbs both. What is counted (bytes, operations) is compared as it is.

Noise is the scatter between rounds, within each of the two results; since a few rounds say little
of their own scatter, it counts as at least that of the middle quantity of its kind in the same
suite. From it follows an interval for the ratio, as wide as makes it unlikely (`_MISTAKES`) that
even one of all comparisons cries wolf. Something counts as slower where the whole interval lies
above 1, and the ratio above a floor.
"""

from __future__ import annotations

import math
import statistics
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks import board, host, results, suites, summary
from benchmarks.samples import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from benchmarks.results import Results
    from benchmarks.samples import Sample

_FLOOR = 1.05
"""Less than that matters to nobody."""
_MISTAKES = 0.05
_LEAST_ROUNDS = 2
_TICK = 0.05
"""CPU times below it are a few ticks of the kernel's clock, which say nothing."""
_EXACT = ("bytes", "operations", "mounts", "image_bytes")

Key = tuple[str, str, str, str, str]
"""Suite, work, contender, settings and quantity."""
Rounds = dict[int, float]
"""A quantity, or its logarithm, by round."""


@dataclass(frozen=True)
class Change:
    """One comparison.

    Attributes:
        key: of what.
        ratio: new to old.
        low: the least that it is likely to be.
        high: the most.
        verdict: "slower", "faster" or "same", where slower stands for worse of any kind.
    """

    key: Key
    ratio: float
    low: float
    high: float
    verdict: str


def main(old: Path, new: Path) -> int:
    """Compare, and print what came of it; gives the exit status."""
    first, second = results.read(old), results.read(new)
    notes = list(differences(first, second))
    timed = not any(note.startswith(_NOT_COMPARED) for note in notes)
    changes, alone = compare(first, second, timed=timed)
    sys.stdout.writelines(f"{note}\n" for note in [*notes, *alone])
    for verdict in ("slower", "faster"):
        rows = [change for change in changes if change.verdict == verdict]
        if rows:
            board.show(_table(f"What became {verdict} (or {_OTHER[verdict]})", rows), sys.stdout)
    slower = sum(change.verdict == "slower" for change in changes)
    faster = sum(change.verdict == "faster" for change in changes)
    sys.stdout.write(
        f"{len(changes)} compared: {slower} slower, {faster} faster, the others the same within "
        f"the noise or within {_FLOOR - 1:.0%}\n"
    )
    return 1 if slower else 0


_OTHER = {"slower": "more", "faster": "less"}
_NOT_COMPARED = "times are not compared"


def _table(title: str, changes: Sequence[Change]) -> Table:
    rows = tuple(
        (
            *change.key[:3],
            change.key[3],
            change.key[4],
            summary.number(change.ratio),
            f"{summary.number(change.low)}-{summary.number(change.high)}",
        )
        for change in sorted(changes, key=lambda change: -abs(math.log(change.ratio)))
    )
    columns = ("suite", "work", "contender", "settings", "quantity", "ratio", "interval")
    note = (
        "Ratios of new to old (of rates, old to new: more is worse); of times, relative to what "
        "does not change with condainer, where that takes part in the same round. The "
        f"intervals are so wide that all of them together hold with {1 - _MISTAKES:.0%}."
    )
    return Table(title, columns, rows, note)


def differences(old: Results, new: Results) -> Iterable[str]:
    """What is different beside the figures, and what follows from it."""
    machine = [name for name in host.MACHINE if old.host.get(name) != new.host.get(name)]
    if machine:
        yield f"{_NOT_COMPARED}: another machine ({', '.join(machine)})"
    for name in ("packages", "files", "bytes"):
        if old.environment.get(name) != new.environment.get(name):
            yield f"{_NOT_COMPARED}: another environment ({name})"
            break
    if old.settings.get("quick") != new.settings.get("quick"):
        yield f"{_NOT_COMPARED}: only one of them is a --quick run"
    for name in sorted(old.host.keys() | new.host.keys()):
        before, after = old.host.get(name, "none"), new.host.get(name, "none")
        if name not in {*host.MACHINE, "load before"} and before != after:
            yield f"other {name}: {before} -> {after}"


def compare(old: Results, new: Results, *, timed: bool) -> tuple[list[Change], list[str]]:
    """Compare what both have.

    Args:
        old: before.
        new: after.
        timed: whether times can be compared, or only what is counted.

    Returns:
        all comparisons, and lines about what cannot be compared, and about the machine.
    """
    typical = _typical(old), _typical(new)
    first, second = (_logs(each, typical) for each in typical)
    both = [key for key in first if key in second and (timed or key[4] in _EXACT)]
    alone = [*_alone(first, second, "OLD"), *_alone(second, first, "NEW")]
    few = [key for key in both if min(len(first[key]), len(second[key])) < _LEAST_ROUNDS]
    if few:
        alone.append(f"{len(few)} quantities have fewer than {_LEAST_ROUNDS} rounds: not compared")
    keys = [key for key in both if key not in set(few)]
    alone += _drift(keys, first, second)
    keys = [key for key in keys if not _is_base(key)]
    noise = _usual(keys, first, second)
    found = statistics.NormalDist().inv_cdf(1 - _MISTAKES / 2 / max(1, len(keys)))
    return [_change(key, first[key], second[key], noise, found) for key in keys], alone


def _alone(these: Mapping[Key, Rounds], those: Mapping[Key, Rounds], name: str) -> Iterable[str]:
    works = {key[:3] for key in these} - {key[:3] for key in those}
    return [f"only in {name}: {': '.join(work)}" for work in sorted(works)]


def _typical(found: Results) -> dict[Key, Rounds]:
    """Everything that is there; several samples of one round count as their median."""
    rounds: dict[Key, dict[int, list[float]]] = {}
    for sample in found.samples:
        for quantity, value in sample.values.items():
            key = (sample.suite, sample.work, sample.contender, _settings(sample), quantity)
            rounds.setdefault(key, {}).setdefault(sample.round, []).append(value)
    return {
        key: {number: statistics.median(values) for number, values in each.items()}
        for key, each in rounds.items()
    }


def _settings(sample: Sample) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(sample.settings.items()))


def _logs(own: Mapping[Key, Rounds], both: Sequence[Mapping[Key, Rounds]]) -> dict[Key, Rounds]:
    """Logarithms of what can be compared, so that more is worse."""
    found = {}
    for key, rounds in own.items():
        if key[4].endswith("cpu_s") and statistics.median(rounds.values()) < _TICK:
            continue
        base = None if _is_base(key) else _base(key, both)
        divisors = own[base] if base else {}
        sign = -1 if key[4].endswith("_per_s") else 1
        logs = {
            number: sign * math.log(value / divisors.get(number, 1.0))
            for number, value in rounds.items()
            if value > 0 and (number in divisors or not base)
        }
        if logs:
            found[key] = logs
    return found


def _base(key: Key, both: Sequence[Mapping[Key, Rounds]]) -> Key | None:
    """What a time is related to, if it is in both results."""
    suite, work, _, settings, quantity = key
    for name in () if quantity in _EXACT else _bases(suite):
        base = (suite, work, name, settings, quantity)
        if all(min(each.get(base, {0: 0.0}).values()) > 0 for each in both):
            return base
    return None


def _bases(suite: str) -> tuple[str, ...]:
    return getattr(suites.by_name(suite), "BASES", ())


def _is_base(key: Key) -> bool:
    """Whether a time tells of the machine only."""
    return key[4] not in _EXACT and key[2] in _bases(key[0])


def _drift(
    keys: Iterable[Key], first: Mapping[Key, Rounds], second: Mapping[Key, Rounds]
) -> list[str]:
    """How much slower or faster the machine was."""
    found: dict[str, list[float]] = {}
    for key in keys:
        if _is_base(key) and key[4] == "wall_s":
            change = statistics.fmean(second[key].values()) - statistics.fmean(first[key].values())
            found.setdefault(key[0], []).append(change)
    return [
        f"{suite}: what does not change with condainer took "
        f"{math.exp(statistics.median(changes)):.2f} times as long"
        for suite, changes in found.items()
    ]


def _usual(
    keys: Iterable[Key], first: Mapping[Key, Rounds], second: Mapping[Key, Rounds]
) -> dict[tuple[str, str], float]:
    """The middle one of the scatters of each suite and quantity."""
    scatters: dict[tuple[str, str], list[float]] = {}
    for key in keys:
        scatters.setdefault((key[0], key[4]), []).append(_scatter(first[key], second[key]))
    return {kind: statistics.median(each) for kind, each in scatters.items()}


def _scatter(first: Rounds, second: Rounds) -> float:
    """The standard deviation within both, taken together."""
    freedom = len(first) + len(second) - 2
    squares = sum(statistics.variance(each.values()) * (len(each) - 1) for each in (first, second))
    return math.sqrt(squares / freedom)


def _change(
    key: Key, old: Rounds, new: Rounds, noise: Mapping[tuple[str, str], float], width: float
) -> Change:
    scatter = max(_scatter(old, new), noise[key[0], key[4]])
    middle = statistics.fmean(new.values()) - statistics.fmean(old.values())
    half = width * scatter * math.sqrt(1 / len(old) + 1 / len(new))
    verdict = "same"
    if middle - half > 0 and middle > math.log(_FLOOR):
        verdict = "slower"
    if middle + half < 0 and middle < -math.log(_FLOOR):
        verdict = "faster"
    return Change(key, math.exp(middle), math.exp(middle - half), math.exp(middle + half), verdict)
