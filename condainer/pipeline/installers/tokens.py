"""Reads channels that cannot be left to rattler, and fetches from them.

If a channel redirects to another server, rattler tells that server where it comes from, with the
token in the URL. And rattler knows no proxy for one host alone. So this module fetches lists and
packages of such channels itself. It keeps the lists, for --offline.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO, TYPE_CHECKING

import anyio.to_thread
import rattler
import zstandard

from condainer.pipeline import credentials
from condainer.pipeline.installers import failures, network

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from rattler import PackageName, RepoDataRecord, SparseRepoData, Subdir

_PATIENCE = 60.0
"""Seconds without a byte after which a server is given up."""
_MOST = 4 << 30
"""The most bytes of a list or package: more than any has."""
_CHUNK = 1 << 20
_LISTS = ("repodata.json.zst", "repodata.json")
_MISSING = {403, 404}


def are_needed() -> Callable[[str], bool]:
    """Make a function that tells whether this module is needed for a URL."""
    needs_own_proxy = network.needs_own_proxy()
    return lambda url: credentials.has_token(url) or needs_own_proxy(url)


class TokenChannel:
    """A channel as a source of records for rattler's solver.

    Args:
        lists: by name of their subdirectories.
    """

    def __init__(self, lists: dict[str, SparseRepoData]) -> None:
        self._lists = lists

    def package_names(self, platform: Subdir) -> list[str]:
        """List the names of the packages in a subdirectory.

        Args:
            platform: the subdirectory.
        """
        listed = self._lists.get(str(platform))
        return listed.package_names() if listed else []

    async def fetch_package_records(
        self, platform: Subdir, name: PackageName
    ) -> list[RepoDataRecord]:
        """List the records of the packages with a name.

        Args:
            platform: the subdirectory.
            name: of the packages.
        """
        listed = self._lists.get(str(platform))
        return listed.load_records(name) if listed else []


@contextlib.asynccontextmanager
async def sources(
    channels: Iterable[str], directory: Path, *, is_offline: bool
) -> AsyncIterator[list[rattler.Channel | TokenChannel]]:
    """Make what rattler reads channels from, in the same order.

    Args:
        channels: URLs.
        directory: where lists that are read here are kept; only this user may enter it.
        is_offline: whether only lists that are there already are read.

    Raises:
        BuildError: If a list that is read here cannot be.
    """
    is_ours = are_needed()
    async with contextlib.AsyncExitStack() as stack:
        yield [
            await _read(channel, directory, stack, is_offline=is_offline)
            if is_ours(channel)
            else channel_at(channel)
            for channel in channels
        ]


def channel_at(url: str) -> rattler.Channel:
    """Make rattler's channel for a URL.

    The root is fixed, since rattler refuses a working directory whose path is not UTF-8.

    Args:
        url: of the channel.

    Raises:
        Exception: If rattler cannot read the URL; it has many types of errors.
    """
    return rattler.Channel(url, rattler.ChannelConfig(root_dir="/"))


async def fetch(url: str, path: Path) -> None:
    """Fetch a file.

    Args:
        url: of the file.
        path: where to write it.

    Raises:
        OSError: If it cannot be fetched.
    """
    with path.open("wb") as file:
        await anyio.to_thread.run_sync(_copy, url, file, abandon_on_cancel=True)


async def _read(
    url: str, directory: Path, stack: contextlib.AsyncExitStack, *, is_offline: bool
) -> TokenChannel:
    channel = channel_at(url)
    lists = {}
    directory.mkdir(parents=True, exist_ok=True)
    try:
        for subdir in (str(rattler.Subdir.current()), "noarch"):
            place = f"{url.rstrip('/')}/{subdir}"
            kept = directory / f"{hashlib.sha256(place.encode()).hexdigest()}.json"
            if not is_offline:
                await anyio.to_thread.run_sync(_renew, kept, place, abandon_on_cancel=True)
            if kept.exists():
                lists[subdir] = rattler.SparseRepoData(channel, subdir, kept)
                stack.callback(lists[subdir].close)
    except Exception as error:  # rattler raises many types
        why = failures.excerpt([str(error)])
        raise failures.unreadable(why, [url], is_offline=is_offline) from error
    if not lists:
        raise failures.unreadable(
            failures.excerpt(["it has no list of packages"]), [url], is_offline=is_offline
        )
    return TokenChannel(lists)


def _renew(kept: Path, url: str) -> None:
    """Fetch the list of a subdirectory; if there is none any more, drop the one that is kept."""
    # In the same directory: a file that grows there is a sign that something comes.
    descriptor, name = tempfile.mkstemp(dir=kept.parent, prefix=".list-")
    part = Path(name)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123  (a descriptor)
            is_there = _list(url, file)
        if is_there:
            part.replace(kept)
        else:
            kept.unlink(missing_ok=True)
    finally:
        part.unlink(missing_ok=True)


def _list(url: str, file: IO[bytes]) -> bool:
    """Fetch the list of a subdirectory; returns whether there is one."""
    for name in _LISTS:
        try:
            _copy(f"{url}/{name}", file)
        except urllib.error.HTTPError as error:
            if error.code not in _MISSING:
                raise
        else:
            return True
    return False


def _copy(url: str, target: IO[bytes]) -> None:
    """Fetch a file, and decompress it if it is a compressed list."""
    target.seek(0)
    target.truncate()
    request = urllib.request.Request(url, headers={"User-Agent": "condainer"})  # noqa: S310
    with network.opener().open(request, timeout=_PATIENCE) as answer:
        source = answer
        if url.endswith(".json.zst"):
            source = zstandard.ZstdDecompressor().stream_reader(answer)
        while chunk := source.read(_CHUNK):
            target.write(chunk)
            if target.tell() > _MOST:
                raise OSError(f"it is larger than {_MOST} bytes")
    length = answer.headers.get("Content-Length")
    if source is answer and length and target.tell() != int(length):
        raise OSError("it was cut off")
    target.flush()
