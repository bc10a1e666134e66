"""Reads the lists of channels with rattler, and solves with them."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import rattler
from rattler.channel import ChannelPriority
from rattler.exceptions import GatewayError, IoError, SolverError
from rattler.repo_data import MultiSource
from rattler.repo_data.gateway import SourceConfig

from condainer.errors import BuildError
from condainer.pipeline import credentials
from condainer.pipeline.installers import (
    channels,
    condarc,
    failures,
    network,
    patience,
    secrets,
    tokens,
)
from condainer.units import human

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rattler import MatchSpec, PackageName, RepoDataRecord, Subdir

    from condainer.pipeline.installers.channels import Source
    from condainer.pipeline.installers.condarc import Condarc
    from condainer.pipeline.installers.interface import Request
    from condainer.pipeline.packages import Package

DEFAULT_CHANNELS = ("conda-forge",)
"""The channels if neither environment.yml nor conda's configuration names any."""

_ARCHIVES = (".conda", ".tar.bz2")
_MOST_LIST = 4 << 30
"""The most bytes of a channel's list; the largest public ones have a tenth of that."""
_UNKNOWN = re.compile(r"No candidates were found for ([^\s\[=<>!~]+)")


class _PartOfChannel:
    """Some subdirectories of a channel, as a source of records for rattler's solver.

    Args:
        channel: what rattler reads.
        gateway: reads it.
        names: of the packages, by subdirectory.
    """

    def __init__(
        self,
        channel: rattler.Channel | tokens.TokenChannel,
        gateway: rattler.Gateway,
        names: Mapping[str, list[str]],
    ) -> None:
        self._channel = channel
        self._gateway = gateway
        self._names = names

    def package_names(self, platform: Subdir) -> list[str]:
        """The names in a subdirectory."""
        return self._names.get(str(platform), [])

    async def fetch_package_records(
        self, platform: Subdir, name: PackageName
    ) -> list[RepoDataRecord]:
        """The records of one name."""
        if str(platform) not in self._names:
            return []
        found = await self._gateway.query(
            [self._channel], [platform], [name.normalized], recursive=False
        )
        return [record for records in found for record in records]


_Source: TypeAlias = "rattler.Channel | tokens.TokenChannel | _PartOfChannel"


@dataclass(frozen=True)
class _Wanted:
    """What to solve.

    Attributes:
        specs: in rattler's form.
        urls: of all channels to look in, in order of priority.
        subdirs: by URL, for channels of which only a part is meant.
        groups: the groups of channels that specs name.
        priority: conda's word for how the channels' order counts.
    """

    specs: list[MatchSpec]
    urls: tuple[str, ...]
    subdirs: dict[str, frozenset[str]]
    groups: tuple[Source, ...]
    priority: str


@dataclass(frozen=True)
class CachePaths:
    """The directories where rattler keeps what it has fetched.

    Attributes:
        packages: unpacked.
        lists: of channels.
    """

    packages: Path
    lists: Path


def cache_of(request: Request) -> CachePaths:
    """Find the cache that a request names, or else rattler's own, which other programs share.

    Args:
        request: what to install.
    """
    if request.package_cache:
        return CachePaths(request.package_cache, request.package_cache / "rattler-repodata")
    caches = os.environ.get("XDG_CACHE_HOME", "")
    caches = caches if caches.startswith("/") else str(Path.home() / ".cache")
    own = Path(os.environ.get("RATTLER_CACHE_DIR") or f"{caches}/rattler/cache")
    return CachePaths(own / "pkgs", own / "repodata")


async def find(request: Request) -> list[RepoDataRecord]:
    """Find the records of the packages to install.

    Args:
        request: what to install.

    Raises:
        BuildError: If there is no solution, or a channel cannot be read.
    """
    configured = condarc.load()
    wanted = _parsed(request, configured)
    urls = wanted.urls
    if request.offline:
        _check_offline(request.specs)
    lists = cache_of(request).lists
    # What our own code reads is kept in files that others must not replace, or read.
    if secrets.are_in([*urls, *request.specs]) or any(map(tokens.are_needed(), urls)):
        lists = secrets.private_directory(lists)
    how = SourceConfig(cache_action="force-cache-only" if request.offline else "cache-or-fetch")
    gateway = rattler.Gateway(cache_dir=lists, default_config=how, client=network.client())
    work = _solved(wanted, gateway, lists, is_offline=request.offline)
    try:
        return await patience.unless_silent(work, lambda: growth(lists), lambda: " or ".join(urls))
    except BuildError:
        raise
    except GatewayError as error:
        why = explanation(error)
        raise failures.unreadable(why, urls, is_offline=request.offline) from error
    except SolverError as error:
        hint = await _hint(str(error), gateway, urls, lists, is_offline=request.offline)
        raise failures.unsolved("rattler", explanation(error), urls, hint) from error
    except Exception as error:  # rattler raises two dozen unrelated types
        raise BuildError(f"rattler failed to solve:\n{explanation(error)}") from error


async def bytes_to_fetch(request: Request, records: Iterable[RepoDataRecord]) -> int:
    """Count the bytes of packages that are not in the package cache yet.

    Args:
        request: what to install.
        records: of the packages.
    """
    cache = rattler.PackageCache(cache_of(request).packages)
    try:
        kept = await cache.index()
    except IoError:  # the installation will report what is wrong with it
        return sum(record.size or 0 for record in records)
    return sum(record.size or 0 for record in records if not kept.contains_record(record))


def explanation(error: Exception) -> str:
    """Shorten an error of rattler's to what matters.

    Args:
        error: what rattler raised.
    """
    return failures.excerpt(str(error).splitlines() or [type(error).__name__])


async def _solved(
    wanted: _Wanted, gateway: rattler.Gateway, lists: Path, *, is_offline: bool
) -> list[RepoDataRecord]:
    async with tokens.sources(wanted.urls, lists, is_offline=is_offline) as sources:
        whole = dict(zip(wanted.urls, sources, strict=True))
        parts = {}
        for url, subdirs in wanted.subdirs.items():
            names = {
                subdir: [
                    name.normalized
                    for name in await gateway.names([whole[url]], [rattler.Subdir(subdir)])
                ]
                for subdir in (str(rattler.Subdir.current()), "noarch")
                if subdir in subdirs
            }
            parts[url] = _PartOfChannel(whole[url], gateway, names)
        return await rattler.solve(
            sources=_grouped({**whole, **parts}, wanted.groups),
            specs=wanted.specs,
            gateway=gateway,
            channel_priority=ChannelPriority[wanted.priority.capitalize()],
            virtual_packages=rattler.VirtualPackage.detect(
                rattler.VirtualPackageOverrides.from_env()  # CONDA_OVERRIDE_CUDA and others
            ),
        )


def hexadecimal(digest: bytes | None) -> str:
    """Write a checksum in hexadecimal digits; empty if there is none.

    Args:
        digest: the checksum.
    """
    return digest.hex() if digest else ""


def _grouped(found: dict[str, _Source], groups: Iterable[Source]) -> list[_Source | MultiSource]:
    """The sources in their order; those of one group are one source."""
    together = {url: group for group in groups for url in group.urls}
    places: dict[str, _Source | MultiSource] = {}
    for url, source in found.items():
        group = together.get(url)
        if group is None:
            places[url] = source
        elif group.name not in places:
            members = [found[member] for member in dict.fromkeys(group.urls)]
            places[group.name] = MultiSource(group.name, members)
    return list(places.values())


def _parsed(request: Request, configured: Condarc) -> _Wanted:
    """The specs in rattler's form, and all channels to look in.

    Raises:
        BuildError: If rattler cannot read one of them.
    """
    names = request.channels or configured.channels or DEFAULT_CHANNELS
    listed = channels.all_of(names, configured)
    for source in listed:
        try:
            for url in source.urls:
                tokens.channel_at(url)
        except Exception as error:  # as in `find`
            raise BuildError(f"cannot read the channel '{source.name}': {error}") from error
    specs = []
    named: list[Source] = []
    for text in request.specs:
        is_url = _is_archive(text)
        placed, channel = (text, None) if is_url else channels.placed(text, configured)
        try:
            spec = rattler.MatchSpec.from_url(text) if is_url else rattler.MatchSpec(placed)
        except Exception as error:  # as in `find`
            raise BuildError(f"cannot read the specification '{text}': {error}") from error
        if channel is None and spec.channel is not None:
            channel = channels.find(spec.channel.base_url, configured)
        named += [channel] if channel else []
        specs.append(spec)
    groups = {source.name: source for source in named if source.is_group}
    return _Wanted(
        specs=specs,
        urls=channels.urls_of([*listed, *named]),
        subdirs=channels.subdirs_of([*listed, *named]),
        groups=tuple(groups.values()),
        priority=request.channel_priority or configured.channel_priority,
    )


def locations(request: Request) -> dict[Package, str]:
    """Find the URLs of the packages of a lock file, with the credentials of their channels.

    Args:
        request: what to install.

    Raises:
        BuildError: If a channel of environment.yml cannot be found.
    """
    configured = condarc.load()
    known = channels.urls_of(channels.all_of(request.sources or configured.channels, configured))
    return {package: credentials.restored(package.url, known) for package in request.locked}


def _check_offline(specs: Iterable[str]) -> None:
    """Check that no spec is the URL of an archive that would have to be fetched.

    Raises:
        BuildError: If one is.
    """
    asked = [spec for spec in specs if _is_archive(spec) and not spec.startswith("file:")]
    if asked:
        listed = ", ".join(map(credentials.without, asked))
        raise BuildError(
            f"with --offline, no server is asked, and the cache has nothing about {listed}",
            "build once without --offline, then with --locked --offline",
        )


def _is_archive(spec: str) -> bool:
    return bool(re.match(r"[a-z]+://", spec)) and spec.partition("#")[0].endswith(_ARCHIVES)


async def _hint(
    why: str,
    gateway: rattler.Gateway,
    channels: Iterable[str],
    lists: Path,
    *,
    is_offline: bool,
) -> str:
    """Names that are similar to a package that no channel has."""
    unknown = _UNKNOWN.search(why)
    if unknown is None:
        return ""
    async with tokens.sources(channels, lists, is_offline=is_offline) as sources:
        found = await gateway.names(sources, [rattler.Subdir.current(), "noarch"])
    names = {name.normalized for name in found}
    if unknown[1] in names:
        return ""
    close = difflib.get_close_matches(unknown[1], names, n=3, cutoff=0.7)
    return f"did you mean {' or '.join(close)}?" if close else ""


def growth(lists: Path) -> set[tuple[str, int, int]]:
    """List what is in the directory of lists, where lists grow that are being fetched.

    Args:
        lists: the directory.

    Raises:
        BuildError: If a list is larger than any is: its server sends without an end.
    """
    found = set()
    with contextlib.suppress(FileNotFoundError), os.scandir(lists) as entries:
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            grows = status.st_mtime > time.time() - patience.SILENCE  # older ones are complete
            if grows and status.st_size > _MOST_LIST:
                raise BuildError(
                    f"the list of a channel is larger than {human(_MOST_LIST)}: {entry.path}",
                    "remove that file, and leave out the channel that sends it",
                )
            found.add((entry.name, status.st_size, status.st_mtime_ns))
    return found
