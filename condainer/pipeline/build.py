"""The build of one project: its stages in order, and what is left behind when one fails.

The environment is installed in the staging directory, compressed into a file with another name,
checked, and only then renamed to where the image belongs. Until that rename nothing that was there
before has been touched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from condainer.errors import BuildError
from condainer.pipeline import (
    bytecode,
    editable,
    epoch,
    lockfile,
    manifest,
    parts,
    pip,
    scripts,
    snapshot,
    space,
    squash,
    staging,
    tree,
)
from condainer.pipeline.context import BuildContext
from condainer.pipeline.events import Built, Emit, Note, Stage
from condainer.pipeline.installers import choice
from condainer.pipeline.installers.interface import Installer, Request
from condainer.pipeline.overlap import Overlap
from condainer.pipeline.packages import Package, check_names
from condainer.pipeline.streaming import Streaming
from condainer.project import environment as environment_module
from condainer.project import image as image_module
from condainer.project.config import CONFIG_NAME
from condainer.running import shell
from condainer.startup import listing
from condainer.system import files, tools, trust
from condainer.units import human

if TYPE_CHECKING:
    from collections.abc import Sequence

    from condainer.pipeline.epoch import Epoch
    from condainer.pipeline.installers.interface import Solution
    from condainer.pipeline.lockfile import Lock, PipPackage
    from condainer.pipeline.parts import Part
    from condainer.pipeline.schedule import Budget
    from condainer.pipeline.staging import Claim
    from condainer.pipeline.workplace import Workplace
    from condainer.project.environment import Environment
    from condainer.project.project import Project
    from condainer.system.tools import Mksquashfs

_LEAST_COMPRESSION = 10
"""No environment shrinks more than that: with less room than a tenth there is no use in trying."""

_PIP_TOO_OLD = (
    "this pip is older than 22.2 and does not tell what it has installed; the lock file leaves it "
    "out, and so will 'build --locked'"
)


@dataclass(frozen=True)
class BuildOptions:
    """What the command line asks of a build.

    Attributes:
        force: replace an image that is there.
        locked: install what the lock file lists, instead of solving.
        offline: ask for nothing over the network.
        installer: name or path; empty means the first there is.
        dry_run: only check and solve.
        overlap: compress while it installs, where that can be done.
        repack: lay out the image that is there anew, and install nothing.
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
        """The permissions of the files beside the image: nobody else is to write to them."""
        return 0o644 & ~self.umask


@dataclass(frozen=True)
class Plan:
    """What the check has found out.

    Attributes:
        environment: environment.yml; None where conda installs nothing.
        requirements: requirements.txt, where there is one.
        requirements_text: what it holds.
        lock: the lock file, where the build is from it.
        installer: what installs; None where conda installs nothing.
        image: where the image is written, should the project's be a link.
        request: what is to be installed.
        mksquashfs: what compresses.
        compression: how.
        tools: name to version of what takes part.
        epoch: which times the image tells.
        created: the time that the lock file tells, in seconds.
        startup: paths of what a program reads first, in that order.
    """

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

    @property
    def pip_lines(self) -> tuple[str, ...]:
        """The `pip:` list of environment.yml."""
        return self.environment.pip if self.environment else ()


@dataclass(frozen=True)
class Installed:
    """What is at the prefix.

    Attributes:
        packages: conda's.
        added: pip's, as the lock file is to list them.
        described: what the image says of itself.
    """

    packages: tuple[Package, ...]
    added: tuple[PipPackage, ...]
    described: manifest.Manifest


@dataclass
class Build:
    """One build while it runs.

    Args:
        project: what is built.
        label: how messages name it.
        options: how.
        budget: the processors of the whole command.
        emit: takes the events.
    """

    project: Project
    label: str
    options: BuildOptions
    budget: Budget
    emit: Emit

    def __post_init__(self) -> None:
        self._context = BuildContext(self.project, self.label, self.budget, self.emit)

    async def run(self) -> None:
        """Build the image.

        Raises:
            CondainerError: says what failed; nothing of this build is left but its log.
        """
        site = self._context
        self._say_whose()
        with site.explaining():
            async with self.budget.build():
                async with site.stage(Stage.CHECK) as stage:
                    # It changes nothing, and may wait long for a program to say its version.
                    plan = await anyio.to_thread.run_sync(self._check, abandon_on_cancel=True)
                    stage.detail = plan.tools.get("installer", "")
                if self.options.dry_run:
                    await self._tell(plan)
                else:
                    with site.log(self.options.mode), site.explaining():
                        await self._run(plan)

    async def _run(self, plan: Plan) -> None:
        project = self.project
        fills = plan.installer is not None or self.options.repack
        hold = staging.claim if fills else staging.borrow
        with hold(project) as held:
            self._context.hold = held
            parts.remove_stale(
                [
                    *(plan.image, project.lock_file, project.build_log),
                    *(project.activate, project.deactivate),
                ]
            )
            await self._build(plan, held)

    async def _tell(self, plan: Plan) -> None:
        """Say what a build would install."""
        if plan.installer is not None:
            solution = await self._solve(plan, plan.installer)
            for package in solution.packages:
                self._note(f"would install {package.stem}")
        self._note(f"would write {self.project.image}")

    async def _build(self, plan: Plan, hold: Claim) -> None:
        source = image_module.fingerprint(plan.image) if self.options.repack else ""
        with parts.writing(plan.image) as part:
            installed, counted = await self._make(plan, hold, part)
            async with (
                self._context.stage(Stage.VERIFY),
                self._context.workplace(Stage.VERIFY, 1) as workplace,
            ):
                await anyio.to_thread.run_sync(squash.verify, part.content, counted)
                if plan.startup:
                    await listing.mark(part, plan.startup, workplace)
            size = part.size
            async with self._context.stage(Stage.PUBLISH):
                if source and image_module.fingerprint(plan.image) != source:  # on another node
                    raise BuildError(
                        f"{plan.image} has been built anew meanwhile", "it stays; repack it again"
                    )
                await self._publish((part, plan.image), installed, plan.created)
        self.emit(
            Built(
                project=self.label,
                image=str(self.project.image),
                image_bytes=size,
                files=counted.entries,
                tree_bytes=counted.bytes,
                packages=len(installed.packages) if installed else 0,
                stages=tuple(self._context.seconds),
                seconds=self._context.elapsed(),
            )
        )

    async def _make(
        self, plan: Plan, hold: Claim, part: Part
    ) -> tuple[Installed | None, tree.Tree]:
        """Install the environment and compress it, both at once where that can be done.

        Returns:
            what was installed, and what the image holds.
        """
        if self.options.repack:
            return None, await self._squash(plan, part, await self._unpack(plan))
        if plan.installer is None:
            application = Installed((), (), await self._snapshot(plan, ()))
            return application, await self._squash(plan, part, self.project.prefix)
        solution = await self._solve(plan, plan.installer)
        # The order of files is another one, and an image that is the same each time has just one.
        is_worth_it = self.budget.is_enough or plan.epoch.is_fixed
        can_overlap = squash.reads_archives(plan.mksquashfs) and is_worth_it
        if not self.options.overlap or not can_overlap:
            installed = await self._fill(plan, plan.installer, solution, hold)
            return installed, await self._squash(plan, part, self.project.prefix)
        stream = self._stream(plan, solution, part)
        async with stream.running():
            installed = await self._fill(plan, plan.installer, solution, hold, stream.overlap)
            counted = await stream.finish()
        if counted is None:
            self._note(f"compressing all again: {stream.problem}")
            counted = await self._squash(plan, part, self.project.prefix)
        return installed, counted

    async def _fill(
        self,
        plan: Plan,
        installer: Installer,
        solution: Solution,
        hold: Claim,
        overlap: Overlap | None = None,
    ) -> Installed:
        """Make the environment at the prefix."""
        packages = await self._install(plan, installer, solution, hold, overlap)
        added = await self._pip(plan, hold.temporary)
        await self._compile(plan)
        hold.check()
        described = await self._snapshot(plan, packages)
        hold.check()  # scripts of packages and pip have run since
        await anyio.to_thread.run_sync(tree.close, self.project.prefix)
        return Installed(packages, tuple(added), described)

    # The stages

    def _check(self) -> Plan:
        """See that everything is there, before anything is done."""
        project, config = self.project, self.project.config
        image = self._check_places()
        conda = not config.non_conda_application and not self.options.repack
        environment = environment_module.load(project.environment_file) if conda else None
        for warning in environment.warnings if environment else ():
            self._note(warning)
        lock = lockfile.read(project.lock_file) if self.options.locked and conda else None
        if lock:
            editable.check_lock(lock.pip)
        self._context.epoch = epoch.of_build(lock.created if lock else None)
        staging.check_base_directory(project)
        staging.check_unclaimed(project)
        if project.prefix not in self.options.idle:
            fills = conda or self.options.repack
            see = staging.check_prefix if fills else staging.check_application
            see(project)
        mksquashfs = tools.find_mksquashfs()
        levels = squash.REPACK_LEVELS if self.options.repack else squash.DEFAULT_LEVELS
        requirements = self._requirements()
        request = self._request(environment, lock, wants_pip=requirements is not None)
        installer = None
        if conda:
            installer = choice.choose(
                config,
                self.options.installer,
                only_looks=self.options.dry_run,
                on_note=self._note,
            )
            installer.check(request)
        return Plan(
            environment=environment,
            requirements=requirements,
            requirements_text=files.read_text(requirements) if requirements else None,
            lock=lock,
            installer=installer,
            image=image,
            request=request,
            mksquashfs=mksquashfs,
            compression=squash.choose_compression(config, mksquashfs, levels),
            tools={
                "mksquashfs": ".".join(map(str, mksquashfs.version)),
                "python": sys.version.split()[0],
                **({"installer": installer.description} if installer else {}),
            },
            epoch=self._context.epoch,
            startup=listing.read(project.startup_file),
            created=lock.created if lock else self._context.epoch.stamp or int(time.time()),
        )

    def _check_places(self) -> Path:
        """See that whatever a build writes can be put where it belongs; tells where the image."""
        project = self.project
        for path in (project.image, project.lock_file, project.build_log):
            parts.check_replaceable(path)
        if self.options.repack:
            if files.is_absent(project.image):
                raise BuildError(
                    f"there is no image {project.image}", "make one with 'condainer build'"
                )
            image_module.read_manifest(project.image)
        elif not files.is_missing(project.image) and not self.options.force:
            raise BuildError(
                f"the image {project.image} is there already",
                "'condainer build --force' replaces it once the new one is complete",
            )
        for path in (project.activate, project.deactivate):
            parts.check_replaceable(path)
            if not shell.is_ours(path):
                raise BuildError(
                    f"{path} is a file of yours, and build would write one of that name",
                    "move it to another name",
                )
        if not os.access(project.directory, os.W_OK):
            raise BuildError(
                f"the project directory {project.directory} is not writable for you",
                "build in a copy of it, or ask its owner",
            )
        return parts.behind_link(project.image, trust.of_this_user(project))

    async def _unpack(self, plan: Plan) -> Path:
        """Put what is in the image into a directory below the prefix; gives that.

        The prefix itself would get the permissions that the image has.
        """
        prefix, source = self.project.prefix, self.project.image
        top = prefix / "image"
        needed = source.stat().st_size * space.IMAGE_RATIO
        async with (
            self._context.stage(Stage.UNPACK),
            self._context.workplace(Stage.UNPACK) as workplace,
        ):
            with self._context.watching(space.Destination(prefix, "the unpacked image", needed)):
                await squash.unpack(source, top, workplace)
                await anyio.to_thread.run_sync(tree.take_over, top)
                manifest.note_startup(top, plan.startup)
        return top

    async def _solve(self, plan: Plan, installer: Installer) -> Solution:
        async with (
            self._context.stage(Stage.SOLVE) as stage,
            self._context.workplace(Stage.SOLVE, 1) as workplace,
        ):
            solution = await installer.solve(plan.request, workplace)
            check_names(solution.packages)
            stage.detail = f"{len(solution.packages)} packages"
            stage.detail += f", {human(solution.to_fetch)} to fetch" if solution.to_fetch else ""
        self._require_space(solution)
        return solution

    def _require_space(self, solution: Solution) -> None:
        """See that there is room for what is to be installed, before anything is fetched."""
        prefix = self.project.prefix
        where = prefix.parent if prefix in self.options.idle else prefix
        total = sum(package.size for package in solution.packages)
        # Where the cache is known to be on another file system, nothing can be a link to it.
        apart = solution.cache and not space.on_one_file_system(solution.cache, where)
        needed = total * space.UNPACKED_RATIO
        least = total if apart else solution.to_fetch
        space.require(space.Destination(where, "the installation", needed), least)

    async def _install(
        self,
        plan: Plan,
        installer: Installer,
        solution: Solution,
        hold: Claim,
        overlap: Overlap | None,
    ) -> tuple[Package, ...]:
        prefix = self.project.prefix
        needed = sum(package.size for package in solution.packages) * space.UNPACKED_RATIO
        async with (
            self._context.stage(Stage.INSTALL),
            self._context.workplace(Stage.INSTALL) as workplace,
        ):
            place = space.Destination(prefix, "the installation", needed)
            with self._context.watching(place, solution.cache):
                hold.check()
                own = replace(workplace, on_ready=overlap.ready) if overlap else workplace
                ran = await installer.install(plan.request, solution, own)
                if overlap is not None:
                    overlap.complete(has_run_scripts=bool(ran))
                hold.check()
                done = ran if installer.vouches_for_scripts else frozenset()
                left = [package for package in solution.packages if package.name not in done]
                if scripts.has_post_link(prefix, left):
                    activated = await self._activated(plan, workplace)
                    await scripts.run_post_link(prefix, left, activated)
                hold.check()
            for message in scripts.take_messages(prefix):
                self._note(message)
        await anyio.to_thread.run_sync(manifest.clean_records, prefix, plan.epoch)
        return await anyio.to_thread.run_sync(
            manifest.installed_packages, prefix, solution.packages
        )

    async def _pip(self, plan: Plan, temporary: Path) -> list[PipPackage]:
        """The `pip:` list, then requirements.txt; or what the lock file says of both."""
        project = self.project
        added: dict[str, PipPackage] = {}
        runs: list[tuple[Path, Path, str]] = []
        lines = [p.requirement for p in plan.lock.pip] if plan.lock else list(plan.pip_lines)
        source = project.lock_file if plan.lock else project.environment_file
        base = project.environment_file.parent
        for some in pip.apart(lines) if plan.lock else [lines]:
            if some:
                file = pip.write_requirements(some, base, temporary)
                runs.append((file, base, f"the packages of pip in {source}"))
        # A lock file holds no passwords.
        others = [pip.write_requirements(plan.pip_lines, base, temporary)] if plan.lock else []
        others += [plan.requirements] if plan.lock and plan.requirements else []
        if plan.requirements and not plan.lock:
            runs.append((plan.requirements, plan.requirements.parent, str(plan.requirements)))
        if not runs:
            return []
        async with (
            self._context.stage(Stage.PIP) as stage,
            self._context.workplace(Stage.PIP, 1) as workplace,
        ):
            activated = await self._activated(plan, workplace)
            for listed, cwd, origin in runs:
                file, copied = editable.without(listed, cwd, temporary, activated.environment)
                if copied:
                    self._note(f"{origin}: a copy is installed instead of -e: {', '.join(copied)}")
                with self._context.watching(
                    space.Destination(project.prefix, "what pip installs", 0)
                ):
                    packages = await pip.install(
                        project.prefix,
                        [file, *others],
                        origin=origin,
                        cwd=cwd,
                        locked=plan.lock is not None,
                        offline=self.options.offline,
                        workplace=activated,
                    )
                if packages is None:
                    self._note(f"{origin}: {_PIP_TOO_OLD}")
                added.update((package.name.lower(), package) for package in packages or ())
            editable.check(project.prefix)
            stage.detail = f"{len(added)} packages" if added else ""
        warning = editable.note(added.values())
        if warning:
            self._note(warning)
        return list(added.values())

    async def _compile(self, plan: Plan) -> None:
        prefix = self.project.prefix
        async with (
            self._context.stage(Stage.COMPILE) as stage,
            self._context.workplace(Stage.COMPILE) as workplace,
        ):
            activated = await self._activated(plan, workplace)
            python = await bytecode.find_interpreter(prefix, activated)
            if python is None:
                stage.detail = "no Python to compile for"
                return
            sources = await anyio.to_thread.run_sync(bytecode.uncompiled, python, plan.epoch.latest)
            with self._context.watching(space.Destination(prefix, "compiled modules", 0)):
                compiled = await bytecode.compile_all(python, sources, activated)
            stage.detail = f"{compiled} modules"

    async def _snapshot(self, plan: Plan, packages: tuple[Package, ...]) -> manifest.Manifest:
        project, environment = self.project, plan.environment
        name, variables = self._identity(plan)
        async with (
            self._context.stage(Stage.SNAPSHOT),
            self._context.workplace(Stage.SNAPSHOT, 1) as workplace,
        ):
            for reserved in snapshot.reserved(variables):
                self._note(f"variables: activation sets {reserved} itself; that line is left out")
            if variables:
                snapshot.write_state(project.prefix, variables)
            added = (
                await anyio.to_thread.run_sync(pip.list_installed, project.prefix)
                if packages
                else []
            )
            captured = await snapshot.capture(project.prefix, name, variables, workplace)
            for trouble in captured.troubles:
                self._note(f"the activation script {trouble}")
            described = manifest.Manifest(
                environment=environment,
                requirements=plan.requirements_text,
                packages=packages,
                pip=tuple(added),
                tools=plan.tools,
                snapshot=captured.snapshot,
                startup=plan.startup,
            )
            with self._context.watching(space.Destination(project.prefix, "the manifest", 0)):
                manifest.write(project, described, plan.epoch)
        return described

    async def _squash(self, plan: Plan, part: Part, source: Path) -> tree.Tree:
        """Compress the finished environment, which is in a directory."""
        async with self._context.stage(Stage.SQUASH) as stage:
            counted = await anyio.to_thread.run_sync(tree.survey, source)
            place = self._place_of_image(part, counted.bytes, counted.bytes // space.IMAGE_RATIO)
            with self._context.watching(place):
                async with self._context.workplace(Stage.SQUASH) as workplace:
                    order = listing.write_order(plan.startup, source, workplace.temporary)
                    await squash.write(
                        *(plan.mksquashfs, source, part, plan.compression, workplace), order=order
                    )
            stage.detail = f"{plan.compression.algorithm}, {human(part.size)}"
        return counted

    def _stream(self, plan: Plan, solution: Solution, part: Part) -> Streaming:
        """Have the environment compressed as far as it is there already."""
        fetched = sum(package.size for package in solution.packages)
        place = self._place_of_image(part, fetched * space.UNPACKED_RATIO, fetched)
        workplace = self._context.beside(Stage.SQUASH)
        block = plan.compression.block_size
        reader, writer = os.pipe()
        installed = anyio.Event()

        async def write() -> None:
            async with self._context.stage(Stage.SQUASH) as stage:
                with self._context.watching(place):
                    await squash.write(
                        *(plan.mksquashfs, reader, part, plan.compression, workplace),
                        aside=installed,
                    )
                stage.detail = f"{plan.compression.algorithm}, {human(part.size)}"

        return Streaming(
            Overlap(
                self.project.prefix,
                solution.packages,
                plan.epoch,
                plan.startup,
                writer,
                lambda done: workplace.on_progress(done // block, None, ""),
                installed.set,
            ),
            write,
        )

    def _place_of_image(self, part: Part, unpacked: int, expected: int) -> space.Destination:
        """Where an image is written; sees that there may be room for it."""
        place = space.Destination(part.path.parent, "the image", expected)
        space.require(place, unpacked // _LEAST_COMPRESSION)
        return place

    async def _publish(
        self, image: tuple[Part, Path], installed: Installed | None, created: int
    ) -> None:
        """Put everything in its place by rename, last the image: from its part to its name."""
        # On disk before its name is: a crash must not leave a name without content.
        await anyio.to_thread.run_sync(os.fsync, image[0].descriptor)
        mode = self.options.mode
        if installed is None:
            parts.publish({}, mode, image)
            return
        project, described = self.project, installed.described
        texts = {
            project.activate: shell.activate_script(
                *(described.snapshot, self._own_variables(described), _command()),
                *snapshot.for_shells(project.prefix),
            ),
            project.deactivate: shell.deactivate_script(),
        }
        if described.packages:
            texts[project.lock_file] = lockfile.render(described.packages, installed.added, created)
        parts.publish(texts, mode, image)

    # What the stages share

    def _identity(self, plan: Plan) -> tuple[str, Sequence[tuple[str, str]]]:
        """The name that the prompt shows, and the variables of environment.yml."""
        environment = plan.environment
        name = self.project.config.user_env_name or (environment.name if environment else "")
        return name or self.project.prefix.name, environment.variables if environment else ()

    async def _activated(self, plan: Plan, workplace: Workplace) -> Workplace:
        """Where programs run as in the environment, as far as that is there."""
        return await snapshot.activate(self.project.prefix, *self._identity(plan), workplace)

    def _note(self, text: str) -> None:
        self.emit(Note(self.label, text))

    def _say_whose(self) -> None:
        """Say that a project is another user's, before anything of it is run."""
        project = self.project
        if self.options.dry_run or self.options.repack:
            return
        places = (project.directory, project.directory / CONFIG_NAME, project.environment_file)
        for path in (*places, project.requirements_file):
            with contextlib.suppress(OSError):
                owner = path.stat().st_uid
                if owner not in {os.getuid(), 0}:
                    who = trust.user_name(owner)
                    self._note(f"{path} belongs to {who}: this build runs, as you, what it names")
                    return

    def _own_variables(self, described: manifest.Manifest) -> list[tuple[str, str]]:
        variables = described.environment.variables if described.environment else ()
        return snapshot.own_variables(self.project.prefix, variables)

    def _request(
        self, environment: Environment | None, lock: Lock | None, *, wants_pip: bool
    ) -> Request:
        config = self.project.config
        specs = environment.specs if environment else ()
        wants_pip = wants_pip or bool(environment and environment.pip)
        if wants_pip and not lock and not any(map(environment_module.names_pip, specs)):
            specs = (*specs, "pip")  # as conda does where it is not listed
        cache = config.package_cache
        return Request(
            specs=specs,
            channels=environment.channels if environment else (),
            locked=lock.packages if lock else (),
            prefix=self.project.prefix,
            package_cache=Path(cache) if cache else None,
            channel_priority=config.channel_priority,
            offline=self.options.offline,
        )

    def _requirements(self) -> Path | None:
        path = self.project.requirements_file
        if self.project.config.non_conda_application or not path.exists():
            return None
        if path.is_dir():
            raise BuildError(
                f"{path} is a directory", "change the key requirements_txt of condainer.yml"
            )
        return path


def _command() -> str:
    """The `condainer` executable that `activate` is to use."""
    own = Path(sys.argv[0]).resolve()
    if own.name in {"condainer", "cnd"}:
        return str(own)
    return shutil.which("condainer") or str(Path(sys.executable).parent / "condainer")
