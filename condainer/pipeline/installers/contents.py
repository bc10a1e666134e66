"""Sees that the files of a package stay within the prefix.

rattler writes, and removes, wherever a package's list of files leads, or ends the whole process.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from rattler import PathsJson

from condainer import files
from condainer.errors import BuildError
from condainer.units import human

if TYPE_CHECKING:
    from pathlib import Path


def check_path(package: str, path: Path) -> None:
    """See that a path that a package gives is one below the prefix.

    Args:
        package: how messages name it.
        path: what it gives.

    Raises:
        BuildError: where it is not.
    """
    if path.is_absolute() or ".." in path.parts or "\0" in str(path):
        raise _error(package, path)


def check_package(package: str, directory: Path) -> None:
    """See that all files of an unpacked package are put below the prefix.

    Its soft links may point anywhere, but no file of its own may lie below one.

    Args:
        package: how messages name it.
        directory: where it lies unpacked.

    Raises:
        BuildError: where one is not.
    """
    _check_records(package, directory / "info")
    try:
        listed = PathsJson.from_package_directory_with_deprecated_fallback(directory).paths
    except Exception:  # noqa: BLE001  (rattler reads it likewise, and says what is wrong with it)
        return
    links = {entry.relative_path for entry in listed if entry.path_type.softlink}
    for entry in listed:
        path = entry.relative_path
        check_path(package, path)
        if links and not links.isdisjoint(path.parents):
            raise _error(package, path)


def _check_records(package: str, info: Path) -> None:
    """See that what a package says of itself can be read: rattler reads whatever is there."""
    for path in (info, *(info / name for name in _RECORDS)):
        try:
            status = path.lstat()
        except OSError:
            continue  # rattler says whether it needs that
        is_sound = stat.S_ISDIR(status.st_mode) if path == info else stat.S_ISREG(status.st_mode)
        if not is_sound or status.st_size > files.MOST:
            raise BuildError(
                f"the package {package} has an {path.relative_to(info.parent)} that is no file, or "
                f"is larger than {human(files.MOST)}",
                "leave that package out, and report it to its channel",
            )


_RECORDS = ("index.json", "paths.json", "files", "has_prefix", "no_link", "link.json")


def _error(package: str, path: Path) -> BuildError:
    shown = str(path).replace("\0", "\\0")
    return BuildError(
        f"the package {package} would write outside of the environment: {shown}",
        "leave that package out, and report it to its channel",
    )
