"""Finds unpacked packages in package caches by their content, not by their path.

An unpacked package has a directory `info`, and installers write `info/repodata_record.json` last.
Some caches have packages side by side, others in directories named after channels. So caches are
searched, within limits.
"""

from __future__ import annotations

import json
import os
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from condainer.pipeline import credentials
from condainer.pipeline.packages import merged, package_from_json
from condainer.system import files

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from condainer.pipeline.packages import Package

_DONE = "info/repodata_record.json"
_DEPTH = 32
"""The most directories between a cache and a package; those of channels are deep."""
_MOST_ENTRIES = 200_000
_REVISION, _SHA256 = 8, 32
"""Bytes in rattler's file beside a package: its revision, then the checksum."""
_MOST_NOTED = 4096
_MOST_READ = 300
"""Records that are read at one look, of packages with unusual directory names."""


class Found(NamedTuple):
    """A package that is unpacked somewhere.

    Attributes:
        package: which.
        directory: where.
        is_new: whether it was not there when the search began.
    """

    package: Package
    directory: Path
    is_new: bool


class Search:
    """A search for packages, which goes on while they come.

    Args:
        caches: directories to search; they need not exist.
        packages: that are searched for.

    Attributes:
        is_thorough: whether the last look has left nothing for the next.
    """

    def __init__(self, caches: Iterable[Path], packages: Iterable[Package]) -> None:
        self._caches = list(dict.fromkeys(caches))
        self._packages: dict[tuple[str, str, str], list[Package]] = {}
        for package in packages:
            key = package.name, package.version, package.build
            self._packages.setdefault(key, []).append(package)
        self._stems = {package.stem for some in self._packages.values() for package in some}
        self._known: set[str] = set()
        self._before = {entry.path for entry in self._unknown()}
        self.is_thorough = False

    def look(self) -> list[Found]:
        """Find packages that were not found before and are complete."""
        found = []
        entries = sorted(self._unknown(), key=lambda entry: entry.name not in self._stems)
        left = _MOST_READ
        self.is_thorough = True
        for entry in entries:
            if entry.path in self._known or not os.path.lexists(f"{entry.path}/{_DONE}"):
                continue
            if entry.name not in self._stems:
                left -= 1
                if left < 0:
                    self.is_thorough = False
                    break
            self._known.add(entry.path)
            package = self._which(Path(entry.path))
            if package is not None:
                found.append(Found(package, Path(entry.path), entry.path not in self._before))
        return found

    def look_well(self) -> list[Found]:
        """Do the same until nothing is left to look into."""
        found = self.look()
        while not self.is_thorough:
            found += self.look()
        return found

    def forget(self) -> None:
        """Find again what was found; it still counts as there before if it was."""
        self._known.clear()

    def _unknown(self) -> Iterator[os.DirEntry[str]]:
        """The packages, complete or not, that nobody has looked into yet."""
        left = _MOST_ENTRIES
        places = [(str(cache), 0) for cache in self._caches]
        while places:
            place, depth = places.pop()
            for entry in _directories(place):
                left -= 1
                if left < 0:
                    return
                if entry.path in self._known:
                    continue
                if entry.name in self._stems or os.path.lexists(f"{entry.path}/info"):
                    yield entry
                elif depth < _DEPTH:
                    places.append((entry.path, depth + 1))

    def _which(self, directory: Path) -> Package | None:
        """Which of the packages is unpacked in a directory."""
        record = read_object(directory, _DONE)
        index = read_object(directory, "info/index.json")
        name, version, build = (
            str(record.get(key) or index.get(key)) for key in ("name", "version", "build")
        )
        for package in self._packages.get((name, version, build), ()):
            if _is_of(record, package):
                return package
        return None


def noted(directory: Path, package: Package) -> Package:
    """Complete a package by its record in the cache.

    Args:
        directory: where it is unpacked.
        package: which.
    """
    try:
        record = package_from_json(read_object(directory, _DONE))
    except ValueError:
        return package
    return merged(package, record)


def lock_of(directory: Path) -> Path:
    """Find the file beside an unpacked package that rattler locks, and that names its archive.

    https://github.com/conda/rattler, crates/rattler_cache/src/package_cache/cache_lock.rs

    Args:
        directory: where the package is unpacked.
    """
    return directory.with_name(f"{directory.name}.lock")


def archive_of(directory: Path) -> str:
    """Read the SHA256 of the archive that a package was unpacked from.

    rattler notes it beside the package, and the mamba family inside.

    Args:
        directory: where it is unpacked.

    Returns:
        The checksum; empty if nobody has noted it, or both notes differ.
    """
    noted = {_noted_beside(directory), _noted_inside(directory)} - {""}
    return noted.pop() if len(noted) == 1 else ""


def _noted_beside(directory: Path) -> str:
    try:
        noted = files.read(lock_of(directory), most=_MOST_NOTED)
    except OSError:
        return ""
    digest = noted[_REVISION : _REVISION + _SHA256]
    return digest.hex() if len(digest) == _SHA256 and directory.is_dir() else ""


def _noted_inside(directory: Path) -> str:
    sha256 = read_object(directory, _DONE).get("sha256")
    return sha256 if isinstance(sha256, str) else ""


def read_object(within: Path, name: str) -> dict[str, Any]:
    """Read the object in a JSON file of an unpacked package; an empty one if there is none.

    Args:
        within: where the package is unpacked.
        name: of the file, relative to it.
    """
    try:
        document = json.loads(files.read(within / name, within=within))
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _directories(place: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(place) as entries:
            return [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _is_of(record: dict[str, Any], package: Package) -> bool:
    """Whether a record is of a package, not of another one with the same name and version."""
    noted = {key: str(record.get(key) or "") for key in ("sha256", "md5", "url")}
    known = [
        (noted["sha256"], package.sha256),
        (noted["md5"], package.md5),
        (_plain(noted["url"]), _plain(package.url)),
    ]
    return all(one == other for one, other in known if one and other)


def _plain(url: str) -> str:
    """A URL in one form, since programs write it in several."""
    return urllib.parse.unquote(credentials.without(url))
