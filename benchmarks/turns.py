"""Whose turn it is: each contender once a round, A B C A B C …, so that noise hits all of them."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from benchmarks import contenders

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from benchmarks.samples import Bench, Sample


def here(bench: Bench, wanted: Sequence[str] = contenders.ALL) -> list[str]:
    """Those of some contenders that can take part; the others are noted as missing."""
    for name in wanted:
        if reason := contenders.why_not(name):
            bench.missing[name] = reason
    return [name for name in wanted if name not in bench.missing]


def in_turn(
    bench: Bench, names: Iterable[str], work: Callable[[str, int], Iterable[Sample]]
) -> Iterator[Sample]:
    """Let each have its turn in each round.

    One that fails is noted with the reason, and left out from then on.

    Args:
        bench: says how many rounds.
        names: of the contenders.
        work: what one of them does in a round; takes its name and the number of the round.
    """
    left = list(names)
    for number in range(1, bench.rounds + 1):
        for name in tuple(left):
            bench.on_note(f"round {number} of {bench.rounds}: {name}")
            try:
                yield from work(name, number)
            except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                bench.failed[name] = f"in round {number}: {error}"
                bench.on_note(f"{name} failed and is left out: {error}")
                left.remove(name)
