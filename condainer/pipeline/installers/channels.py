"""Finds the URLs of channels by their names, as conda does, for rattler.

`defaults`, `local`, aliases and the user's own names count wherever a channel is named: in a list
of channels, before `::` in a spec, and in its brackets.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from condainer.errors import BuildError
from condainer.project.environment import channel_url

if TYPE_CHECKING:
    from collections.abc import Iterable

    from condainer.pipeline.installers.condarc import Condarc

_PART = r"(?P<subdir>noarch|(linux|osx|win|emscripten|wasi|zos)-\w+)"
_SUBDIR = re.compile(rf"(?P<channel>.+)/{_PART}/?")
_SPEC = re.compile(r"(?P<channel>[^\[\]]+?)::(?P<rest>.*)", re.DOTALL)
_BRACKET = re.compile(
    r"(?P<before>[\[,\s])channel\s*=\s*(\"(?P<a>[^\"]*)\"|'(?P<b>[^']*)'|(?P<c>[^\s,\]]+))\s*,?\s*"
)
_NO_DEFAULTS = "nodefaults"


@dataclass(frozen=True)
class Source:
    """One name, and the channels that it stands for.

    Attributes:
        name: as it is written.
        urls: of the channels, without a slash at the end.
        is_group: whether several channels count as one.
        subdir: the only subdirectory that is meant; empty for all.
    """

    name: str
    urls: tuple[str, ...]
    is_group: bool = False
    subdir: str = ""


def is_subdir(name: str) -> bool:
    """Whether a directory has a name that channels use for kinds of machines, such as `linux-64`.

    Args:
        name: of the directory.
    """
    return re.fullmatch(_PART, name) is not None


def find(name: str, condarc: Condarc) -> Source:
    """Find what a channel's name, URL or path stands for.

    Args:
        name: as it is written.
        condarc: conda's configuration.

    Raises:
        BuildError: If it stands for nothing.
    """
    match = _SUBDIR.fullmatch(name)
    name, subdir = (match["channel"], match["subdir"]) if match else (name.rstrip("/"), "")
    if name in condarc.custom_multichannels:
        members = condarc.custom_multichannels[name]
        if not members:
            raise BuildError(
                f"the channel '{name}' stands for no channel on this machine",
                "conda's configuration says what it stands for",
            )
        urls = tuple(_simple(item, condarc) for item in members)
        return Source(name, urls, is_group=True, subdir=subdir)
    if "://" in name or name.startswith(("/", "./", "../", "~")):
        return Source(name, (_simple(name, condarc),), subdir=subdir)
    return Source(name, (_named(name, condarc),), subdir=subdir)


def all_of(names: Iterable[str], condarc: Condarc) -> list[Source]:
    """Find what a list of channels stands for; `nodefaults` is skipped.

    Args:
        names: as they are written.
        condarc: conda's configuration.

    Raises:
        BuildError: If one stands for nothing.
    """
    return [find(name, condarc) for name in names if name != _NO_DEFAULTS]


def urls_of(sources: Iterable[Source]) -> tuple[str, ...]:
    """List the URLs of all channels, each once.

    Args:
        sources: the channels.
    """
    return tuple(dict.fromkeys(url for source in sources for url in source.urls))


def subdirs_of(sources: Iterable[Source]) -> dict[str, frozenset[str]]:
    """Find the URLs of which only some subdirectories are meant, and these.

    As with conda, `CHANNEL/SUBDIR` includes `noarch`.

    Args:
        sources: all channels.
    """
    sources = list(sources)
    whole = set(urls_of(source for source in sources if not source.subdir))
    found: dict[str, frozenset[str]] = {}
    for source in sources:
        for url in set(source.urls) - whole:
            found[url] = found.get(url, frozenset()) | {source.subdir, "noarch"}
    return found


def placed(spec: str, condarc: Condarc) -> tuple[str, Source | None]:
    """Replace the channel that a spec names by a URL that rattler finds; a group keeps its name.

    Args:
        spec: as it is written.
        condarc: conda's configuration.

    Returns:
        The changed spec, and the channel; None if it names none.

    Raises:
        BuildError: If the channel stands for nothing.
    """
    named, rest = of_spec(spec)
    if not named:
        return spec, None
    source = find(named, condarc)
    place = source.name if source.is_group else source.urls[0]
    return f"{place}{source.subdir and '/'}{source.subdir}::{rest}", source


def of_spec(spec: str) -> tuple[str, str]:
    """Split a spec into the channel that it names, which may be empty, and the rest.

    Args:
        spec: as it is written.
    """
    body, bracket, rest = spec.partition("[")
    match = _SPEC.fullmatch(body)
    channel, body = (match["channel"].strip(), match["rest"]) if match else ("", body)
    inside = _BRACKET.search(bracket + rest)
    if inside:
        channel = inside["a"] or inside["b"] or inside["c"] or channel
        rest = _BRACKET.sub(r"\g<before>", bracket + rest, count=1).removeprefix("[")
        rest = re.sub(r"[\s,]+\]$", "]", rest)
    return channel, body + (bracket + rest if rest != "]" else "")


def _simple(channel: str, condarc: Condarc) -> str:
    """The URL of a member of a group, of a URL or of a path; a name goes behind the alias."""
    if "://" in channel:
        return channel.rstrip("/")
    if channel.startswith(("/", "./", "../", "~")):
        try:
            return channel_url(channel, Path.cwd())
        except ValueError as error:
            raise BuildError(str(error)) from error
    return f"{condarc.channel_alias}/{channel.strip('/')}"


def _named(name: str, condarc: Condarc) -> str:
    """The URL of a name: the longest part of it counts that has a place of its own."""
    places = dict(condarc.custom_channels)
    for member in condarc.custom_multichannels["defaults"]:
        scheme, separator, rest = member.partition("://")
        host, _, path = rest.partition("/")
        if host and path:
            places.setdefault(path.strip("/"), f"{scheme}{separator}{host}")
    known = name
    while known not in places:
        known, slash, _ = known.rpartition("/")
        if not slash:
            return f"{condarc.channel_alias}/{name}"
    return f"{_simple(places[known], condarc)}/{name}"
