"""Extracts what matters from the output of micromamba, mamba and conda when they fail."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from condainer.pipeline.installers import failures

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_PREFIX = re.compile(r"^(critical|error|warning|info)\s+libmamba\s?")
_CONTINUED = " " * 4
"""Begins further lines of an error; tables of packages have less indentation."""
_CAUSE = re.compile(
    r"(critical|error)\s+libmamba|([A-Z]\w*Error|[A-Z][a-z]+[A-Z]\w*)(: |\()|Encountered corrupt "
)
"""Begins an explanation; conda writes names of exceptions there."""
_QUOTED = re.compile(r"(?P<name>[A-Z]\w+)\((?P<text>(?P<mark>[\"']).*(?P=mark)),?\)")
"""An exception as Python's `repr` writes it."""
_TRACEBACK = "Traceback (most recent call last):"
_TABLE = re.compile(r"\s*[\w.-]* *\|.*\||\s+package +\||\s+-+\|-+|.*\| +#* *\|?.*%")
_NOTHING = re.compile(r"\s*(<None>|\(\)|None|std(out|err):|==> script \w+ <==)\s*")
_BOILERPLATE = re.compile(
    r"If you (run into this error|see this message repeatedly|continue to meet|still are having)"
    r"|If (you suspect|submitted, this report)|(Please try|in which case) running `mamba clean"
    r"|github\.com/mamba-org/mamba/issues|consider using the --no-plugins|Example: \w*.*conda"
    r"|set the CONDA_NO_PLUGINS|the command line to run the command without plugins"
    r"|An unexpected error has occurred|You will need to (adjust|modify) your conda configuration"
    r"|[Uu]se `conda config --show|Further configuration help can be found"
    r"|To search for alternate channels|looking for, navigate to|https://anaconda\.org$"
    r"|and use the search bar|location of failed script: |\*{5,} Backtrace (Start|End) \*{5,}"
)
_LAST_LINES = 8


def explanation(lines: Sequence[str]) -> str:
    """Find the errors in a failed program's output, without boilerplate.

    Args:
        lines: of the output.
    """
    lines = _raised(lines) or lines
    first = next((place for place, line in enumerate(lines) if _CAUSE.match(line)), None)
    if first is None:
        kept = [line for line in lines if line.strip() and not _TABLE.match(line)]
        return failures.excerpt([line for line in kept if _matters(line)][-_LAST_LINES:])
    lines = lines[first:]
    if any(_PREFIX.match(line) for line in lines):
        lines = [line for line in lines if _PREFIX.match(line) or line.startswith(_CONTINUED)]
    texts = (text for line in lines for text in _spelt_out(_PREFIX.sub("", line)))
    return failures.excerpt(text for text in texts if _matters(text))


def _matters(line: str) -> bool:
    return not (_BOILERPLATE.search(line) or _NOTHING.fullmatch(line))


def _raised(lines: Sequence[str]) -> list[str]:
    """The exception at the end of a Python traceback; empty if there is none."""
    places = [place for place, line in enumerate(lines) if line.strip() == _TRACEBACK]
    if not places:
        return []
    margin = len(lines[places[-1]]) - len(lines[places[-1]].lstrip())
    after = [line[margin:] for line in lines[places[-1] + 1 :]]
    while after and (after[0].startswith(" ") or not after[0].strip()):
        del after[0]
    end = next((place for place, line in enumerate(after) if not line.strip()), len(after))
    return after[:end]


def _spelt_out(line: str) -> Iterator[str]:
    """The lines of an exception that is written as `repr` writes it; any other line as it is."""
    match = _QUOTED.fullmatch(line.strip())
    if match is None:
        yield line
        return
    try:
        text = str(ast.literal_eval(match["text"]))
    except (ValueError, SyntaxError):
        yield line
    else:
        yield from f"{match['name']}: {text}".splitlines()
