"""What was measured, as a file: `results.json`.

It is one object, with

    format      1; another number means another layout
    date        when the measuring ended, ISO 8601, UTC
    complete    whether it came to its end; false after an interruption
    host        the machine, its file system, versions of tools: texts by name (see `host`)
    settings    "suites" (a list), "rounds", "quick", "seconds" (wall time, by suite)
    environment what was measured on: "packages", "files", "bytes" (unpacked), "image bytes"
    missing     who was left out from the beginning, and why
    failed      who could not go on, and why
    samples     every single one, in the order in which they came, each with suite, work,
                contender, round, values and settings, as in `samples.Sample`

Nothing in it is a median, a ratio or a rounded figure: whatever a report says follows from these
samples. A file is written whole under another name and renamed; one that is there is kept aside,
as `results.1.json` and so on.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.samples import Sample

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FORMAT = 1
NAME = "results.json"


class UnusableError(Exception):
    """A file is not what `write` writes."""


@dataclass(frozen=True)
class Results:
    """All that was measured; the attributes are explained above."""

    date: str
    complete: bool
    host: Mapping[str, str]
    settings: Mapping[str, object]
    environment: Mapping[str, int]
    samples: tuple[Sample, ...]
    missing: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)

    def of(self, suite: str) -> list[Sample]:
        """The samples of one suite."""
        return [sample for sample in self.samples if sample.suite == suite]


def write(results: Results, directory: Path) -> Path:
    """Put results into a directory, which is made if need be.

    Returns:
        the file.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / NAME
    part = directory / f".{NAME}.part"
    text = json.dumps({"format": FORMAT, **dataclasses.asdict(results)}, indent=1)
    part.write_text(text + "\n", encoding="utf-8")
    if path.exists():
        _keep(path)
    part.rename(path)
    return path


def _keep(path: Path) -> None:
    """Give a file another name; a link fails where there is one of that name already."""
    for number in itertools.count(1):
        try:
            path.with_name(f"{path.stem}.{number}{path.suffix}").hardlink_to(path)
        except FileExistsError:
            continue
        return


def read(path: Path) -> Results:
    """Read what `write` has written.

    Args:
        path: the file, or the directory with it.

    Raises:
        UnusableError: where it is something else, or cannot be read.
    """
    path = path / NAME if path.is_dir() else path
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnusableError(f"{path}: {error}") from error
    if not isinstance(found, dict) or found.pop("format", None) != FORMAT:
        raise UnusableError(f"{path} is not of format {FORMAT}, which is what is known here")
    try:
        samples = tuple(Sample(**sample) for sample in found.pop("samples"))
        return Results(samples=samples, **found)
    except (KeyError, TypeError) as error:
        raise UnusableError(f"{path} is not a file of results: {error}") from error
