"""Where the files of a project are. Opens only `condainer.yml`.

The image and its companions lie beside `condainer.yml`. On each node, the mountpoint and a private
directory of this user for locks and logs lie in the mount base directory: see `places`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from condainer.errors import ConfigError
from condainer.project import config as config_module
from condainer.project.places import Places

if TYPE_CHECKING:
    from collections.abc import Iterable

    from condainer.project.config import Config

METADATA = ".condainer"
"""The directory inside an image that holds what condainer wrote there."""


@dataclass(frozen=True)
class Project:
    """A project directory and what its `condainer.yml` says.

    Args:
        directory: absolute path of the project directory.
        config: its parsed `condainer.yml`.
        text: what that file holds.
        instance: which of the mounts of its image is meant, see `places`.
    """

    directory: Path
    config: Config
    text: str = ""
    instance: str = ""

    @property
    def label(self) -> str:
        """How messages name the project."""
        return self.directory.name or str(self.directory)

    @property
    def environment_file(self) -> Path:
        """The list of what to install."""
        return self.directory / self.config.environment_yml

    @property
    def requirements_file(self) -> Path:
        """The list of what pip adds; it need not exist."""
        return self.directory / self.config.requirements_txt

    @property
    def prefix(self) -> Path:
        """Where the environment is installed, and where its image is mounted."""
        return Path(self.places.prefix)

    @property
    def image(self) -> Path:
        """The squashfs image."""
        return self.directory / f"{self.config.uuid}.squashfs"

    @property
    def lock_file(self) -> Path:
        """The exact packages of the image, in conda's @EXPLICIT format."""
        return self.directory / f"{self.config.uuid}.lock.txt"

    @property
    def startup_file(self) -> Path:
        """What a program reads when it starts, in that order; `condainer profile` writes it."""
        return self.directory / f"{self.config.uuid}.startup.txt"

    @property
    def build_log(self) -> Path:
        """The full output of every program of the last build."""
        return self.directory / f"{self.config.uuid}.build.log"

    @property
    def activate(self) -> Path:
        """The script that a shell sources to enter the environment."""
        return self.directory / "activate"

    @property
    def deactivate(self) -> Path:
        """The script that a shell sources to leave the environment again."""
        return self.directory / "deactivate"

    @property
    def places(self) -> Places:
        """The paths of the mount on this node."""
        return Places(str(self.config.mount_base_directory), self.config.uuid, self.instance)

    @property
    def runtime_directory(self) -> Path:
        """This user's private directory for locks and logs on this node."""
        return Path(self.places.runtime_directory)

    @property
    def build_lock(self) -> Path:
        """A running build holds this lock; it shows that the prefix belongs to the build."""
        return Path(self.places.build_lock)

    @property
    def mount_lock(self) -> Path:
        """The process that mounts the image holds this lock meanwhile."""
        return Path(self.places.mount_lock)

    @property
    def use_lock(self) -> Path:
        """All that use the mount share this lock; who unmounts it holds the lock alone."""
        return Path(self.places.use_lock)

    @property
    def keeper_lock(self) -> Path:
        """The process that keeps the mount holds this lock."""
        return Path(self.places.keeper_lock)

    @property
    def record(self) -> Path:
        """What the mount serves."""
        return Path(self.places.record)

    @property
    def pin(self) -> Path:
        """Exists while the mount stays even if nobody uses it."""
        return Path(self.places.pin)

    @property
    def mount_log(self) -> Path:
        """The output of the daemon that serves the mount."""
        return Path(self.places.log)


def absolute(path: Path) -> Path:
    """Make a path absolute, without following links.

    Args:
        path: any path.

    Raises:
        ConfigError: If it is relative and the working directory has been removed.
    """
    try:
        return Path(os.path.abspath(path))  # noqa: PTH100  (resolve() would follow links)
    except FileNotFoundError as error:
        raise ConfigError(
            "the working directory does not exist any more",
            "go to one that does, or name the project directory in full with -d DIR",
        ) from error


def leave_missing_directory() -> None:
    """Leave a working directory that has been removed: installers cannot work in one."""
    try:
        Path.cwd()
    except FileNotFoundError:
        os.chdir("/")


def open_project(directory: Path) -> Project:
    """Read the project in a directory.

    Args:
        directory: the project directory.

    Raises:
        ConfigError: If there is none, or if its `condainer.yml` is wrong.
    """
    directory = absolute(directory)
    text = config_module.read(directory)
    return Project(
        directory, config_module.parse(directory / config_module.CONFIG_NAME, text), text
    )


def open_projects(directories: Iterable[Path]) -> list[Project]:
    """Read several projects. A project that is named twice is returned once.

    Args:
        directories: the project directories.

    Raises:
        ConfigError: If one cannot be read, or if two of them have the same mountpoint.
    """
    found: dict[Path, Project] = {}
    for directory in directories:
        project = open_project(directory)
        other = found.setdefault(project.prefix, project)
        if not other.directory.samefile(project.directory):
            raise ConfigError(
                f"{other.directory} and {project.directory} have the same uuid and mountpoint: "
                "one is a copy of the other",
                f"write another uuid into {project.directory / config_module.CONFIG_NAME}, "
                "such as 'cat /proc/sys/kernel/random/uuid' gives",
            )
    return list(found.values())
