"""Writes what an image says of itself: `.condainer/` inside it.

Reading the manifest back is the business of `image`, the snapshot's that of `activation`.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import condainer
from condainer import image
from condainer.activation import SNAPSHOT, Snapshot
from condainer.errors import BuildError
from condainer.pipeline import credentials
from condainer.pipeline.installers import Package, read_records

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from condainer.environment import Environment
    from condainer.project import Project

FORMAT = 1


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
    """

    environment: Environment | None
    requirements: str | None
    packages: tuple[Package, ...]
    pip: tuple[tuple[str, str], ...]
    tools: dict[str, str]
    snapshot: Snapshot


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
        found.append((place, _merged(record.package, plan)))
    return tuple(package for _, package in sorted(found, key=lambda item: item[0]))


def strip_credentials(prefix: Path) -> None:
    """Take the credentials out of what installers note in a prefix: records, and their history."""
    for path in (prefix / "conda-meta").glob("*"):
        if path.is_symlink() or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
        bare = credentials.without(text)
        if bare != text:
            path.unlink()  # the same file may be in the package cache
            path.write_text(bare, encoding="utf-8", errors="surrogateescape")
            path.chmod(0o644)


def write(project: Project, manifest: Manifest) -> None:
    """Write the manifest and the snapshot into a project's prefix."""
    when = dt.datetime.now(dt.timezone.utc)
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
            "release": platform.release(),
        },
        "tools": {"condainer": condainer.__version__, **manifest.tools},
        "environment_yml": text,
        "requirements_txt": requirements and credentials.without(requirements),
        "packages": [asdict(package) for package in manifest.packages],
        "pip": [{"name": name, "version": version} for name, version in manifest.pip],
        "activation": manifest.snapshot.to_json(),
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
    directory.mkdir(mode=0o755)
    _write_json(project.prefix / image.MANIFEST, document)
    _write_json(project.prefix / SNAPSHOT, manifest.snapshot.to_json())
    if text is not None:
        (directory / "environment.yml").write_text(text, encoding="utf-8")


def _write_json(path: Path, document: dict[str, Any]) -> None:
    text = json.dumps(document, indent=1, ensure_ascii=True)
    path.write_text(text + "\n", encoding="utf-8")
    os.chmod(path, 0o644)  # noqa: PTH101  (whatever the umask)


def _merged(record: Package, plan: Package) -> Package:
    """A record with what it leaves out taken from the plan."""
    fields = asdict(record)
    return Package(**{key: value or getattr(plan, key) for key, value in fields.items()})
