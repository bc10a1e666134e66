"""Plans a build: reads the project, and checks all that can be checked before anything is done."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from condainer.errors import BuildError
from condainer.pipeline import editable, epoch, lockfile, occupancy, parts, squash
from condainer.pipeline.installers import choice
from condainer.pipeline.installers.interface import Request
from condainer.project import environment as environment_module
from condainer.project import image
from condainer.project.config import CONFIG_NAME
from condainer.running import shell
from condainer.startup import listing
from condainer.system import files, tools, trust

if TYPE_CHECKING:
    from collections.abc import Sequence

    from condainer.pipeline.context import BuildContext
    from condainer.pipeline.epoch import Epoch
    from condainer.pipeline.installers.interface import Installer
    from condainer.pipeline.lockfile import Lock
    from condainer.project.environment import Environment
    from condainer.project.project import Project
    from condainer.system.tools import Mksquashfs


@dataclass(frozen=True)
class BuildOptions:
    """What the command line asks of a build.

    Attributes:
        force: replace an image that is there.
        locked: install what the lock file lists, instead of solving.
        offline: ask for nothing over the network.
        installer: name or path; empty means the first one that is there.
        dry_run: only check and solve.
        overlap: compress while packages are being installed, if that is possible.
        repack: compress the existing image again, and install nothing.
        idle: prefixes with a mount that is taken away before the build, if this is no dry run.
        umask: for the files beside the image.
    """

    force: bool = False
    locked: bool = False
    offline: bool = False
    installer: str = ""
    dry_run: bool = False
    overlap: bool = True
    repack: bool = False
    idle: frozenset[Path] = frozenset()
    umask: int = 0o022

    @property
    def mode(self) -> int:
        """The permissions of the files beside the image: only their owner may write to them."""
        return 0o644 & ~self.umask


@dataclass(frozen=True)
class Plan:
    """What one build will do, and with which tools: the result of the check stage.

    Attributes:
        options: what the command line asks for.
        environment: environment.yml; None if conda installs nothing.
        requirements: requirements.txt; None if there is none.
        requirements_text: its content.
        lock: the lock file; None if the build does not install from it.
        installer: what installs; None if conda installs nothing.
        image: where the image is written: the target, if the project's image is a link.
        request: what the installer is asked for.
        mksquashfs: the program that compresses.
        compression: how it compresses.
        tools: name to version of the programs that take part.
        epoch: the times that the image records.
        created: the time that the lock file records, in seconds since 1970.
        startup: paths of the files that a program reads first, in that order.
        name: what the prompt shows.
    """

    options: BuildOptions
    environment: Environment | None
    requirements: Path | None
    requirements_text: str | None
    lock: Lock | None
    installer: Installer | None
    image: Path
    request: Request
    mksquashfs: Mksquashfs
    compression: squash.Compression
    tools: dict[str, str]
    epoch: Epoch
    created: int
    startup: tuple[str, ...]
    name: str

    @property
    def pip_lines(self) -> tuple[str, ...]:
        """The `pip:` list of environment.yml."""
        return self.environment.pip if self.environment else ()

    @property
    def variables(self) -> Sequence[tuple[str, str]]:
        """The `variables:` of environment.yml."""
        return self.environment.variables if self.environment else ()


def make_plan(context: BuildContext, options: BuildOptions) -> Plan:
    """Check everything that can be checked before a build changes anything.

    Args:
        context: of the build; its `epoch` is set here.
        options: what the command line asks for.

    Raises:
        CondainerError: If the build cannot succeed.
    """
    project, config = context.project, context.project.config
    conda = not config.non_conda_application and not options.repack
    image_path = _check_files(project, options)
    environment = environment_module.load(project.environment_file) if conda else None
    for warning in environment.warnings if environment else ():
        context.note(warning)
    lock = lockfile.read(project.lock_file) if options.locked and conda else None
    if lock:
        editable.check_lock(lock.pip)
    context.epoch = epoch.of_build(lock.created if lock else None)
    _check_prefix(project, options)
    mksquashfs = tools.find_mksquashfs()
    levels = squash.REPACK_LEVELS if options.repack else squash.DEFAULT_LEVELS
    requirements = _requirements(project)
    request = _request(context, options, environment, lock, wants_pip=requirements is not None)
    installer = _installer(context, options, request) if conda else None
    return Plan(
        options=options,
        environment=environment,
        requirements=requirements,
        requirements_text=files.read_text(requirements) if requirements else None,
        lock=lock,
        installer=installer,
        image=image_path,
        request=request,
        mksquashfs=mksquashfs,
        compression=squash.choose_compression(config, mksquashfs, levels),
        tools=_versions(mksquashfs, installer),
        epoch=context.epoch,
        created=lock.created if lock else context.epoch.stamp or int(time.time()),
        startup=listing.read(project.startup_file),
        name=config.user_env_name or (environment and environment.name) or project.prefix.name,
    )


def note_foreign_owner(context: BuildContext, options: BuildOptions) -> None:
    """Tell the user that a project is somebody else's, before anything that it names is run.

    Args:
        context: of the build.
        options: what the command line asks for.
    """
    if options.dry_run or options.repack:
        return
    project = context.project
    places = (project.directory, project.directory / CONFIG_NAME, project.environment_file)
    for path in (*places, project.requirements_file):
        owner = _owner(path)
        if owner not in {os.getuid(), 0, None}:
            context.note(
                f"{path} belongs to {trust.user_name(owner)}: this build runs, as you, the "
                "programs that it names"
            )
            return


def _owner(path: Path) -> int | None:
    with contextlib.suppress(OSError):
        return path.stat().st_uid
    return None


def _check_files(project: Project, options: BuildOptions) -> Path:
    """Check that a build can write its files; returns the path where the image is written."""
    own = (project.image, project.lock_file, project.build_log)
    for path in (*own, project.activate, project.deactivate):
        parts.check_replaceable(path)
    _check_image(project, options)
    for path in (project.activate, project.deactivate):
        if not shell.is_ours(path):
            raise BuildError(
                f"{path} is a file of yours, and build writes a file with that name", "rename it"
            )
    if not os.access(project.directory, os.W_OK):
        raise BuildError(
            f"you cannot write to the project directory {project.directory}",
            "build in a copy of it, or ask its owner",
        )
    return parts.behind_link(project.image, trust.of_this_user(project))


def _check_image(project: Project, options: BuildOptions) -> None:
    """Check that there is an image to repack, or none that a build would replace unasked."""
    if options.repack:
        if files.is_absent(project.image):
            raise BuildError(
                f"there is no image {project.image}", "make one with 'condainer build'"
            )
        image.read_manifest(project.image)
    elif not files.is_missing(project.image) and not options.force:
        raise BuildError(
            f"the image {project.image} exists already",
            "'condainer build --force' replaces it once the new one is complete",
        )


def _check_prefix(project: Project, options: BuildOptions) -> None:
    """Check that the build can have the prefix; a mount there that goes first is no obstacle."""
    occupancy.check_base_directory(project)
    occupancy.check_unclaimed(project)
    if project.prefix in options.idle:
        return
    if project.config.non_conda_application and not options.repack:
        occupancy.check_application(project)
    else:
        occupancy.check_prefix(project)


def _request(
    context: BuildContext,
    options: BuildOptions,
    environment: Environment | None,
    lock: Lock | None,
    *,
    wants_pip: bool,
) -> Request:
    config = context.project.config
    specs = environment.specs if environment else ()
    wants_pip = wants_pip or bool(environment and environment.pip)
    if wants_pip and not lock and not any(map(environment_module.names_pip, specs)):
        specs = (*specs, "pip")  # conda adds it as well, if environment.yml does not list it
    cache = config.package_cache
    return Request(
        specs=specs,
        channels=environment.channels if environment else (),
        locked=lock.packages if lock else (),
        prefix=context.project.prefix,
        package_cache=Path(cache) if cache else None,
        channel_priority=config.channel_priority,
        offline=options.offline,
    )


def _installer(context: BuildContext, options: BuildOptions, request: Request) -> Installer:
    installer = choice.choose(
        context.project.config,
        options.installer,
        only_looks=options.dry_run,
        on_note=context.note,
    )
    installer.check(request)
    return installer


def _requirements(project: Project) -> Path | None:
    path = project.requirements_file
    if project.config.non_conda_application or not path.exists():
        return None
    if path.is_dir():
        raise BuildError(
            f"{path} is a directory", "change the key requirements_txt of condainer.yml"
        )
    return path


def _versions(mksquashfs: Mksquashfs, installer: Installer | None) -> dict[str, str]:
    return {
        "mksquashfs": ".".join(map(str, mksquashfs.version)),
        "python": sys.version.split()[0],
        **({"installer": installer.description} if installer else {}),
    }
