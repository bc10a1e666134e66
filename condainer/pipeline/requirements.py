"""Reads pip's requirements files, and writes changed copies of them.

Both `logins` and `editable` change lines. The format:
https://pip.pypa.io/en/stable/reference/requirements-file-format/
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from condainer.system import files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_COMMENT = re.compile(r"\s*#")
_VARIABLE = re.compile(r"\$\{(?P<name>[A-Z0-9_]+)\}")
_NAMES_A_FILE = re.compile(
    r"(?P<option>-[rcf]|--requirement|--constraint|--find-links)(\s+|\s*=\s*|(?<=-[rcf]))"
    r"(?P<quote>[\"']?)(?P<file>[^\"'\s].*?)(?P=quote)\s*"
)
_NESTED = re.compile(r"(?P<option>-[rc]|--requirement|--constraint) (?P<file>.+)")


def absolute(line: str, base: Path) -> str:
    """Make the path absolute in a line that names another file.

    Args:
        line: of a requirements file.
        base: the directory that relative paths count from.
    """
    match = _NAMES_A_FILE.fullmatch(re.sub(r"\s#.*", "", line))
    if match is None or re.match(r"[a-z+]+:|\$\{", match["file"]):
        return line
    return f"{match['option']} {shlex.quote(str(base / match['file']))}"


def rewritten(
    requirements: Path,
    directory: Path,
    variables: Mapping[str, str],
    change: Callable[[str], str],
) -> Path:
    """Change lines of a requirements file, and of the files on this machine that it names.

    Args:
        requirements: the file.
        directory: where changed files are written; only this user may enter it.
        variables: the values for `${NAME}`, which pip would fill in.
        change: takes a line and returns what replaces it.

    Returns:
        The changed file, or the same one if no line changes.

    Raises:
        ConfigError: If a file cannot be read.
    """
    rewriter = _Rewriter(directory, variables, change)
    copy = rewriter.copy(requirements)
    return copy if rewriter.has_changed else requirements


class _Rewriter:
    """Copies requirements files with changed lines; for its arguments see `rewritten`."""

    def __init__(
        self, directory: Path, variables: Mapping[str, str], change: Callable[[str], str]
    ) -> None:
        self._directory = directory
        self._variables = variables
        self._change = change
        self._copies: dict[Path, Path] = {}
        self.has_changed = False

    def copy(self, source: Path) -> Path:
        if source in self._copies:  # files may name each other in a circle
            return self._copies[source]
        # mkstemp makes a file that only this user can read.
        descriptor, name = tempfile.mkstemp(
            prefix="requirements-", suffix=".txt", dir=self._directory
        )
        target = self._copies[source] = Path(name)
        lines = [f"{self._changed(line, source.parent)}\n" for line in _lines(source)]
        with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123  (a descriptor)
            file.writelines(lines)
        return target

    def _changed(self, line: str, base: Path) -> str:
        filled = _filled(line.strip(), self._variables)
        changed = self._change(filled)
        self.has_changed |= changed != filled
        nested = _nested(changed, base)
        if nested:
            option, path = nested
            changed = f"{option} {shlex.quote(str(self.copy(path)))}"
        return absolute(changed, base)


def _lines(path: Path) -> Iterator[str]:
    """The lines that pip sees: a backslash at the end joins the next line, except in comments."""
    before = ""
    for line in files.read_text(path).splitlines():
        is_comment = _COMMENT.match(line)
        if line.endswith("\\") and not is_comment:
            before += line.rstrip("\\")
        else:
            yield f"{before} {line}" if is_comment else before + line
            before = ""
    if before:
        yield before


def _filled(line: str, variables: Mapping[str, str]) -> str:
    return _VARIABLE.sub(lambda match: variables.get(match["name"]) or match[0], line)


def _nested(line: str, base: Path) -> tuple[str, Path] | None:
    """The option and the file of a line that names another requirements file on this machine."""
    match = _NESTED.fullmatch(absolute(line, base))
    if match is None:
        return None
    name = re.sub(r"\s#.*", "", match["file"]).strip()
    with contextlib.suppress(ValueError):  # a quotation mark that is not closed
        name = " ".join(shlex.split(name))
    if name.startswith("file:"):
        name = urllib.request.url2pathname(urllib.parse.urlsplit(name).path)
    path = Path(name)
    # pip itself reports what is wrong with all others.
    return (match["option"], path) if os.path.isabs(name) and path.is_file() else None  # noqa: PTH117
