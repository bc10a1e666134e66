"""Requirements of Python packages as specs of conda packages.

Pure text in, text out: PEP 508 requirements, evaluated for the interpreter that runs this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from packaging.specifiers import Specifier, SpecifierSet


def depends(requires_dist: Iterable[str]) -> tuple[str, ...]:
    """Translate `Requires-Dist` lines, leaving out extras and what the markers rule out."""
    wanted = [Requirement(line) for line in requires_dist]
    return tuple(
        match_spec(requirement.name, requirement.specifier)
        for requirement in wanted
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    )


def match_spec(name: str, specifiers: SpecifierSet) -> str:
    """Write one requirement as conda does.

    >>> match_spec("Six", SpecifierSet("~=1.4.2,!=1.5"))
    'six !=1.5,>=1.4.2,1.4.*'
    """
    versions = ",".join(_clause(specifier) for specifier in sorted(specifiers, key=str))
    return f"{canonicalize_name(name)} {versions}".rstrip()


def _clause(specifier: Specifier) -> str:
    """Write one version clause as conda does."""
    version = specifier.version
    if specifier.operator == "~=":
        return f">={version},{version.rpartition('.')[0]}.*"
    if specifier.operator == "==" and version.endswith(".*"):
        return version
    if specifier.operator == "===":
        return f"=={version}"
    return f"{specifier.operator}{version}"
