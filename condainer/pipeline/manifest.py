"""Writes what an image says of itself: `.condainer/` inside it.

`project/image.py` reads the manifest back, and `running/activation.py` the snapshot.
"""

from __future__ import annotations

import datetime as dt
import errno
import json
import os
import platform
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import condainer
from condainer.errors import BuildError
from condainer.pipeline import credentials
from condainer.pipeline.installers import Package, merged, notes, read_records
from condainer.project import image
from condainer.running.activation import SNAPSHOT, Snapshot
from condainer.system import files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from condainer.pipeline.epoch import Epoch
    from condainer.project.environment import Environment
    from condainer.project.project import Project

FORMAT = 1
_NO_FILE = {errno.ELOOP, errno.EINVAL, errno.ENXIO}
"""How something that is no regular file cannot be read: a package may hold anything there."""
_DATE = re.compile(r"==> .* <==$")
_TIME = re.compile(r"\s*(\d{9,}(\.\d*)?|\d{4}-\d\d-\d\d[T ][\d:.]+(Z|[+-]\d\d:?\d\d)?)\s*")
"""What a file holds that tells a time, and nothing else."""


@dataclass(frozen=True)
class Manifest:
    """What goes into the manifest.

    Attributes:
        environment: environment.yml as it was read; None for what conda did not install.
        requirements: the text of requirements.txt; None where there is none.
        packages: conda's packages.
        pip: name and version of what pip installed.
        tools: name to version of what built the image.
        snapshot: the activation.
        startup: paths of what a program reads first, in that order.
    """

    environment: Environment | None
    requirements: str | None
    packages: tuple[Package, ...]
    pip: tuple[tuple[str, str], ...]
    tools: dict[str, str]
    snapshot: Snapshot
    startup: tuple[str, ...] = ()


def installed_packages(prefix: Path, solution: Iterable[Package]) -> tuple[Package, ...]:
    """The packages of conda as the prefix itself lists them, in the order of a solution.

    Args:
        prefix: the environment; its conda-meta says what is installed.
        solution: fills in what a record leaves out, such as a checksum.

    Raises:
        BuildError: names a record that is none.
    """
    planned = {package.stem: (place, package) for place, package in enumerate(solution)}
    found = []
    for record in read_records(prefix):
        place, plan = planned.get(record.package.stem, (len(planned), record.package))
        found.append((place, merged(record.package, plan)))
    return tuple(package for _, package in sorted(found, key=lambda item: item[0]))


def clean_records(prefix: Path, epoch: Epoch) -> None:
    """Take out of records what nobody else is to see, or has any use for: where they were made.

    Args:
        prefix: the environment; what installers note there are records and their history.
        epoch: the time of the build.

    Raises:
        BuildError: names what cannot be read.
    """
    for path in notes(prefix):
        try:
            text = files.read(path, within=prefix).decode("utf-8", "surrogateescape")
        except OSError as error:
            if error.errno in _NO_FILE:
                continue
            raise BuildError(f"cannot read {path}: {error.strerror}") from error
        bare = credentials.without(text)
        if path.suffix == ".json":
            bare = _settled(bare)
        elif path.name == "history" and epoch.stamp is not None:
            bare = _without_times(bare, epoch.stamp)
        elif epoch.stamp is not None and _TIME.fullmatch(bare):  # conda's `created_at`
            bare = f"{epoch.stamp}\n"
        # Also for its permissions: rattler closes records to everybody else, which an image that
        # others use must not have.
        files.write(path, bare.encode("utf-8", "surrogateescape"), within=prefix)


def _text_of(path: Path, prefix: Path) -> str:
    try:
        return files.read(path, within=prefix).decode("utf-8", "surrogateescape")
    except OSError as error:
        raise BuildError(f"cannot read {path}: {error.strerror}") from error


def _settled(text: str) -> str:
    """A record without what only the machine it was made on explains, in an order of its own.

    rattler lists files as it has linked them, and those that another package has got instead.
    """
    try:
        document = files.parse_json(text)
    except ValueError:
        return text  # whoever reads it will say so
    if not isinstance(document, dict):
        return text
    # The last tells from where and how it was linked: whether the cache is on the same file system.
    for key in ("extracted_package_dir", "package_tarball_full_path", "link"):
        document.pop(key, None)
    if isinstance(document.get("files"), list):
        document["files"] = _in_order(document["files"], str)
    listed = document.get("paths_data")
    if isinstance(listed, dict) and isinstance(listed.get("paths"), list):
        listed["paths"] = _in_order(listed["paths"], _path_of)
    # Without indentation, which takes ten times as long.
    return json.dumps(document, ensure_ascii=False) + "\n"


def _in_order(entries: list[Any], path_of: Callable[[Any], str]) -> list[Any]:
    kept = (entry for entry in entries if not path_of(entry).startswith("__clobbers__/"))
    return sorted(kept, key=path_of)


def _path_of(entry: object) -> str:
    return str(entry.get("_path")) if isinstance(entry, dict) else ""


def _without_times(text: str, stamp: int) -> str:
    """A history that is the same each time: the commands in it name temporary files."""
    when = dt.datetime.fromtimestamp(stamp, dt.timezone.utc)
    lines = [line for line in text.splitlines() if not line.startswith("# cmd:")]
    marked = (f"==> {when:%Y-%m-%d %H:%M:%S} <==" if _DATE.match(line) else line for line in lines)
    return "".join(f"{line}\n" for line in marked)


def write(project: Project, manifest: Manifest, epoch: Epoch) -> None:
    """Write the manifest and the snapshot into a project's prefix.

    Args:
        project: whose.
        manifest: what it says.
        epoch: the time of the build.
    """
    when = dt.datetime.now(dt.timezone.utc)
    if epoch.stamp is not None:
        when = dt.datetime.fromtimestamp(epoch.stamp, dt.timezone.utc)
    text = credentials.without(manifest.environment.text) if manifest.environment else None
    requirements = manifest.requirements
    document = {
        "format": FORMAT,
        "uuid": project.config.uuid,
        "name": manifest.snapshot.name,
        "prefix": str(project.prefix),
        "built": when.isoformat(timespec="seconds"),
        "host": {
            "machine": platform.machine(),
            "system": platform.system(),
            **({} if epoch.is_fixed else {"release": platform.release()}),
        },
        "tools": {"condainer": condainer.__version__, **manifest.tools},
        "environment_yml": text,
        "requirements_txt": requirements and credentials.without(requirements),
        "packages": [asdict(package) for package in manifest.packages],
        "pip": [{"name": name, "version": version} for name, version in manifest.pip],
        "activation": manifest.snapshot.to_json(),
        "startup": list(manifest.startup),
    }
    directory = (project.prefix / image.MANIFEST).parent
    try:
        directory.rmdir()  # an empty one is replaced
    except FileNotFoundError:
        pass
    except OSError as error:
        raise BuildError(
            f"a package or its script has put something at {directory}",
            "that directory is condainer's own; leave the package out",
        ) from error
    prefix = project.prefix
    files.make_directory(directory, within=prefix)
    _write_json(prefix / image.MANIFEST, document, prefix)
    _write_json(prefix / SNAPSHOT, manifest.snapshot.to_json(), prefix)
    if text is not None:
        files.write(directory / "environment.yml", text.encode(), within=prefix)


def note_startup(prefix: Path, startup: Iterable[str]) -> None:
    """Put another list of what is read first into the manifest of an image that is unpacked.

    Raises:
        BuildError: where it has none.
    """
    path = prefix / image.MANIFEST
    try:
        document = cast("dict[str, Any]", files.read_json(path, within=prefix))
        document["startup"] = list(startup)
    except (OSError, ValueError, TypeError) as error:
        raise BuildError(f"the image has no manifest: {error}", "build it again") from error
    before = path.parent.stat()
    _write_json(path, document, prefix)
    os.utime(path.parent, ns=(before.st_atime_ns, before.st_mtime_ns))


def _write_json(path: Path, document: dict[str, Any], prefix: Path) -> None:
    text = json.dumps(document, indent=1, ensure_ascii=True)
    files.write(path, f"{text}\n".encode(), within=prefix)
