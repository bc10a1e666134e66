"""Sees that the files of a package stay within the prefix.

rattler writes, and removes, wherever a package's list of files leads, or ends the whole process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rattler import PathsJson

from condainer.errors import BuildError

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


def _error(package: str, path: Path) -> BuildError:
    shown = str(path).replace("\0", "\\0")
    return BuildError(
        f"the package {package} would write outside of the environment: {shown}",
        "leave that package out, and report it to its channel",
    )
