"""Reads the JSON that a dry run of micromamba, mamba or conda prints.

They print `{"success": true, "actions": {"FETCH": [...], "LINK": [...]}}`. An entry of FETCH has
more fields than that of LINK for the same package.
"""

from __future__ import annotations

from typing import Any

from condainer.errors import BuildError
from condainer.pipeline.packages import Package, package_from_json
from condainer.system import files


def is_solved(answer: bytes) -> bool:
    """Whether a dry run has found a solution.

    Args:
        answer: what it has printed.
    """
    return _actions(answer) is not None


def packages(answer: bytes, program: str) -> tuple[tuple[Package, ...], set[str]]:
    """List the packages that a dry run has found.

    Args:
        answer: what it has printed.
        program: its name, for messages.

    Returns:
        The packages to link, and the stems of those to fetch.

    Raises:
        BuildError: If an entry does not describe a package.
    """
    actions = _actions(answer) or {}
    try:
        fetched = {_identity(entry): entry for entry in actions.get("FETCH", [])}
        linked = actions.get("LINK", [])
        listed = ({**fetched.get(_identity(entry), {}), **entry} for entry in linked)
        stems = {package_from_json(entry).stem for entry in fetched.values()}
        return tuple(map(package_from_json, listed)), stems
    except (AttributeError, TypeError, ValueError) as error:
        raise BuildError(f"{program} lists something that is not a package: {error}") from error


def _actions(stdout: bytes) -> dict[str, Any] | None:
    try:
        document = files.parse_json(stdout)
    except ValueError:
        return None
    if not isinstance(document, dict) or document.get("success") is False:
        return None
    actions = document.get("actions")
    return actions if isinstance(actions, dict) else None


def _identity(entry: dict[str, Any]) -> tuple[str, str, str]:
    build = entry.get("build") or entry.get("build_string") or ""
    return str(entry.get("name")), str(entry.get("version")), str(build)
