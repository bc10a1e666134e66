"""Where the channels are that people name: what conda makes of names, for rattler.

`defaults`, `local`, aliases and other names of one's own are mapped wherever a channel is named:
in a list of channels, before `::` in a spec, and in its brackets.
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
    """One name and what it stands for.

    Attributes:
        name: as it is named.
        urls: of the channels, without a slash at their end.
        is_group: whether the name stands for several that count as one.
        subdir: the only part of them that is meant; empty for all.
    """

    name: str
    urls: tuple[str, ...]
    is_group: bool = False
    subdir: str = ""


def is_subdir(name: str) -> bool:
    """Whether a directory's name is one of those that channels have for kinds of machines."""
    return re.fullmatch(_PART, name) is not None


def find(name: str, condarc: Condarc) -> Source:
    """What a channel's name, URL or path stands for.

    Raises:
        BuildError: where it stands for nothing.
    """
    match = _SUBDIR.fullmatch(name)
    name, subdir = (match["channel"], match["subdir"]) if match else (name.rstrip("/"), "")
    if name in condarc.custom_multichannels:
        members = condarc.custom_multichannels[name]
        if not members:
            raise BuildError(f"the channel '{name}' stands for no channel on this machine")
        urls = tuple(_simple(item, condarc) for item in members)
        return Source(name, urls, is_group=True, subdir=subdir)
    if "://" in name or name.startswith(("/", "./", "../", "~")):
        return Source(name, (_simple(name, condarc),), subdir=subdir)
    return Source(name, (_named(name, condarc),), subdir=subdir)


def all_of(names: Iterable[str], condarc: Condarc) -> list[Source]:
    """What a list of channels stands for; `nodefaults` is none."""
    return [find(name, condarc) for name in names if name != _NO_DEFAULTS]


def urls_of(sources: Iterable[Source]) -> tuple[str, ...]:
    """The URLs of all that sources stand for, each once."""
    return tuple(dict.fromkeys(url for source in sources for url in source.urls))


def subdirs_of(sources: Iterable[Source]) -> dict[str, frozenset[str]]:
    """The subdirectories of those URLs of which only a part is meant.

    As with conda, `CHANNEL/SUBDIR` has `noarch` as well.
    """
    sources = list(sources)
    whole = set(urls_of(source for source in sources if not source.subdir))
    found: dict[str, frozenset[str]] = {}
    for source in sources:
        for url in set(source.urls) - whole:
            found[url] = found.get(url, frozenset()) | {source.subdir, "noarch"}
    return found


def placed(spec: str, condarc: Condarc) -> tuple[str, Source | None]:
    """A spec with the channel that it names, if any, where rattler finds it.

    A group of channels keeps its name there.
    """
    named, rest = of_spec(spec)
    if not named:
        return spec, None
    source = find(named, condarc)
    place = source.name if source.is_group else source.urls[0]
    return f"{place}{source.subdir and '/'}{source.subdir}::{rest}", source


def of_spec(spec: str) -> tuple[str, str]:
    """The channel that a spec names, empty where it names none, and the spec without it."""
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
    """A member of a group, a URL or a path: names in it go behind the alias."""
    if "://" in channel:
        return channel.rstrip("/")
    if channel.startswith(("/", "./", "../", "~")):
        try:
            return channel_url(channel, Path.cwd())
        except ValueError as error:
            raise BuildError(str(error)) from error
    return f"{condarc.channel_alias}/{channel.strip('/')}"


def _named(name: str, condarc: Condarc) -> str:
    """A name: the longest part of it that has a place of its own counts."""
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
