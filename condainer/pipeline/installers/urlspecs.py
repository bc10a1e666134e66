"""Rewrites URLs of packages as specs, since conda takes no URLs together with other specs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from condainer.errors import ToolError
from condainer.pipeline.installers import channels

if TYPE_CHECKING:
    from condainer.pipeline.installers.interface import Request

_ARCHIVE = re.compile(
    r"(?P<channel>[a-z]+://.+)/(?P<subdir>[^/]+)/(?P<name>[^/]+)-(?P<version>[^-/]+)-"
    r"(?P<build>[^-/]+)\.(conda|tar\.bz2)(#(?P<md5>[0-9a-f]{32})|#.*)?"
)


def check(request: Request) -> None:
    """Check that conda is not asked for other specs together with an archive that is in no channel.

    Args:
        request: what to install.

    Raises:
        ToolError: If one is.
    """
    loose = [s for s in request.specs if _ARCHIVE.fullmatch(s) and without_url(s) == s]
    if loose and len(loose) < len(request.specs) and not request.locked:
        raise ToolError(
            f"conda cannot install {loose[0]}, which is in no channel, together with others",
            "put it into a channel, or use '--installer rattler'",
        )


def without_url(spec: str) -> str:
    """Make a spec that means the same package as a URL.

    Args:
        spec: any spec; it stays as it is if it is no URL of a package in a channel.
    """
    match = _ARCHIVE.fullmatch(spec)
    if match is None or not channels.is_subdir(match["subdir"]):
        return spec
    subdir, version, build = match["subdir"], match["version"], match["build"]
    kept = f"version='{version}',build='{build}',subdir={subdir}"
    if match["md5"]:
        kept += f",md5={match['md5']}"
    return f"{match['channel']}::{match['name']}[{kept}]"
