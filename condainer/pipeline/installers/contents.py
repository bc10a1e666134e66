"""Checks that a package holds only files of its own, and that they stay inside the prefix.

rattler writes and removes wherever a package's list of files leads, and a bad list can end the
whole process. It also follows links: those that another package has put into the prefix, and those
in place of a file that is to be copied.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from rattler import PathsJson

from condainer.errors import BuildError
from condainer.system import files
from condainer.units import human

if TYPE_CHECKING:
    from collections.abc import Iterator

_RECORDS = ("index.json", "paths.json", "files", "has_prefix", "no_link", "link.json")
"""The files that rattler reads in `info`, if they are there."""
_MOST_LINKS = 40
"""The most links that a path may lead through, as in the kernel."""
_FOR_ANY_PYTHON = ("site-packages/", "python-scripts/")
"""Directories of `noarch: python` packages whose files are put elsewhere."""


class Contents:
    """What packages put below one prefix. Any thread may call it.

    Args:
        site_packages: where `noarch: python` packages put their modules, relative to the prefix.
    """

    def __init__(self, site_packages: str = "") -> None:
        self._moved = dict(zip(_FOR_ANY_PYTHON, (f"{site_packages}/", "bin/"), strict=True))
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[object, ...]] = {}
        self._links: dict[str, dict[str, str]] = {}
        # rattler also writes records, and programs that start modules.
        own = dict.fromkeys(("conda-meta", "bin", site_packages), "")
        self._directories: dict[str, dict[str, str]] = {"": own}

    def knows(self, package: str, directory: Path) -> bool:
        """Whether an unpacked package was added, and has not been replaced since.

        Args:
            package: how messages name it.
            directory: where it is unpacked.
        """
        return self._seen.get(package) == _stamp(directory)

    def add(self, package: str, directory: Path) -> None:
        """Take note of an unpacked package.

        Args:
            package: how messages name it.
            directory: where it is unpacked.

        Raises:
            BuildError: If a path leads out of the prefix, or a file is not the package's own.
        """
        _check_list(package, directory)
        try:
            listed = PathsJson.from_package_directory_with_deprecated_fallback(directory).paths
        except Exception:  # noqa: BLE001  (rattler reads it likewise, and says what is wrong with it)
            listed = []
        links = {entry.relative_path for entry in listed if entry.path_type.softlink}
        own = _Own(package, directory)
        stamp = _stamp(directory)
        with self._lock:
            self._directories[package], self._links[package] = {}, {}
            for entry in listed:
                path = entry.relative_path
                check_path(package, path)
                if links and not links.isdisjoint(path.parents):
                    raise _outside(package, path)
                self._note(package, path, own.target(path, is_link=path in links))
            self._seen[package] = stamp

    def _note(self, package: str, path: Path, target: str | None) -> None:
        for place in self._places(posixpath.normpath(path)):
            self._directories[package].setdefault(posixpath.dirname(place), place)
            if target is not None:
                self._links[package][place] = target

    def check(self) -> None:
        """Check that no package writes outside through a link, be it another package's or its own.

        Raises:
            BuildError: If one would.
        """
        with self._lock:
            links = self._resolved()
            for package, directory, place in self._listed():
                if directory and _real(directory, links) is None:
                    raise _outside(package or "that has this link", Path(place or directory))

    def _listed(self) -> Iterator[tuple[str, str, str]]:
        """Each package, each directory that it has files in, and one of these."""
        for package, directories in self._directories.items():
            for directory, place in directories.items():
                yield package, directory, place

    def _places(self, path: str) -> Iterator[str]:
        """Where a file may be put, relative to the prefix."""
        yield path
        for start, place in self._moved.items():
            if path.startswith(start):
                yield place + path.removeprefix(start)

    def _resolved(self) -> dict[str, str]:
        """The links by their real paths: links above them may lead elsewhere in the prefix."""
        links = {place: to for own in self._links.values() for place, to in own.items()}
        for _ in range(_MOST_LINKS):
            before = len(links)
            for place, target in list(links.items()):
                above = _real(posixpath.dirname(place), links)
                if above is not None:
                    links.setdefault(posixpath.join(above, posixpath.basename(place)), target)
            if len(links) == before:
                break
        return links


class _Own:
    """Checks whether the files that a package lists are its own.

    Args:
        package: how messages name it.
        directory: where it is unpacked.
    """

    def __init__(self, package: str, directory: Path) -> None:
        self._package = package
        self._top = os.path.realpath(directory)
        self._directory = directory
        self._known: set[str] = set()

    def target(self, path: Path, *, is_link: bool) -> str | None:
        """Check that a file is in the package, and that a file to be copied is no link out of it.

        Returns:
            The target of a link; None if the file is none.

        Raises:
            BuildError: If it is not.
        """
        above = os.path.dirname(path)  # noqa: PTH120  (thousands)
        if above not in self._known:
            self._check_within(self._directory / above, path)
            self._known.add(above)
        file = self._directory / path
        try:
            target = os.readlink(file) if stat.S_ISLNK(os.lstat(file).st_mode) else None  # noqa: PTH115
        except (OSError, ValueError):
            return None  # it is missing: rattler will report that
        if target is not None and not is_link:
            self._check_within(file, path)
        return target

    def _check_within(self, file: Path, path: Path) -> None:
        real = os.path.realpath(file)
        if real != self._top and not real.startswith(f"{self._top}/"):
            raise _foreign(self._package, path)


def check_path(package: str, path: Path) -> None:
    """Check that a path of a package stays below the prefix.

    Args:
        package: how messages name it.
        path: relative to the prefix.

    Raises:
        BuildError: If it does not.
    """
    if path.is_absolute() or ".." in path.parts or "\0" in str(path):
        raise _outside(package, path)


def check_package(package: str, directory: Path) -> None:
    """Check that all files of an unpacked package are its own, and stay below the prefix.

    Its symbolic links may lead anywhere, but no file may be below one that leads out of the prefix.

    Args:
        package: how messages name it.
        directory: where it is unpacked.

    Raises:
        BuildError: If that is not so.
    """
    contents = Contents()
    contents.add(package, directory)
    contents.check()


def _check_list(package: str, directory: Path) -> None:
    """Check that the lists of files belong to the package itself."""
    for name in _RECORDS:
        path = Path("info", name)
        try:
            files.read(directory / path, within=directory)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise _foreign(package, path) from error
            if error.errno != errno.ENOENT:  # rattler reports it if it needs the file
                raise BuildError(
                    f"the package {package} has an {path} that is not a file, or is larger than "
                    f"{human(files.MOST)}",
                    "leave that package out, and report this to its channel",
                ) from error


def _stamp(directory: Path) -> tuple[object, ...]:
    """A value that changes if another package takes the place of an unpacked one."""
    found: list[object] = []
    for path in (directory, directory / "info", directory / "info/paths.json"):
        with contextlib.suppress(OSError):
            status = path.lstat()
            found.append((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(found)


def _real(path: str, links: dict[str, str]) -> str | None:
    """Resolve a path below the prefix; None if it leads out."""
    there: list[str] = []
    rest = path.split("/")[::-1]
    followed = 0
    while rest:
        name = rest.pop()
        if name == "..":
            if not there:
                return None
            there.pop()
        elif name not in {"", "."}:
            target = links.get("/".join([*there, name]))
            if target is None:
                there.append(name)
                continue
            followed += 1
            if target.startswith("/") or followed > _MOST_LINKS:
                return None
            rest += target.split("/")[::-1]
    return "/".join(there)


def _outside(package: str, path: Path) -> BuildError:
    return _error(f"the package {package} would write outside of the environment", path)


def _foreign(package: str, path: Path) -> BuildError:
    return _error(f"the package {package} has a link out of the package in place of a file", path)


def _error(what: str, path: Path) -> BuildError:
    shown = str(path).replace("\0", "\\0")
    return BuildError(f"{what}: {shown}", "leave that package out, and report this to its channel")
