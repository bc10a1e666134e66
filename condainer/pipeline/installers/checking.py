"""Compares what is linked with the checksums that a lock file names, whoever has fetched it.

A chain leads from the checksum to each file: that of the archive, where it can be had, the list of
files in it, and their own checksums. Installers trust a part of it each: channels in directories,
or what they find unpacked in a cache.
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
    """What is unpacked in a cache is not what its package holds."""


async def check(
    places: Mapping[Package, Sequence[Path]], workplace: Workplace, *, is_locked: bool = False
) -> None:
    """Compare packages with their checksums.

    Args:
        places: where each is unpacked, by package; several directories where it is not known from
            which of them it was linked, none where none is known.
        workplace: tells how many processors may be kept busy.
        is_locked: whether the checksums are those of a lock file.

    Raises:
        BuildError: names one that is something else than its checksum says.
    """
    await _each(partial(check_package, is_locked=is_locked), places, workplace)


async def mend(
    places: Mapping[Package, Sequence[Path]], workplace: Workplace, *, is_locked: bool = False
) -> frozenset[Path]:
    """Remove from a cache what is not what its package holds, so that it will be fetched anew.

    Scripts of packages damage it: what they change in place is the cache's own file, too. What
    cannot be removed stays, since it may be that nobody uses it.

    Args:
        places: where packages are unpacked before anything is installed.
        workplace: is told of it.
        is_locked: as in `check`.

    Returns:
        the directories where all is right.

    Raises:
        BuildError: where a channel is damaged.
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

    Raises:
        DamagedError: where it is unpacked, but is something else.
        BuildError: where its channel has something else.
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
    """An error for an archive that has another checksum than its channel or a lock file lists."""
    is_what = "is no longer the file that was locked"
    advice = "build without --locked: that takes what the channels have today"
    if not is_locked:
        is_what = "is not the file that its channel lists"
        advice = "the channel is damaged: index it again, or fetch it again"
    return BuildError(
        f"{package.url} {is_what}: {kind} {found[:_SHOWN]}… instead of {expected[:_SHOWN]}…",
        advice,
    )


def completed(package: Package) -> Package:
    """A package with checksums and size of its archive, where that is here and nobody lists any."""
    archive = local(package.url)
    if package.sha256 or package.md5 or archive is None or not archive.is_file():
        return package
    digests = digest_of(archive), digest_of(archive, "md5")
    return replace(package, sha256=digests[0], md5=digests[1], size=archive.stat().st_size)


def identified(package: Package, directories: Sequence[Path]) -> Package:
    """A package with checksums and size of the archive that it was unpacked from, if that is kept.

    Args:
        package: which; it stays as it is where its SHA256 is known.
        directories: where it is unpacked; several where it is not known from which it was linked.
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
    """The checksum of a file."""
    with path.open("rb") as file:
        return _digest(file, kind)


def local(url: str) -> Path | None:
    """The archive itself, in a channel of this machine."""
    address = urllib.parse.urlsplit(url)
    return Path(urllib.parse.unquote(address.path)) if address.scheme == "file" else None


def _original(package: Package, directories: Sequence[Path], *, is_locked: bool) -> Path | None:
    """An archive that has a package's checksum; None where there is none to compare.

    Raises:
        BuildError: where the channel is a directory here, and has another one; it may, if what is
            unpacked is known to be from the one that a lock file lists.
    """
    kind, expected = _checksum(package)
    if not expected:
        return None
    channel = local(package.url)
    found = ""
    for archive in [*([channel] if channel else []), *_beside(package, directories)]:
        with contextlib.suppress(OSError):
            if archive.is_file():
                digest = digest_of(archive, kind)
                if digest == expected:
                    return archive
                found = digest if archive == channel else found
    if found and not (is_locked and _are_of(package, directories)):
        raise wrong_archive(package, kind.upper(), found, expected, is_locked=is_locked)
    return None


def _are_of(package: Package, directories: Sequence[Path]) -> bool:
    """Whether all that is unpacked is noted to be from the archive with a package's checksum."""
    noted = {unpacked.archive_of(directory) for directory in directories}
    return bool(package.sha256) and noted == {package.sha256}


def _checksum(package: Package) -> tuple[str, str]:
    """The kind of checksum that is known of a package, and the checksum."""
    return ("sha256", package.sha256) if package.sha256 else ("md5", package.md5)


def _beside(package: Package, directories: Sequence[Path]) -> list[Path]:
    """The archives that installers keep beside what they have unpacked."""
    name = urllib.parse.unquote(package.url.rpartition("/")[2].partition("#")[0])
    return [directory.parent / name for directory in directories]


def _listed(directory: Path) -> bytes | None:
    try:
        return files.read(directory / _LIST, within=directory)
    except OSError:
        return None


def _paths(archive: Path) -> bytes | None:
    """The list of files in an archive; None where it has none, as old ones have."""
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
    """The tar archive with what a package says of itself."""
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
    """The checksum of a file of a package; None where it leads elsewhere, empty if unreadable."""
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
        f"the package cache is damaged: {directory / name} is not what its package lists",
        f"remove {directory}, or have another cache with the key package_cache, and build again",
    )


def _remove(package: Package, directory: Path) -> None:
    """Remove a damaged package, and an archive beside it that is another one."""
    aside = directory.with_name(f".{directory.name}.damaged.{os.getpid()}")
    directory.rename(aside)  # at once, whatever is in it
    removal.remove_tree(aside)
    kind, expected = _checksum(package)
    for archive in _beside(package, [directory]):
        if archive.is_file() and digest_of(archive, kind) != expected:
            archive.unlink()
