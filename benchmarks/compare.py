"""What became slower between two results, beyond the noise: `--compare OLD NEW`.

Each quantity of each contender and work is compared as the ratio of new to old, on a logarithmic
scale. What disturbs the machine is taken out in two steps. Within a result, where most contenders
took longer in a round than they use to at some work, all are corrected by as much. Between the two,
a contender that does not change with condainer (one of the suites' `BASES`) tells how much slower
the machine was at the same work: its change is taken off the others' times. What is counted (bytes,
operations) is compared as it is.

Noise is what scatter is left between rounds, within each of the two results; since a few rounds say
little of their own scatter, it counts as at least that of the middle quantity of its kind in the
same suite, and that of the machine's own change is added. From it follows an interval
for the ratio, as wide as makes it unlikely (`_MISTAKES`) that even one of all comparisons cries
wolf. Something counts as slower where the whole interval lies above 1, and the ratio above a floor.
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

_FLOOR = 1.05
"""Less than that matters to nobody."""
_MISTAKES = 0.01
_LEAST_ROUNDS = 2
_ENOUGH = 3
"""Contenders that tell what most of them do."""
_TICK = 0.05
"""CPU times below it are a few ticks of the kernel's clock, which say nothing."""
_EXACT = ("bytes", "operations", "mounts")
"""How the names of what is counted end."""

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


@dataclass(frozen=True)
class Pair:
    """How something changed, on a logarithmic scale.

    Attributes:
        middle: logarithm of the ratio of medians.
        error: standard error of that.
    """

    middle: float
    error: float


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
        "Ratios of new to old (of rates, old to new: more is worse); of times, after taking off "
        "how much slower the machine was. The "
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
    first, second = _steady(_logs(old)), _steady(_logs(new))
    both = [key for key in first if key in second and (timed or key[4].endswith(_EXACT))]
    lines = [*_alone(first, second, "OLD"), *_alone(second, first, "NEW")]
    few = {key for key in both if min(len(first[key]), len(second[key])) < _LEAST_ROUNDS}
    if few:
        lines.append(f"{len(few)} quantities have fewer than {_LEAST_ROUNDS} rounds: not compared")
    keys = [key for key in both if key not in few]
    usual = _usual(keys, first, second)
    pairs = {key: _pair(first[key], second[key], usual[key[0], key[4]]) for key in keys}
    lines += _machine(pairs)
    compared = [key for key in keys if not _is_base(key)]
    width = statistics.NormalDist().inv_cdf(1 - _MISTAKES / 2 / max(1, len(compared)))
    changes = []
    for key in compared:
        drift = _drift(key, pairs)
        error = math.hypot(pairs[key].error, drift.error)
        changes.append(_judged(key, pairs[key].middle - drift.middle, width * error))
    return changes, lines


def _judged(key: Key, middle: float, half: float) -> Change:
    verdict = "same"
    if middle - half > 0 and middle > math.log(_FLOOR):
        verdict = "slower"
    if middle + half < 0 and middle < -math.log(_FLOOR):
        verdict = "faster"
    return Change(key, math.exp(middle), math.exp(middle - half), math.exp(middle + half), verdict)


def _pair(old: Rounds, new: Rounds, usual: float) -> Pair:
    error = max(_scatter(old, new), usual) * math.sqrt(1 / len(old) + 1 / len(new))
    return Pair(statistics.median(new.values()) - statistics.median(old.values()), error)


def _alone(these: Mapping[Key, Rounds], those: Mapping[Key, Rounds], name: str) -> Iterable[str]:
    works = {key[:3] for key in these} - {key[:3] for key in those}
    return [f"only in {name}: {': '.join(work)}" for work in sorted(works)]


def _logs(found: Results) -> dict[Key, Rounds]:
    """Logarithms, such that more is worse; several samples of one round count as their median."""
    rounds: dict[Key, dict[int, list[float]]] = {}
    for sample in found.samples:
        settings = ", ".join(f"{name} {value}" for name, value in sorted(sample.settings.items()))
        for quantity, value in sample.values.items():
            if value > 0 and not (quantity.endswith("_per_s") and "wall_s" in sample.values):
                key = (sample.suite, sample.work, sample.contender, settings, quantity)
                rounds.setdefault(key, {}).setdefault(sample.round, []).append(value)
    return {
        key: {
            number: math.log(statistics.median(values)) * (-1 if key[4].endswith("_per_s") else 1)
            for number, values in each.items()
        }
        for key, each in rounds.items()
        if not (key[4].endswith("cpu_s") and max(map(max, each.values())) < _TICK)
    }


def _steady(logs: Mapping[Key, Rounds]) -> dict[Key, Rounds]:
    """Take out what disturbed most contenders in the same round of the same work."""
    usual = {key: statistics.median(each.values()) for key, each in logs.items()}
    excess: dict[tuple[str, ...], list[float]] = {}
    for key, each in logs.items():
        for number, value in each.items():
            excess.setdefault(_moment(key, number), []).append(value - usual[key])
    common = {
        moment: statistics.median(found) if len(found) >= _ENOUGH else 0.0
        for moment, found in excess.items()
    }
    return {
        key: {number: value - common[_moment(key, number)] for number, value in each.items()}
        for key, each in logs.items()
    }


def _moment(key: Key, number: int) -> tuple[str, ...]:
    """What contenders do in turn."""
    return (key[0], key[1], key[3], key[4], str(number))


def _bases(suite: str) -> tuple[str, ...]:
    return getattr(suites.by_name(suite), "BASES", ())


def _is_base(key: Key) -> bool:
    """Whether a time tells of the machine only."""
    return not key[4].endswith(_EXACT) and key[2] in _bases(key[0])


def _drift(key: Key, pairs: Mapping[Key, Pair]) -> Pair:
    """How much slower the machine was: at that work, or else in that suite."""
    suite, work, _, settings, quantity = key
    if quantity.endswith(_EXACT):
        return Pair(0.0, 0.0)
    for name in _bases(suite):
        if (suite, work, name, settings, "wall_s") in pairs:
            return pairs[suite, work, name, settings, "wall_s"]
    changes = _base_changes(suite, pairs)
    if not changes:
        return Pair(0.0, 0.0)
    # Of some other work: how much these differ from each other says how sure that is.
    error = statistics.stdev(changes) if len(changes) > 1 else 0.0
    return Pair(statistics.median(changes), error)


def _base_changes(suite: str, pairs: Mapping[Key, Pair]) -> list[float]:
    return [
        pair.middle
        for key, pair in pairs.items()
        if key[0] == suite and key[4] == "wall_s" and _is_base(key)
    ]


def _machine(pairs: Mapping[Key, Pair]) -> list[str]:
    """Lines about the machine itself."""
    found = {suite: _base_changes(suite, pairs) for suite in dict.fromkeys(key[0] for key in pairs)}
    return [
        f"{suite}: what does not change with condainer took "
        f"{math.exp(statistics.median(changes)):.2f} times as long"
        for suite, changes in found.items()
        if changes
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
