"""Describes conda packages: those that an installer chose, and those that a prefix records.

conda-meta/NAME-VERSION-BUILD.json is conda's record of an installed package.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from condainer.errors import BuildError
from condainer.pipeline import credentials
from condainer.system import files

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

_NAME_OF_SPEC = re.compile(r"\s*(?:.*::)?([^\s=<>!~\[]*).*", re.DOTALL)
"""The name in a spec, such as `conda-forge::numpy >=1.20`."""


@dataclass(frozen=True)
class Package:
    """One exact conda package. Text is empty and numbers are 0 if they are not known.

    `channel` and `url` hold no credentials.
    """

    name: str
    version: str
    build: str
    build_number: int
    channel: str
    subdir: str
    url: str
    md5: str
    sha256: str
    size: int

    @property
    def stem(self) -> str:
        """NAME-VERSION-BUILD, as installers print it."""
        return f"{self.name}-{self.version}-{self.build}"


def check_names(packages: Iterable[Package]) -> None:
    """Check that each package has a directory of its own in a package cache.

    Args:
        packages: as a channel lists them.

    Raises:
        BuildError: If a name, version or build contains characters that a file name cannot have.
    """
    for package in packages:
        if "/" in package.stem or not package.stem.isprintable():
            raise BuildError(
                f"the channel {package.channel or package.url} lists a package whose name, version "
                f"or build contains characters that a file name cannot have: {package.stem!a}",
                "leave that package out, and report this to its channel",
            )


def package_from_json(entry: Mapping[str, Any]) -> Package:
    """Make a package of what conda-meta, or --json of the mamba family, says about it.

    Args:
        entry: the JSON object.

    Raises:
        ValueError: If it does not describe a package.
    """

    def text(*keys: str) -> str:
        value = next((entry[key] for key in keys if entry.get(key)), "")
        if not isinstance(value, str):
            raise ValueError(f"'{keys[0]}' is not text")  # noqa: TRY004
        return value

    def number(key: str) -> int:
        value = entry.get(key) or 0
        if not isinstance(value, int):
            raise ValueError(f"'{key}' is not a whole number")  # noqa: TRY004
        return value

    package = Package(
        name=text("name"),
        version=text("version"),
        build=text("build_string", "build"),
        build_number=number("build_number"),
        channel=credentials.without(text("channel")).rstrip("/"),
        subdir=text("subdir", "platform"),
        url=credentials.without(text("url")).replace(" ", "%20"),
        md5=text("md5"),
        sha256=text("sha256"),
        size=number("size"),
    )
    if not (package.name and package.version and package.build):
        raise ValueError("name, version or build is missing")
    return package


def merged(record: Package, plan: Package) -> Package:
    """Complete a package: fields that its record leaves out come from the plan.

    Args:
        record: the package, as its record describes it.
        plan: the same package, as the solution describes it.
    """
    fields = asdict(record)
    return Package(**{key: value or getattr(plan, key) for key, value in fields.items()})


@dataclass(frozen=True)
class PrefixRecord:
    """What conda-meta records about an installed package.

    Attributes:
        package: the package.
        files: the paths of its files, relative to the prefix.
        needs: the names of the packages it depends on, installed or not.
    """

    package: Package
    files: tuple[str, ...]
    needs: tuple[str, ...]


def read_records(prefix: Path) -> list[PrefixRecord]:
    """Read the records of all conda packages in a prefix, sorted by file name.

    Args:
        prefix: the environment.

    Raises:
        BuildError: If a record cannot be read.
    """
    return [_read_record(path, prefix) for path in notes(prefix) if path.suffix == ".json"]


def notes(prefix: Path) -> list[Path]:
    """List the files that installers keep in conda-meta: records of packages, and the history.

    Args:
        prefix: the environment.

    Raises:
        BuildError: If conda-meta is a symbolic link.
    """
    directory = prefix / "conda-meta"
    if directory.is_symlink():
        raise BuildError(
            f"{directory} is a symbolic link", "leave out the package that has made it"
        )
    return [directory / name for name in files.names(directory, within=prefix)]


def _read_record(path: Path, prefix: Path) -> PrefixRecord:
    try:
        return _record(files.read_json(path, within=prefix))
    except OSError as error:
        raise BuildError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise BuildError(
            f"{path} is not the record of a package: {error}",
            "leave out the package that has put it there",
        ) from error


def _record(entry: object) -> PrefixRecord:
    if not isinstance(entry, dict):
        raise ValueError("it holds no JSON object")  # noqa: TRY004
    owned = _texts(entry, "files", "paths")
    needs = [_NAME_OF_SPEC.sub(r"\1", spec) for spec in _texts(entry, "depends", "specs")]
    return PrefixRecord(package_from_json(entry), owned, tuple(needs))


def _texts(entry: dict[str, Any], key: str, what: str) -> tuple[str, ...]:
    listed = entry.get(key, [])
    if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
        raise ValueError(f"'{key}' is not a list of {what}")
    return tuple(listed)
