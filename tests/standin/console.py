"""What micromamba prints, word for word.

The texts are those of the released version 2.8.1 on a pipe. This module owns the words and where
they go; it decides nothing.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_WIDTH = 106  # of the lines that end with a state, such as `✔ Done (0.0 sec)`
_SIZE_PADDING = 3
_KILO = 1000


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table of packages.

    Attributes:
        name: The package.
        version: Its version.
        build: Its build string.
        channel: Where it comes from.
        size: What there is to download, in words.
    """

    name: str
    version: str
    build: str
    channel: str
    size: str


@dataclass(frozen=True, kw_only=True)
class Console:
    """The two output streams.

    Attributes:
        quiet: Leave out everything but errors: `--quiet`, and `--json`, which writes one document
            at the end instead.
        as_json: `--json` was given; then even errors keep to their last line.
    """

    quiet: bool = False
    as_json: bool = False

    def say(self, text: str) -> None:
        """Print to standard output."""
        if not self.quiet:
            sys.stdout.write(text)
            sys.stdout.flush()

    def warning(self, text: str) -> None:
        """Print a warning."""
        _log("warning", text)

    def error(self, text: str) -> None:
        """Print an error that a `critical` one follows."""
        if not self.as_json:
            _log("error", text)

    def critical(self, text: str) -> None:
        """Print the last words."""
        _log("critical", text)

    def document(self, document: dict[str, Any]) -> None:
        """Print the one document that `--json` asks for."""
        if self.as_json:
            json.dump(document, sys.stdout, indent=4, sort_keys=True)
            sys.stdout.write("\n")
            sys.stdout.flush()

    def repodata(self, urls: Sequence[str], *, shards: bool = True) -> None:
        """Report that repodata was read.

        Args:
            urls: The sub-directories of channels.
            shards: Whether to complain that they have no shards.
        """
        for url in urls:
            if shards:
                self.say(f"⚠ Shard Index for {url} not available, falling back to flat repodata\n")
            self._state(f"Using Flat Repodata for {url}", "✔ Starting")
            self._state(f"Using Flat Repodata for {url}", "✔ Done (0.0 sec)")
        self._state("Parsing Packages' Records", "✔ Done (0.0 sec)")

    def resolving(self) -> None:
        """Report a solve."""
        self.say("\n")
        self._state("Resolving Environment", "⧖ Starting")
        self._state("Resolving Environment", "✔ Done (0.0 sec)")

    def transaction(
        self, prefix: Path, specs: Sequence[str], rows: Sequence[Row], download: int
    ) -> None:
        """Show what will be done."""
        self.say(f"Transaction\n\n  Prefix: {prefix}\n\n  Updating specs:\n\n")
        self.say("".join(f"   - {spec}\n" for spec in specs) + "\n\n")
        header = Row(
            name="Package", version="Version", build="Build", channel="Channel", size="Size"
        )
        lines = _table([header, *sorted(rows, key=lambda row: row.name)])
        rule = "─" * (len(lines[0]) + 2)
        install = "\n".join(lines[1:])
        self.say(
            f"  {lines[0]}\n{rule}\n  Install:\n{rule}\n\n{install}\n\n"
            f"  Summary:\n\n  Install: {len(rows)} packages\n\n"
            f"  Total download: {human_size(download)}\n\n{rule}\n\n\n"
        )

    def finished(self, prefix: Path) -> None:
        """Say goodbye."""
        self.say("\nTransaction finished\n\n")
        self.say(
            "\nTo activate this environment, use:\n\n"
            f"    micromamba activate {prefix}\n\n"
            "Or to execute a single command in this environment, use:\n\n"
            f"    micromamba run -p {prefix} mycommand\n\n"
        )

    def _state(self, text: str, state: str) -> None:
        self.say(f"{text:<{_WIDTH - len(state) - 1}} {state}\n")


def human_size(size: int) -> str:
    """Write a number of bytes as the table does.

    >>> human_size(958), human_size(1665), human_size(60_267_472)
    ('958 B', '2kB', '60MB')
    """
    value = float(size)
    for unit in (" B", "kB", "MB"):
        if value < _KILO:
            return f"{value:.0f}{unit}"
        value /= _KILO
    return f"{value:.0f}GB"


def _table(rows: Sequence[Row]) -> list[str]:
    """Align the columns; the first row is the header."""
    names = ["Package", *(f"+ {row.name}" for row in rows[1:])]
    widths = {
        column: max(len(getattr(row, column)) for row in rows)
        for column in ("version", "build", "channel", "size")
    }
    width = max(map(len, names))
    lines = []
    for name, row in zip(names, rows, strict=True):
        version = row.version.rjust(widths["version"])
        if row is rows[0]:
            version = row.version.ljust(widths["version"])
        cells = [name.ljust(width), version]
        cells += [row.build.ljust(widths["build"]), row.channel.ljust(widths["channel"])]
        cells += [row.size.rjust(widths["size"] + _SIZE_PADDING)]
        lines.append("  ".join(cells))
    return [lines[0], *(f"  {line}" for line in lines[1:])]


def _log(level: str, text: str) -> None:
    """Write a log message as libmamba does, its later lines indented."""
    indented = text.replace("\n", "\n    ")
    sys.stderr.write(f"{level:<8} libmamba {indented}\n")
    sys.stderr.flush()
