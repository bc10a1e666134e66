"""Reads the lists of channels with rattler, and finds in them what is asked for or was locked."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import rattler
from rattler.exceptions import GatewayError, IoError, SolverError

from condainer.errors import BuildError
from condainer.pipeline import credentials
from condainer.pipeline.installers import failures, patience, secrets, tokens

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rattler import MatchSpec, RepoDataRecord

    from condainer.pipeline.installers import Request

DEFAULT_CHANNELS = ("conda-forge",)
"""Where environment.yml names no channel."""

_DEFAULTS = ("https://repo.anaconda.com/pkgs/main", "https://repo.anaconda.com/pkgs/r")
"""What conda means by the channel called `defaults`."""

_ARCHIVES = (".conda", ".tar.bz2")
_RETRIES = 3
_UNKNOWN = re.compile(r"No candidates were found for ([^\s\[=<>!~]+)")


@dataclass(frozen=True)
class Cache:
    """Where rattler keeps what it has fetched.

    Attributes:
        packages: unpacked.
        lists: of channels.
    """

    packages: Path
    lists: Path


def cache_of(request: Request) -> Cache:
    """The place a request names, or else rattler's own, which other programs share."""
    if request.package_cache:
        return Cache(request.package_cache, request.package_cache / "rattler-repodata")
    caches = os.environ.get("XDG_CACHE_HOME", "")
    caches = caches if caches.startswith("/") else str(Path.home() / ".cache")
    own = Path(os.environ.get("RATTLER_CACHE_DIR") or f"{caches}/rattler/cache")
    return Cache(own / "pkgs", own / "repodata")


def client() -> rattler.Client:
    """What asks servers: some more times where one is busy."""
    return rattler.Client.default_client(max_retries=_RETRIES)


async def find(request: Request) -> list[RepoDataRecord]:
    """The records of the packages to install.

    Raises:
        BuildError: where there are none, or a channel cannot be read.
    """
    lists = cache_of(request).lists
    if secrets.are_in([*request.sources, *request.specs]):
        lists = secrets.private_directory(lists)
    gateway = rattler.Gateway(cache_dir=lists, client=client())
    if request.locked:
        channels = _channels_of_lock(request)
        work = _locked(request, gateway, channels, lists)
    else:
        specs, channels = _parsed(request)
        work = _solved(specs, gateway, channels, lists)
    try:
        return await patience.unless_silent(
            work, lambda: _growth(lists), lambda: " or ".join(channels)
        )
    except BuildError:
        raise
    except GatewayError as error:
        raise failures.unreadable(explanation(error), channels) from error
    except SolverError as error:
        hint = await _hint(str(error), gateway, channels, lists)
        raise failures.unsolved("rattler", explanation(error), channels, hint) from error
    except Exception as error:  # rattler raises two dozen unrelated types
        raise BuildError(f"rattler failed to solve:\n{explanation(error)}") from error


async def bytes_to_fetch(request: Request, records: Iterable[RepoDataRecord]) -> int:
    """How much is not in the package cache yet."""
    cache = rattler.PackageCache(cache_of(request).packages)
    try:
        kept = await cache.index()
    except IoError:  # the installation will say what is wrong with it
        return sum(record.size or 0 for record in records)
    return sum(record.size or 0 for record in records if not kept.contains_record(record))


def explanation(error: Exception) -> str:
    """What matters of an error of rattler's."""
    return failures.excerpt(str(error).splitlines() or [type(error).__name__])


async def _solved(
    specs: list[MatchSpec], gateway: rattler.Gateway, channels: Iterable[str], lists: Path
) -> list[RepoDataRecord]:
    async with tokens.sources(channels, lists) as sources:
        return await rattler.solve(
            sources=sources,
            specs=specs,
            gateway=gateway,
            virtual_packages=rattler.VirtualPackage.detect(
                rattler.VirtualPackageOverrides.from_env()  # CONDA_OVERRIDE_CUDA and others
            ),
        )


async def _locked(
    request: Request, gateway: rattler.Gateway, channels: Iterable[str], lists: Path
) -> list[RepoDataRecord]:
    """The records of the exact packages of a lock file.

    Raises:
        BuildError: where a channel has another file under a locked URL, or no such file.
    """
    wanted = {credentials.without(package.url): package for package in request.locked}
    found: dict[str, RepoDataRecord] = {}
    async with tokens.sources(channels, lists) as sources:
        answers = await gateway.query(
            sources,
            [rattler.Subdir.current(), "noarch"],
            list({package.name: None for package in wanted.values()}),
            recursive=False,
        )
    for record in (record for records in answers for record in records):
        url = credentials.without(record.url)
        package = wanted.get(url)
        if package is not None:
            same = hexadecimal(record.md5) == package.md5 if package.md5 else True
            if not same or (package.sha256 and hexadecimal(record.sha256) != package.sha256):
                raise BuildError(f"{url} is no longer the file that was locked")
            found[url] = record
    missing = [url for url in wanted if url not in found]
    if missing:
        raise BuildError(f"no longer in its channel: {', '.join(missing)}")
    return list(found.values())


def hexadecimal(digest: bytes | None) -> str:
    """A checksum as people and files write it; empty where there is none."""
    return digest.hex() if digest else ""


def _parsed(request: Request) -> tuple[list[MatchSpec], tuple[str, ...]]:
    """The specs in rattler's form, and the URLs of all channels to look in.

    Raises:
        BuildError: where rattler cannot read one of them.
    """
    specs = []
    channels: list[str] = []
    for channel in request.channels or DEFAULT_CHANNELS:
        try:
            channels += _DEFAULTS if channel == "defaults" else [rattler.Channel(channel).base_url]
        except Exception as error:  # as in `find`
            raise BuildError(f"cannot read the channel '{channel}': {error}") from error
    for text in request.specs:
        is_url = re.match(r"[a-z]+://", text) and text.partition("#")[0].endswith(_ARCHIVES)
        try:
            spec = rattler.MatchSpec.from_url(text) if is_url else rattler.MatchSpec(text)
        except Exception as error:  # as in `find`
            raise BuildError(f"cannot read the specification '{text}': {error}") from error
        if spec.channel is not None:
            channels.append(spec.channel.base_url)
        specs.append(spec)
    return specs, tuple(dict.fromkeys(channel.rstrip("/") for channel in channels))


def _channels_of_lock(request: Request) -> tuple[str, ...]:
    channels = (credentials.restored(p.channel, request.sources) for p in request.locked)
    return tuple(dict.fromkeys(channels))


async def _hint(why: str, gateway: rattler.Gateway, channels: Iterable[str], lists: Path) -> str:
    """For a package that no channel has: those with names like it."""
    unknown = _UNKNOWN.search(why)
    if unknown is None:
        return ""
    async with tokens.sources(channels, lists) as sources:
        found = await gateway.names(sources, [rattler.Subdir.current(), "noarch"])
    names = {name.normalized for name in found}
    if unknown[1] in names:
        return ""
    close = difflib.get_close_matches(unknown[1], names, n=3, cutoff=0.7)
    return f"did you mean {' or '.join(close)}?" if close else ""


def _growth(lists: Path) -> set[tuple[str, int, int]]:
    """What is in the lists' directory: a list grows there, and its parts have directories."""
    found = set()
    with contextlib.suppress(FileNotFoundError), os.scandir(lists) as entries:
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            found.add((entry.name, status.st_size, status.st_mtime_ns))
    return found
