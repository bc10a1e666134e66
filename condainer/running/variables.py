r"""The variables that a program of an environment runs with, made of its caller's own.

Where they come from is told by `activation`. Every `exec` comes through here, so nothing is
imported that takes long.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # importing `typing` takes as long as all of this does
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_DEFAULT_PATH = os.defpath.lstrip(":")
_DIGITS = 5

FOREIGN = ("PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "__PYVENV_LAUNCHER__", "VIRTUAL_ENV")
"""Variables by which another Python would reach into the environment."""

MARK = "\0"
"""Stands before and behind the name of a variable whose value is the caller's: `\0HOME\0`."""

WHERE_GIVEN = MARK + MARK
"""Begins a value that counts only where the caller has the variable at all."""

LEVEL = "CONDA_SHLVL"
"""How many environments are active, one in the other."""


def of_python(*, user_site: bool, keep_python_path: bool) -> list[tuple[str, str | None]]:
    """What keeps other Pythons out of an environment: names, and None where one is unset.

    Args:
        user_site: let Python see the user's own site-packages.
        keep_python_path: let PYTHONPATH, PYTHONHOME and their like through.
    """
    changes: list[tuple[str, str | None]] = []
    if not keep_python_path:
        changes += [(name, None) for name in FOREIGN]
    if not user_site:
        changes.append(("PYTHONNOUSERSITE", "1"))
    return changes


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
        user_site: as for `of_python`.
        keep_python_path: as for `of_python`.
    """
    result = dict(variables)
    update(result, of_python(user_site=user_site, keep_python_path=keep_python_path))
    given = dict(result)
    for name, value in changes:
        if name == LEVEL:
            result.update(_levels(given))
        elif value is None:
            result.pop(name, None)
        elif value.startswith(WHERE_GIVEN):
            if name in given:
                result[name] = expand(value[len(WHERE_GIVEN) :], given)
        else:
            result[name] = expand(value, given)
    return result


def update(variables: dict[str, str], changes: Iterable[tuple[str, str | None]]) -> None:
    """Set and unset variables."""
    for name, value in changes:
        if value is None:
            variables.pop(name, None)
        else:
            variables[name] = value


def _levels(given: Mapping[str, str]) -> dict[str, str]:
    """What tells which environments are active, where one more comes on top: as conda's --stack."""
    text = given.get(LEVEL, "")
    level = int(text) if text.isascii() and text.isdigit() and len(text) < _DIGITS else 0
    outer = {}
    if level:
        outer[f"CONDA_PREFIX_{level}"] = given.get("CONDA_PREFIX", "")
        outer[f"CONDA_STACKED_{level + 1}"] = "true"
    return {LEVEL: str(level + 1), **outer}


def expand(value: str, variables: Mapping[str, str]) -> str:
    """Put the caller's values in the places a snapshot left for them.

    What the caller does not have is empty, as in a shell. Only of an empty PATH the colon before it
    goes as well: there it would mean the working directory.
    """
    if MARK not in value:
        return value
    filled, *rest = value.split(MARK)  # text, name, text, name, ..., text
    for name, text in zip(rest[::2], rest[1::2], strict=True):
        if name == "PATH":
            path = variables.get("PATH", _DEFAULT_PATH)
            filled = filled + path if path else filled.removesuffix(":")
        else:
            filled += variables.get(name, "")
        filled += text
    return filled
