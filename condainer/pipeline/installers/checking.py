"""Compares installed packages with the checksums that their channel or the lock file lists.

The checksum is that of the archive. It proves the list of files in the archive, if that can be had,
and the list has a checksum of each file. Installers check only some of this themselves: they trust
channels in directories, and what is unpacked in a cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat
import tarfile
import urllib.parse
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

import anyio
import anyio.to_thread
import zstandard

from condainer.errors import BuildError, CondainerError
from condainer.pipeline.installers import ready, unpacked
from condainer.system import files, process, removal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from condainer.pipeline.packages import Package
    from condainer.pipeline.workplace import Workplace

_LIST = "info/paths.json"
_SUFFIXES = (".conda", ".tar.bz2")
_CHUNK = 1 << 20
_SHOWN = 16


class DamagedError(BuildError):
    """A package in a cache is not what its archive holds."""


async def check(
    places: Mapping[Package, Sequence[Path]], workplace: Workplace, *, is_locked: bool = False
) -> None:
    """Compare packages with their checksums.

    Args:
        places: where each package is unpacked; several directories if it may have been linked from
            any of them, and none if that is not known.
        workplace: says how many processors may be kept busy.
        is_locked: whether the checksums are those of a lock file.

    Raises:
        BuildError: If a package is something else than its checksum says.
    """
    await _each(partial(check_package, is_locked=is_locked), places, workplace)


async def mend(
    places: Mapping[Package, Sequence[Path]], workplace: Workplace, *, is_locked: bool = False
) -> frozenset[Path]:
    """Remove damaged packages from a cache, so that they are fetched again.

    Scripts of packages damage it: if they change a hard link in place, the file in the cache
    changes. What cannot be removed stays, since it may be that nobody uses it.

    Args:
        places: where packages are unpacked, before anything is installed.
        workplace: its log says what was damaged.
        is_locked: as in `check`.

    Returns:
        The directories that are undamaged.

    Raises:
        BuildError: If a channel is damaged.
    """
    sound: set[Path] = set()

    def mend_package(package: Package, directories: Sequence[Path]) -> None:
        for directory in directories:
            try:
                check_package(package, [directory], is_locked=is_locked)
                sound.add(directory)
            except DamagedError as error:
                workplace.on_line(f"{error.message}; fetching it again")
                with contextlib.suppress(OSError, CondainerError):
                    _remove(package, directory)

    await _each(mend_package, places, workplace)
    return frozenset(sound)


async def _each(
    work: Callable[[Package, Sequence[Path]], None],
    places: Mapping[Package, Sequence[Path]],
    workplace: Workplace,
) -> None:
    """Do something with each package, some of them at the same time."""
    limiter = anyio.CapacityLimiter(workplace.processors)

    async def in_thread(package: Package, directories: Sequence[Path]) -> None:
        await anyio.to_thread.run_sync(
            work, package, directories, limiter=limiter, abandon_on_cancel=True
        )

    async with process.task_group() as group:
        for package, directories in places.items():
            group.start_soon(in_thread, package, directories)


def check_package(
    package: Package, directories: Sequence[Path], *, is_locked: bool = False
) -> None:
    """Compare one package with its checksum; see `check`.

    Args:
        package: which.
        directories: where it is unpacked.
        is_locked: as in `check`.

    Raises:
        DamagedError: If the unpacked package is something else.
        BuildError: If its channel has something else.
    """
    original = _original(package, directories, is_locked=is_locked)
    for directory in directories:
        listed = _listed(directory)
        if original is not None and _paths(original) not in (None, listed):
            raise _damaged(directory, _LIST)
        for entry in ready.entries(directory, _LIST, "paths"):
            name, sha256 = entry.get("_path"), entry.get("sha256")
            is_file = entry.get("path_type") == "hardlink" and isinstance(name, str)
            if sha256 and is_file and _sha256_below(directory, str(name)) not in {sha256, None}:
                raise _damaged(directory, str(name))


def wrong_archive(
    package: Package, kind: str, found: str, expected: str, *, is_locked: bool = False
) -> BuildError:
    """Make an error for an archive with another checksum than its channel or a lock file lists.

    Args:
        package: which.
        kind: of checksum.
        found: the archive's.
        expected: the listed one.
        is_locked: whether a lock file lists it.
    """
    is_what = "is no longer the file in the lock file"
    advice = "build without --locked: that takes what the channels have today"
    if not is_locked:
        is_what = "is not the file that its channel lists"
        advice = "the channel is damaged: index it again, or download it again"
    return BuildError(
        f"{package.url} {is_what}: {kind} {found[:_SHOWN]}… instead of {expected[:_SHOWN]}…",
        advice,
    )


def completed(package: Package) -> Package:
    """Add checksums and size that no channel lists to a package whose archive is on this machine.

    Args:
        package: as its channel lists it.
    """
    archive = local(package.url)
    if package.sha256 or package.md5 or archive is None or not archive.is_file():
        return package
    digests = digest_of(archive), digest_of(archive, "md5")
    return replace(package, sha256=digests[0], md5=digests[1], size=archive.stat().st_size)


def identified(package: Package, directories: Sequence[Path]) -> Package:
    """Add checksums and size of the archive that a package was unpacked from, if the cache has it.

    Args:
        package: which; it stays as it is if its SHA256 is known.
        directories: where it is unpacked; several if it may have been linked from any of them.
    """
    if package.sha256:
        return package
    found = set()
    for directory, archive in zip(directories, _beside(package, directories), strict=True):
        with contextlib.suppress(OSError):
            is_its = archive.is_file() and _paths(archive) in (None, _listed(directory))
            digests = (digest_of(archive), digest_of(archive, "md5")) if is_its else ("", "")
            is_its = is_its and package.md5 in ("", digests[1])
            found.add((*digests, archive.stat().st_size) if is_its else ("", "", 0))
    if len(found) != 1:
        return package
    sha256, md5, size = found.pop()
    return replace(package, sha256=sha256, md5=package.md5 or md5, size=package.size or size)


def digest_of(path: Path, kind: str = "sha256") -> str:
    """Compute the checksum of a file, in hexadecimal digits.

    Args:
        path: of the file.
        kind: `sha256` or `md5`.
    """
    with path.open("rb") as file:
        return _digest(file, kind)


def local(url: str) -> Path | None:
    """Find the archive of a package in a channel that is a directory; None for all others.

    Args:
        url: of the package.
    """
    address = urllib.parse.urlsplit(url)
    return Path(urllib.parse.unquote(address.path)) if address.scheme == "file" else None


def _original(package: Package, directories: Sequence[Path], *, is_locked: bool) -> Path | None:
    """An archive that has a package's checksum; None if there is none to compare.

    Raises:
        BuildError: If a channel that is a directory has another one, unless the unpacked package is
            known to come from the archive in the lock file.
    """
    kind, expected = _checksum(package)
    if not expected:
        return None
    channel = local(package.url)
    found = ""
    for archive in [*([channel] if channel else []), *_beside(package, directories)]:
        digest = _digest_if_any(archive, kind)
        if digest == expected:
            return archive
        found = digest if archive == channel else found
    if found and not (is_locked and _are_of(package, directories)):
        raise wrong_archive(package, kind.upper(), found, expected, is_locked=is_locked)
    return None


def _digest_if_any(archive: Path, kind: str) -> str:
    """The checksum of an archive; empty if it cannot be read."""
    with contextlib.suppress(OSError):
        return digest_of(archive, kind) if archive.is_file() else ""
    return ""


def _are_of(package: Package, directories: Sequence[Path]) -> bool:
    """Whether all that is unpacked is noted to come from the archive with a package's checksum."""
    noted = {unpacked.archive_of(directory) for directory in directories}
    return bool(package.sha256) and noted == {package.sha256}


def _checksum(package: Package) -> tuple[str, str]:
    """The kind of checksum that is known of a package, and the checksum."""
    return ("sha256", package.sha256) if package.sha256 else ("md5", package.md5)


def _beside(package: Package, directories: Sequence[Path]) -> list[Path]:
    """The archives that installers keep beside the unpacked packages."""
    name = urllib.parse.unquote(package.url.rpartition("/")[2].partition("#")[0])
    return [directory.parent / name for directory in directories]


def _listed(directory: Path) -> bytes | None:
    try:
        return files.read(directory / _LIST, within=directory)
    except OSError:
        return None


def _paths(archive: Path) -> bytes | None:
    """The list of files in an archive; None if it has none, as old ones."""
    with (
        contextlib.suppress(OSError, ValueError, tarfile.TarError, zipfile.BadZipFile),
        _information(archive) as stream,
        tarfile.open(fileobj=stream, mode="r|*") as members,
    ):
        for member in members:
            if member.name.removeprefix("./") == _LIST and member.size <= files.MOST:
                content = members.extractfile(member)
                return content.read(files.MOST) if content else None
    return None


@contextlib.contextmanager
def _information(archive: Path) -> Iterator[IO[bytes]]:
    """The tar archive with a package's `info` directory."""
    if archive.suffix != ".conda":
        with archive.open("rb") as file:
            yield file
        return
    with zipfile.ZipFile(archive) as parts:
        name = next(name for name in parts.namelist() if name.startswith("info-"))
        with parts.open(name) as part:
            reader = zstandard.ZstdDecompressor().stream_reader(part)
            yield io.BufferedReader(reader)


def _sha256_below(directory: Path, name: str) -> str | None:
    """The checksum of a file; None if its path leads out of the package, empty if unreadable."""
    path = os.path.realpath(directory / name)
    if not ready.is_below(name) or not Path(path).is_relative_to(directory.resolve()):
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:  # noqa: PTH123  (it has no path)
            is_regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
            return _digest(file, "sha256") if is_regular else ""
    except OSError:
        return ""


def _digest(file: IO[bytes], kind: str) -> str:
    digest = hashlib.new(kind, usedforsecurity=False)
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _damaged(directory: Path, name: str) -> DamagedError:
    return DamagedError(
        f"the package cache is damaged: {directory / name} is not the file that its package lists",
        f"remove {directory}, or choose another cache with the key package_cache; then build again",
    )


def _remove(package: Package, directory: Path) -> None:
    """Remove a damaged package, and its archive if that has a wrong checksum."""
    aside = directory.with_name(f".{directory.name}.damaged.{os.getpid()}")
    directory.rename(aside)  # at once, whatever is in it
    removal.remove_tree(aside)
    kind, expected = _checksum(package)
    for archive in _beside(package, [directory]):
        if archive.is_file() and digest_of(archive, kind) != expected:
            archive.unlink()
