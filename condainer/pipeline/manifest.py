"""Writes what an image says about itself: `.condainer/` inside it.

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
from condainer.pipeline.packages import Package, merged, notes, read_records
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
"""Errors of reading something that is no regular file; a package may put anything there."""
_DATE = re.compile(r"==> .* <==$")
_TIME = re.compile(r"\s*(\d{9,}(\.\d*)?|\d{4}-\d\d-\d\d[T ][\d:.]+(Z|[+-]\d\d:?\d\d)?)\s*")
"""The content of a file that holds a time and nothing else."""


@dataclass(frozen=True)
class Manifest:
    """What goes into the manifest.

    Attributes:
        environment: environment.yml; None if conda installed nothing.
        requirements: the text of requirements.txt; None if there is none.
        packages: conda's packages.
        pip: name and version of what pip installed.
        tools: name to version of the programs that built the image.
        snapshot: the activation.
        startup: paths of the files that a program reads first, in that order.
    """

    environment: Environment | None
    requirements: str | None
    packages: tuple[Package, ...]
    pip: tuple[tuple[str, str], ...]
    tools: dict[str, str]
    snapshot: Snapshot
    startup: tuple[str, ...] = ()


def installed_packages(prefix: Path, solution: Iterable[Package]) -> tuple[Package, ...]:
    """List conda's packages as the prefix itself records them, in the order of a solution.

    Args:
        prefix: the environment.
        solution: completes what a record leaves out, such as a checksum.

    Raises:
        BuildError: If a record cannot be read.
    """
    planned = {package.stem: (place, package) for place, package in enumerate(solution)}
    found = []
    for record in read_records(prefix):
        place, plan = planned.get(record.package.stem, (len(planned), record.package))
        found.append((place, merged(record.package, plan)))
    return tuple(package for _, package in sorted(found, key=lambda item: item[0]))


def clean_records(prefix: Path, epoch: Epoch) -> None:
    """Remove from records what differs between machines, and credentials.

    Args:
        prefix: the environment.
        epoch: the times that the image records.

    Raises:
        BuildError: If a file cannot be read.
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
        # Written even if nothing has changed: rattler lets only the owner read records, but others
        # use the image as well.
        files.write(path, bare.encode("utf-8", "surrogateescape"), within=prefix)


def _settled(text: str) -> str:
    """A record with sorted files, and without what only explains the machine that it was made on.

    rattler lists files in the order of linking, and also those that another package has replaced.
    """
    try:
        document = files.parse_json(text)
    except ValueError:
        return text  # whoever reads it will report that
    if not isinstance(document, dict):
        return text
    # `link` says from where and how the package was linked, which depends on the file systems.
    for key in ("extracted_package_dir", "package_tarball_full_path", "link"):
        document.pop(key, None)
    if isinstance(document.get("files"), list):
        document["files"] = _in_order(document["files"], str)
    listed = document.get("paths_data")
    if isinstance(listed, dict) and isinstance(listed.get("paths"), list):
        listed["paths"] = _in_order(listed["paths"], _path_of)
    # Indentation would take ten times as long.
    return json.dumps(document, ensure_ascii=False) + "\n"


def _in_order(entries: list[Any], path_of: Callable[[Any], str]) -> list[Any]:
    kept = (entry for entry in entries if not path_of(entry).startswith("__clobbers__/"))
    return sorted(kept, key=path_of)


def _path_of(entry: object) -> str:
    return str(entry.get("_path")) if isinstance(entry, dict) else ""


def _without_times(text: str, stamp: int) -> str:
    """A history that is always the same: without commands, which name temporary files."""
    when = dt.datetime.fromtimestamp(stamp, dt.timezone.utc)
    lines = [line for line in text.splitlines() if not line.startswith("# cmd:")]
    marked = (f"==> {when:%Y-%m-%d %H:%M:%S} <==" if _DATE.match(line) else line for line in lines)
    return "".join(f"{line}\n" for line in marked)


def write(project: Project, manifest: Manifest, epoch: Epoch) -> None:
    """Write the manifest and the snapshot into a project's prefix.

    Args:
        project: whose prefix.
        manifest: what to write.
        epoch: the times that the image records.

    Raises:
        BuildError: If a package has put something in the place of `.condainer`.
    """
    prefix = project.prefix
    directory = (prefix / image.MANIFEST).parent
    try:
        directory.rmdir()  # an empty one is replaced
    except FileNotFoundError:
        pass
    except OSError as error:
        raise BuildError(
            f"a package or its script has put something at {directory}",
            "condainer needs that directory; leave the package out",
        ) from error
    text = credentials.without(manifest.environment.text) if manifest.environment else None
    files.make_directory(directory, within=prefix)
    _write_json(prefix / image.MANIFEST, _document(project, manifest, epoch, text), prefix)
    _write_json(prefix / SNAPSHOT, manifest.snapshot.to_json(), prefix)
    if text is not None:
        files.write(directory / "environment.yml", text.encode(), within=prefix)


def _document(
    project: Project, manifest: Manifest, epoch: Epoch, environment: str | None
) -> dict[str, Any]:
    when = dt.datetime.now(dt.timezone.utc)
    if epoch.stamp is not None:
        when = dt.datetime.fromtimestamp(epoch.stamp, dt.timezone.utc)
    requirements = manifest.requirements
    return {
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
        "environment_yml": environment,
        "requirements_txt": requirements and credentials.without(requirements),
        "packages": [asdict(package) for package in manifest.packages],
        "pip": [{"name": name, "version": version} for name, version in manifest.pip],
        "activation": manifest.snapshot.to_json(),
        "startup": list(manifest.startup),
    }


def note_startup(prefix: Path, startup: Iterable[str]) -> None:
    """Replace the list of files that are read first, in the manifest of an unpacked image.

    Args:
        prefix: the directory with the unpacked image.
        startup: the paths, in their order.

    Raises:
        BuildError: If there is no manifest.
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
