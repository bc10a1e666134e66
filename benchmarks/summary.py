"""Medians, spread and ratios of samples, and how they are written.

A ratio is the median of the ratios round by round, to another contender in the same round, so that
what disturbs the machine for a while disturbs both.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from benchmarks.samples import Sample

_TENTH = 0.1


def pick(
    samples: Iterable[Sample], work: str | None = None, contender: str | None = None
) -> list[Sample]:
    """The samples of some work by some contender; None is for any."""
    return [
        sample
        for sample in samples
        if work in {None, sample.work} and contender in {None, sample.contender}
    ]


def values(samples: Iterable[Sample], quantity: str) -> list[float]:
    """One quantity, of those samples that have it."""
    return [sample.values[quantity] for sample in samples if quantity in sample.values]


def median(samples: Iterable[Sample], quantity: str) -> float:
    """The median of one quantity.

    Raises:
        statistics.StatisticsError: where no sample has it.
    """
    return statistics.median(values(samples, quantity))


def ratio(own: Iterable[Sample], base: Iterable[Sample], quantity: str) -> float | None:
    """The median of the ratios round by round; None where no round has both."""
    first = _by_round(base, quantity)
    second = _by_round(own, quantity)
    both = [second[key] / first[key] for key in second.keys() & first.keys() if first[key]]
    return statistics.median(both) if both else None


def _by_round(samples: Iterable[Sample], quantity: str) -> dict[int, float]:
    """Typical values; a round may have several samples."""
    rounds: dict[int, list[float]] = {}
    for sample in samples:
        if quantity in sample.values:
            rounds.setdefault(sample.round, []).append(sample.values[quantity])
    return {number: statistics.median(each) for number, each in rounds.items()}


def works(samples: Iterable[Sample]) -> list[str]:
    """Kinds of work, in the order in which they came."""
    return list(dict.fromkeys(sample.work for sample in samples))


def contenders(samples: Iterable[Sample]) -> list[str]:
    """Names, in the order in which they came."""
    return list(dict.fromkeys(sample.contender for sample in samples))


def spread(found: Sequence[float], digits: int = 3) -> str:
    """Three significant figures of a median and of the least and the most."""
    if not found:
        return "-"
    if len(found) == 1:
        return f"{number(found[0], digits)} (once)"
    low, high = number(min(found), digits), number(max(found), digits)
    return f"{number(statistics.median(found), digits)} ({low}-{high})"


def number(value: float, digits: int = 3) -> str:
    """Some significant figures, without an exponent."""
    if value == 0:
        return "0"
    size = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    if size == 0:
        leading = 0
        while abs(value) < _TENTH ** (leading + 1):
            leading += 1
        return f"{value:.{min(leading + digits, 4)}f}"
    return f"{value:,.{max(0, digits - size)}f}"


def ratio_text(value: float | None) -> str:
    """A ratio, or a dash where there is none."""
    return "-" if value is None else number(value)
