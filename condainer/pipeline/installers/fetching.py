"""Fetches packages into rattler's cache, small ones first and a few at a time.

rattler would fetch all at once, and then all arrive late, together. This way some arrive early, and
can be compressed while others come. rattler still links packages, checks what is in the cache, and
fetches what cannot be fetched here.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import tempfile
import time
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
from rattler.package_streaming import download_and_extract, download_to_path

from condainer.errors import BuildError, CondainerError
from condainer.pipeline import credentials, tree
from condainer.pipeline.installers import (
    checking,
    contents,
    failures,
    kept,
    network,
    patience,
    solver,
    tokens,
    unpacked,
)
from condainer.system import process, removal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from rattler import Client

    from condainer.pipeline.installers.interface import Request
    from condainer.pipeline.packages import Package
    from condainer.pipeline.workplace import Workplace

_AT_ONCE = 5
"""Packages that are fetched at once: for a small one, most of the time is waiting for an answer."""
_LARGE_AT_ONCE, _LARGE = 2, 4 << 20
"""How many of them may be larger than so many bytes: these share the bandwidth, and the fewer they
are, the sooner the first is complete."""
_TRIES = 3
_LOOK = 0.1
"""Seconds between two reports of progress."""
_OLD = 86400.0
"""Seconds after which work of another machine, or without a lock, counts as abandoned."""
_WORK, _LOCK = ".condainer-fetch", ".lock"
"""Begins the names of working directories in the cache; each has a locked file."""
_COUNT = struct.Struct(">Q")
_GONE = "build without --locked: that installs what the channels have today"


class Fetching:
    """Fetches the missing packages of one installation into the cache.

    Args:
        request: what is being installed; with a lock file, all missing packages are fetched here.
        urls: of the packages, with credentials.
        cache: where rattler looks for packages.
        workplace: takes progress and lines for the log.
        on_there: takes each package that is in the cache now; called in the event loop's thread.

    Attributes:
        missing: the packages that are to be fetched here.
        digests: SHA256 and MD5 of the archives that have been fetched.
        sizes: their bytes.
    """

    def __init__(
        self,
        request: Request,
        urls: Mapping[Package, str],
        cache: Path,
        workplace: Workplace,
        on_there: Callable[[Package], None],
    ) -> None:
        self._cache = cache
        self._workplace = workplace
        self._on_there = on_there
        self._is_locked = bool(request.locked)
        missing = {
            package: url
            for package, url in urls.items()
            if not kept.is_there(package, cache / package.stem, is_locked=self._is_locked)
        }
        if request.offline:
            self._check_offline(missing)
        found = [p for p, url in missing.items() if self._is_locked or _is_fetched_here(url)]
        self.missing = sorted(found, key=lambda package: (package.size, package.name))
        self.digests: dict[Package, tuple[str, str]] = {}
        self.sizes: dict[Package, int] = {}
        self._queue = [(package, urls[package]) for package in self.missing]
        self._on_the_way: dict[str, Path] = {}
        self._urls: dict[str, str] = {}
        self._there = self._bytes = 0
        self._large = anyio.Semaphore(_LARGE_AT_ONCE)
        self._is_read_apart = tokens.are_needed()

    async def run(self) -> None:
        """Fetch all missing packages.

        Raises:
            BuildError: If one cannot be fetched, or is not what its channel lists.
        """
        await anyio.to_thread.run_sync(_clear, self._cache)
        if not self.missing:
            return
        directory, lock = await anyio.to_thread.run_sync(self._begin)
        try:
            async with process.task_group() as group:
                group.start_soon(self._tell)
                await self._fetch_all(directory)
                group.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(removal.remove_tree, directory)
            os.close(lock)

    async def _fetch_all(self, directory: Path) -> None:
        async with process.task_group() as lanes:
            for _ in range(_AT_ONCE):
                lanes.start_soon(self._lane, directory)

    def _check_offline(self, missing: Iterable[Package]) -> None:
        """Check that no missing package would have to come over the network.

        Raises:
            BuildError: If one would.
        """
        lines = [
            package.url + ("" if package.sha256 else " (no SHA256 of it is known)")
            for package in missing
            if checking.local(package.url) is None
        ]
        if lines:
            raise failures.unfetched(lines, self._cache)

    def signs(self) -> object:
        """A value that changes when bytes have come, and always if nothing is being fetched."""
        return self._come() if self._urls else object()

    def source(self) -> str:
        """The URLs that are being fetched."""
        return " or ".join(self._urls.values())

    def _begin(self) -> tuple[Path, int]:
        """Make a working directory, and hold the lock that says that it is in use."""
        try:
            self._cache.mkdir(parents=True, exist_ok=True)
            prefix = f"{_WORK}.{socket.gethostname()}."
            directory = Path(tempfile.mkdtemp(prefix=prefix, dir=self._cache))
            lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unusable(error) from error
        with contextlib.suppress(OSError):  # some file systems have no locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        return directory, lock

    def _unusable(self, error: OSError) -> BuildError:
        return BuildError(
            f"cannot write to the package cache {self._cache}: {error.strerror}",
            "choose another one with the key package_cache in condainer.yml",
        )

    async def _lane(self, directory: Path) -> None:
        client = network.client()
        while self._queue:
            package, url = self._queue.pop(0)
            archive = checking.local(url)
            if archive is None:
                archive = directory / Path(urllib.parse.urlsplit(url).path).name
                async with self._large if package.size > _LARGE else contextlib.nullcontext():
                    await self._fetch(client, package, url, archive)
            elif not archive.is_file():
                raise BuildError(f"there is no file {archive}", _GONE if self._is_locked else "")
            part = directory / package.stem
            digests = await unpack(client, archive, part, package, is_locked=self._is_locked)
            self.digests[package] = digests
            self.sizes[package] = _size(archive)
            try:
                _publish(part, self._cache / package.stem, digests[0])
                if checking.local(url) is None:
                    archive.unlink()
            except OSError as error:
                raise self._unusable(error) from error
            self._there += 1
            self._workplace.on_line(f"fetched {package.name}")
            self._on_there(package)

    async def _fetch(self, client: Client, package: Package, url: str, archive: Path) -> None:
        """Fetch one archive, and again if it was cut off.

        `client` itself asks again if a server refuses.
        """
        self._on_the_way[package.name], self._urls[package.name] = archive, package.url
        for left in reversed(range(_TRIES)):
            try:
                if self._is_read_apart(url):
                    await tokens.fetch(url, archive)
                else:
                    await download_to_path(client, url, archive)
                break
            except Exception as error:  # as in `solver.find`
                if not left or not _size(archive):
                    why = credentials.without(solver.explanation(error))
                    raise BuildError(
                        f"cannot fetch {package.url}:\n{why}", patience.BUILD_AGAIN
                    ) from error
                self._workplace.on_line(f"{package.url} was incomplete; fetching it again")
        del self._on_the_way[package.name], self._urls[package.name]
        self._bytes += _size(archive)

    async def _tell(self) -> None:
        sizes = [package.size for package in self.missing]
        total = sum(sizes) if all(sizes) else 0  # a lock file may leave them out
        while True:
            names = ", ".join(self._on_the_way)
            self._workplace.on_progress(
                self._there,
                len(self.missing),
                f"fetching {names}" if names else "unpacking",
                bytes_done=self._come(),
                bytes_total=total,
            )
            await anyio.sleep(_LOOK)

    def _come(self) -> int:
        """Bytes that have come."""
        return self._bytes + sum(map(_size, self._on_the_way.values()))


def _is_fetched_here(url: str) -> bool:
    local = checking.local(url)
    return local.exists() if local else url.startswith(("https://", "http://"))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


async def unpack(
    client: Client, archive: Path, part: Path, package: Package, *, is_locked: bool = False
) -> tuple[str, str]:
    """Unpack an archive, and check that it is what its channel or the lock file lists.

    rattler's `extract` is not used: while it runs, no other thread runs any Python. If this is
    cancelled, it soon fails by itself, since the directory is removed.

    Args:
        client: of rattler.
        archive: the file.
        part: the directory to make.
        package: which package it is.
        is_locked: whether a lock file lists it.

    Returns:
        The SHA256 and the MD5 of the archive.

    Raises:
        BuildError: If it is another archive, cannot be unpacked, or would write outside of a
            prefix.
    """
    try:
        digests = await download_and_extract(client, archive.as_uri(), part)
    except Exception as error:  # as in `solver.find`
        found = await anyio.to_thread.run_sync(checking.digest_of, archive)
        if package.sha256 and found != package.sha256:
            raise checking.wrong_archive(
                *(package, "SHA256", found, package.sha256), is_locked=is_locked
            ) from None
        raise BuildError(f"cannot unpack {package.url}:\n{solver.explanation(error)}") from error
    sha256, md5 = (digest.hex() for digest in digests)
    for kind, came, listed in (("SHA256", sha256, package.sha256), ("MD5", md5, package.md5)):
        counts = is_locked or kind == "SHA256" or not package.sha256
        if counts and listed and came != listed:
            raise checking.wrong_archive(package, kind, came, listed, is_locked=is_locked)
    await anyio.to_thread.run_sync(contents.check_package, package.stem, part)
    await anyio.to_thread.run_sync(tree.close, part)  # before anybody else can reach it
    return sha256, md5


def _publish(part: Path, target: Path, sha256: str) -> None:
    """Move an unpacked package to its place, unless another program is about to do the same.

    If a package from another archive is there, it is replaced, unless somebody uses it. rattler
    locks a file that holds a revision and the archive's checksum; see `unpacked.lock_of`.
    """
    lock = unpacked.lock_of(target)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if unpacked.archive_of(target) == sha256:
            return
        if os.path.lexists(target):
            target.rename(part.with_name(f"{part.name}.replaced"))
        part.rename(target)
        before = os.pread(descriptor, _COUNT.size, 0)
        times = _COUNT.unpack(before)[0] if len(before) == _COUNT.size else 0
        os.pwrite(descriptor, _COUNT.pack((times + 1) % (1 << 64)) + bytes.fromhex(sha256), 0)
    except OSError as error:
        if error.errno not in {errno.EAGAIN, errno.ENOTEMPTY, errno.EEXIST}:
            raise  # in the other cases rattler waits for the lock, and takes what is there then
    finally:
        os.close(descriptor)


def _clear(cache: Path) -> None:
    """Remove what killed builds of this user have left, as far as possible."""
    for path in cache.glob(f"{_WORK}.*"):
        with contextlib.suppress(OSError, CondainerError):
            if path.lstat().st_uid == os.geteuid() and _is_abandoned(path):
                removal.remove_tree(path)


def _is_abandoned(directory: Path) -> bool:
    """Whether nobody works in a directory.

    Its lock says so, not a process id: containers number processes anew.
    """
    if directory.name.startswith(f"{_WORK}.{socket.gethostname()}."):
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            else:
                return True
            finally:
                os.close(lock)
    return time.time() - directory.lstat().st_mtime > _OLD
