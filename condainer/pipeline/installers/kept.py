"""Tells which packages are in rattler's cache, and makes a record of each.

Packages of a lock file need nothing else, so no list of a channel is read for them.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from rattler import PackageRecord, RepoDataRecord, Subdir

from condainer.errors import BuildError
from condainer.pipeline.installers import ready, unpacked
from condainer.system import files

if TYPE_CHECKING:
    from pathlib import Path

    from condainer.pipeline.packages import Package

_INDEX = "info/index.json"
_HERE = {str(Subdir.current()), "noarch"}


def is_there(package: Package, directory: Path, *, is_locked: bool) -> bool:
    """Whether a package is in the cache and need not be fetched.

    Another package may have the same name and version, so the checksum decides. A package without
    one counts only if its channel lists nothing better.

    Args:
        package: which.
        directory: where it would be unpacked.
        is_locked: whether a lock file lists it, not a channel.
    """
    noted = unpacked.archive_of(directory)
    if package.sha256 and noted:
        return noted == package.sha256
    is_listed = bool(package.sha256 or package.md5) and not is_locked
    return is_listed and os.path.lexists(directory)


def site_packages(package: Package, directory: Path) -> str:
    """Find where an unpacked Python has the modules of other packages, relative to the prefix.

    Args:
        package: of the Python.
        directory: where it is unpacked.
    """
    index = ready.entries(directory, _INDEX)
    named = index[0].get("python_site_packages_path") if index else None
    return named if isinstance(named, str) and named else ready.site_packages([package])


def record(package: Package, url: str, directory: Path) -> RepoDataRecord:
    """Make the record of an unpacked package.

    It is the same whether the package was just fetched or not, and so is the image.

    Args:
        package: with the checksums and the size for the record.
        url: where it comes from.
        directory: where it is unpacked.

    Raises:
        BuildError: If the package does not describe itself, or is another one.
    """
    path = directory / _INDEX
    try:
        files.read_json(path, within=directory)  # rattler would read a pipe or a link as well
        own = PackageRecord.from_index_json(
            path, package.size or None, package.sha256 or None, package.md5 or None
        )
        found = RepoDataRecord(own, url.rpartition("/")[2], url, package.channel)
    except Exception as error:  # rattler raises two dozen unrelated types
        raise BuildError(f"{package.url} does not say which package it is: {error}") from error
    stem = f"{found.name.normalized}-{found.version}-{found.build}"
    if stem != package.stem:
        raise BuildError(f"{package.url} is another package than its URL says: {stem!a}")
    if found.subdir not in _HERE:
        raise BuildError(
            f"{package.url} is for {found.subdir}, this machine is {Subdir.current()}",
            "build without --locked: that writes a lock file for this kind of machine",
        )
    return found
