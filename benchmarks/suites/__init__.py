"""What `python -m benchmarks` measures: a module for each kind of load, all of the same shape.

`Suite` says which. A module may also have `headlines(samples)`, one or two sentences with the
figures that matter most, for the top of the report, and `BASES`, the contenders that do not change
with condainer, to which times are related when results are compared.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.samples import Bench, Figure, Sample, Table

NAMES = ("startup", "metadata", "build", "read", "exec", "parallel")
"""In the order in which they run: `read` uses images that `build` has written."""


class Suite(Protocol):
    """What such a module has.

    Attributes:
        TITLE: its heading in the report.
        ABOUT: a paragraph for the report: what was done, and how to read it.
    """

    TITLE: str
    ABOUT: str

    def measure(self, bench: Bench) -> Iterator[Sample]:
        """Give samples as they come."""

    def tables(self, samples: Sequence[Sample]) -> list[Table]:
        """Show samples as tables."""

    def figures(self, samples: Sequence[Sample]) -> list[Figure]:
        """Show samples as pictures."""


def by_name(name: str) -> Suite:
    """A suite; its module is imported when it is needed."""
    return cast("Suite", import_module(f"benchmarks.suites.{name}"))
