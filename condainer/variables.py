r"""The variables that a program of an environment runs with, made of its caller's own.

Where they come from is told by `activation`. Every `exec` comes through here, so nothing is
imported that takes long.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # importing `typing` takes as long as all of this does
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

FOREIGN = ("PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "__PYVENV_LAUNCHER__", "VIRTUAL_ENV")
"""Variables by which another Python would reach into the environment."""

MARK = "\0"
"""Stands before and behind the name of a variable whose value is the caller's: `\0HOME\0`."""


def apply(
    changes: Iterable[tuple[str, str | None]],
    variables: Mapping[str, str],
    *,
    user_site: bool = False,
    keep_python_path: bool = False,
) -> dict[str, str]:
    """The variables a program of the environment runs with.

    Args:
        changes: of activation: name and value, or None where it unsets a variable.
        variables: those of the caller.
        user_site: let Python see the user's own site-packages.
        keep_python_path: let PYTHONPATH, PYTHONHOME and their like through.
    """
    result = dict(variables)
    if not keep_python_path:
        for name in FOREIGN:
            result.pop(name, None)
    if not user_site:
        result["PYTHONNOUSERSITE"] = "1"
    for name, value in changes:
        if value is None:
            result.pop(name, None)
        else:
            result[name] = expand(value, variables)
    return result


def expand(value: str, variables: Mapping[str, str]) -> str:
    """Put the caller's values in the places a snapshot left for them.

    Where the caller has none, a colon beside the place goes as well: in a list of directories an
    empty entry would mean the working directory.
    """
    if MARK not in value:
        return value
    entries = []
    for entry in value.split(":"):
        parts = entry.split(MARK)  # text, name, text, name, ..., text
        parts[1::2] = [variables.get(name, _default(name)) for name in parts[1::2]]
        filled = "".join(parts)
        if filled or not entry:
            entries.append(filled)
    return ":".join(entries)


def _default(name: str) -> str:
    return os.defpath.lstrip(":") if name == "PATH" else ""
