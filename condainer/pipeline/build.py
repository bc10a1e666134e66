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
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

import anyio
import anyio.to_thread

from condainer import environment as environment_module
from condainer import shell, tools, yamlfile
from condainer.activation import FOREIGN
from condainer.errors import BuildError, CondainerError
from condainer.pipeline import (
    bytecode,
    installers,
    lockfile,
    manifest,
    pip,
    scripts,
    snapshot,
    space,
    squash,
    staging,
    tree,
)
from condainer.pipeline.events import (
    Built,
    Emit,
    Note,
    Output,
    Progress,
    Stage,
    StageFinished,
    StageStarted,
    Unit,
)
from condainer.pipeline.installers import Installer, Package, Request, Workplace
from condainer.units import human

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from condainer.environment import Environment
    from condainer.pipeline.lockfile import Lock, PipPackage
    from condainer.pipeline.schedule import Budget
    from condainer.project import Project
    from condainer.tools import Mksquashfs

_UNITS = {Stage.SQUASH: Unit.BLOCKS, Stage.COMPILE: Unit.FILES}
_LEAST_COMPRESSION = 10
"""No environment shrinks more than that: with less room than a tenth there is no use in trying."""


@dataclass(frozen=True)
class Options:
    """What the command line asks of a build.

    Attributes:
        force: replace an image that is there.
        locked: install what the lock file lists, instead of solving.
        installer: name or path; empty means the first there is.
        dry_run: only check and solve.
        umask: for the files beside the image.
    """

    force: bool = False
    locked: bool = False
    installer: str = ""
    dry_run: bool = False
    umask: int = 0o022


@dataclass(frozen=True)
class Plan:
    """What the check has found out.

    Attributes:
        environment: environment.yml; None where conda installs nothing.
        requirements: requirements.txt, where there is one.
        lock: the lock file, where the build is from it.
        installer: what installs; None where conda installs nothing.
        request: what is to be installed.
        mksquashfs: what compresses.
        compression: how.
    """

    environment: Environment | None
    requirements: Path | None
    lock: Lock | None
    installer: Installer | None
    request: Request
    mksquashfs: Mksquashfs
    compression: squash.Compression

    @property
    def pip_lines(self) -> tuple[str, ...]:
        """The `pip:` list of environment.yml."""
        return self.environment.pip if self.environment else ()


@dataclass
class Build:
    """One build while it runs.

    Args:
        project: what is built.
        options: how.
        budget: the processors of the whole command.
        emit: takes the events.
    """

    project: Project
    options: Options
    budget: Budget
    emit: Emit
    _lock_descriptor: int = -1
    _seconds: list[tuple[Stage, float]] = field(default_factory=list)

    async def run(self) -> None:
        """Build the image.

        Raises:
            CondainerError: says what failed; nothing of this build is left but its log.
        """
        try:
            with self._log() as log:
                self._log_file = log
                async with self.budget.build():
                    await self._run()
        except OSError as error:
            raise self._explained(error) from error

    async def _run(self) -> None:
        async with self._stage(Stage.CHECK) as stage:
            plan = await anyio.to_thread.run_sync(self._check)
            stage.detail = plan.installer.description if plan.installer else "nothing to install"
        if plan.installer is None or self.options.dry_run:
            await self._build(plan)
            return
        with staging.claim(self.project) as self._lock_descriptor:
            await self._build(plan)

    async def _build(self, plan: Plan) -> None:
        packages: tuple[Package, ...] = ()
        added: list[PipPackage] = []
        if plan.installer is not None:
            packages = await self._install(plan, plan.installer)
            if self.options.dry_run:
                return
            added = await self._pip(plan)
            await self._compile()
        described = await self._snapshot(plan, packages)
        part = self.project.directory / f".{self.project.image.name}.{os.getpid()}.part"
        try:
            counted = await self._squash(plan, part)
            async with self._stage(Stage.VERIFY):
                await anyio.to_thread.run_sync(squash.verify, part, counted)
            size = part.stat().st_size
            async with self._stage(Stage.PUBLISH):
                await self._publish(part, described, added)
        finally:
            part.unlink(missing_ok=True)
        self.emit(
            Built(
                project=self.project.label,
                image=str(self.project.image),
                image_bytes=size,
                files=counted.entries,
                tree_bytes=counted.bytes,
                packages=len(packages),
                stages=tuple(self._seconds),
            )
        )

    # The stages

    def _check(self) -> Plan:
        """See that everything is there, before anything is done."""
        project, config = self.project, self.project.config
        conda = not config.non_conda_application
        environment = environment_module.load(project.environment_file) if conda else None
        lock = lockfile.read(project.lock_file) if self.options.locked and conda else None
        if project.image.exists() and not (self.options.force or self.options.dry_run):
            raise BuildError(
                f"the image {project.image} is there already",
                "'condainer build --force' replaces it once the new one is complete",
            )
        if not os.access(project.directory, os.W_OK):
            raise BuildError(f"the project directory {project.directory} is not writable for you")
        staging.check_base_directory(project.prefix.parent)
        if conda:
            staging.check_prefix(project)
        elif not project.prefix.is_dir():
            raise BuildError(
                f"there is nothing at {project.prefix}",
                "install the application there first; build then compresses it",
            )
        mksquashfs = tools.find_mksquashfs()
        request = self._request(environment, lock)
        installer = installers.choose(config, self.options.installer) if conda else None
        if installer is not None:
            installer.check(request)
        return Plan(
            environment=environment,
            requirements=self._requirements(),
            lock=lock,
            installer=installer,
            request=request,
            mksquashfs=mksquashfs,
            compression=squash.choose_compression(config, mksquashfs),
        )

    async def _install(self, plan: Plan, installer: Installer) -> tuple[Package, ...]:
        prefix = self.project.prefix
        async with self._stage(Stage.SOLVE) as stage, self._workplace(Stage.SOLVE, 1) as workplace:
            solution = await installer.solve(plan.request, workplace)
            total = sum(package.size for package in solution.packages)
            stage.detail = f"{len(solution.packages)} packages"
            stage.detail += f", {human(total)} to fetch" if total else ""
        if self.options.dry_run:
            for package in solution.packages:
                self.emit(Note(self.project.label, f"would install {package.stem}"))
            return solution.packages
        needed = total * space.UNPACKED_RATIO
        space.require(space.Place(prefix, "the installation", needed), total)
        async with self._stage(Stage.INSTALL), self._workplace(Stage.INSTALL) as workplace:
            with self._watching(space.Place(prefix, "the installation", needed)):
                await installer.install(plan.request, solution, workplace)
                prefix.chmod(0o755)
                if not installer.runs_link_scripts:
                    await scripts.run_post_link(prefix, solution.packages, workplace)
            for message in scripts.take_messages(prefix):
                self.emit(Note(self.project.label, message))
        return manifest.installed_packages(prefix, solution.packages)

    async def _pip(self, plan: Plan) -> list[PipPackage]:
        """The `pip:` list, then requirements.txt; or what the lock file says of both."""
        project = self.project
        added: dict[str, PipPackage] = {}
        with tempfile.TemporaryDirectory(prefix="condainer-") as directory:
            runs: list[tuple[Path, Path]] = []
            lines = [p.requirement for p in plan.lock.pip] if plan.lock else plan.pip_lines
            if lines:
                file = pip.write_requirements(lines, Path(directory))
                runs.append((file, project.environment_file.parent))
            if plan.requirements and not plan.lock:
                runs.append((plan.requirements, plan.requirements.parent))
            if not runs:
                return []
            async with self._stage(Stage.PIP) as stage, self._workplace(Stage.PIP, 1) as workplace:
                for file, cwd in runs:
                    with self._watching(space.Place(project.prefix, "what pip installs", 0)):
                        packages = await pip.install(
                            project.prefix,
                            file,
                            cwd=cwd,
                            locked=plan.lock is not None,
                            workplace=workplace,
                        )
                    added.update((package.name.lower(), package) for package in packages)
                stage.detail = f"{len(added)} packages" if added else ""
        return list(added.values())

    async def _compile(self) -> None:
        prefix = self.project.prefix
        async with (
            self._stage(Stage.COMPILE) as stage,
            self._workplace(Stage.COMPILE) as workplace,
        ):
            python = await bytecode.find_interpreter(prefix, workplace)
            if python is None:
                stage.detail = "no Python in the environment"
                return
            sources = await anyio.to_thread.run_sync(bytecode.uncompiled, prefix, python)
            with self._watching(space.Place(prefix, "compiled modules", 0)):
                compiled = await bytecode.compile_all(python, sources, workplace)
            stage.detail = f"{compiled} modules"

    async def _snapshot(self, plan: Plan, packages: tuple[Package, ...]) -> manifest.Manifest:
        project = self.project
        environment = plan.environment
        name = project.config.user_env_name or (environment.name if environment else "")
        variables = environment.variables if environment else ()
        async with self._stage(Stage.SNAPSHOT), self._workplace(Stage.SNAPSHOT, 1) as workplace:
            if variables:
                snapshot.write_state(project.prefix, variables)
            described = manifest.Manifest(
                environment=environment,
                requirements=yamlfile.read_text(plan.requirements) if plan.requirements else None,
                packages=packages,
                pip=tuple(await pip.list_installed(project.prefix, workplace) if packages else ()),
                tools={
                    "mksquashfs": ".".join(map(str, plan.mksquashfs.version)),
                    "python": sys.version.split()[0],
                    **({"installer": plan.installer.description} if plan.installer else {}),
                },
                snapshot=await snapshot.capture(
                    project.prefix, name or project.config.basename, variables, workplace
                ),
            )
            with self._watching(space.Place(project.prefix, "the manifest", 0)):
                manifest.write(project, described)
        return described

    async def _squash(self, plan: Plan, part: Path) -> tree.Tree:
        prefix = self.project.prefix
        async with self._stage(Stage.SQUASH) as stage:
            counted = await anyio.to_thread.run_sync(tree.survey, prefix)
            place = space.Place(part.parent, "the image", counted.bytes // space.IMAGE_RATIO)
            space.require(place, counted.bytes // _LEAST_COMPRESSION)
            with self._watching(place):
                async with self._workplace(Stage.SQUASH) as workplace:
                    await squash.write(plan.mksquashfs, prefix, part, plan.compression, workplace)
            stage.detail = f"{plan.compression.algorithm}, {human(part.stat().st_size)}"
        return counted

    async def _publish(
        self, part: Path, described: manifest.Manifest, added: list[PipPackage]
    ) -> None:
        """Put everything in its place by rename, the image last."""
        project = self.project
        _sync(part)
        texts = {
            project.activate: shell.activate_script(
                described.snapshot, self._own_variables(described), _command()
            ),
            project.deactivate: shell.deactivate_script(),
        }
        if described.packages:
            texts[project.lock_file] = lockfile.render(described.packages, added)
        mode = 0o666 & ~self.options.umask
        for path, text in texts.items():
            _replace(path, text, mode)
        part.chmod(mode)
        part.rename(project.image)

    # What the stages share

    def _own_variables(self, described: manifest.Manifest) -> list[tuple[str, str]]:
        own = dict(snapshot.package_variables(self.project.prefix))
        if described.environment:
            own.update(described.environment.variables)
        return list(own.items())

    def _request(self, environment: Environment | None, lock: Lock | None) -> Request:
        config = self.project.config
        specs = environment.specs if environment else ()
        wants_pip = bool(environment and environment.pip) or self._requirements() is not None
        if wants_pip and not lock and not any(_is_pip(spec) for spec in specs):
            specs = (*specs, "pip")  # as conda does where it is not listed
        cache = config.package_cache
        return Request(
            specs=specs,
            channels=environment.channels if environment else (),
            override_channels=environment.override_channels if environment else False,
            locked=lock.urls if lock else (),
            prefix=self.project.prefix,
            package_cache=Path(cache).expanduser() if cache else None,
        )

    def _requirements(self) -> Path | None:
        path = self.project.requirements_file
        if path.exists() and not self.project.config.non_conda_application:
            return path
        return None

    @contextlib.asynccontextmanager
    async def _stage(self, stage: Stage) -> AsyncIterator[_Detail]:
        self.emit(StageStarted(self.project.label, stage))
        detail = _Detail()
        start = time.monotonic()
        yield detail
        seconds = time.monotonic() - start
        self._seconds.append((stage, seconds))
        self.emit(StageFinished(self.project.label, stage, seconds, detail.detail))

    @contextlib.asynccontextmanager
    async def _workplace(
        self, stage: Stage, at_most: int | None = None
    ) -> AsyncIterator[Workplace]:
        label = self.project.label
        unit = _UNITS.get(stage, Unit.PACKAGES)

        def tell(
            done: int, total: int | None, text: str, *, bytes_done: int = 0, bytes_total: int = 0
        ) -> None:
            self.emit(Progress(label, stage, done, total, unit, text, bytes_done, bytes_total))

        async with self.budget.take(at_most) as processors:
            yield Workplace(
                processors=processors,
                on_line=self._output,
                on_progress=tell,
                environment=self._variables(),
                pass_fds=[self._lock_descriptor] if self._lock_descriptor >= 0 else [],
            )

    def _output(self, line: str) -> None:
        self._log_file.write(line + "\n")
        self.emit(Output(self.project.label, line))

    def _variables(self) -> dict[str, str]:
        """What programs run with: nothing of another environment's reaches into this one."""
        variables = {
            name: value
            for name, value in os.environ.items()
            if name not in FOREIGN and name not in {"CONDA_PREFIX", "CONDA_DEFAULT_ENV"}
        }
        variables["PYTHONNOUSERSITE"] = "1"
        for name in ("PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_REQUIRE_VIRTUALENV"):
            variables.pop(name, None)
        if self.project.config.package_cache:
            cache = Path(self.project.config.package_cache).expanduser()
            variables["CONDA_PKGS_DIRS"] = str(cache)
        return variables

    @contextlib.contextmanager
    def _watching(self, place: space.Place) -> Iterator[None]:
        """Turn an error that means a full file system into one that says which."""
        try:
            yield
        except (OSError, CondainerError) as error:
            full = space.explain(
                error, [place, space.Place(Path(tempfile.gettempdir()), "temporary files", 0)]
            )
            if full is None:
                raise
            raise full from error

    @contextlib.contextmanager
    def _log(self) -> Iterator[IO[str]]:
        """The build log: takes the place of the last one when the build has ended or failed."""
        project = self.project
        part = project.directory / f".{project.build_log.name}.{os.getpid()}.part"
        try:
            with part.open("w", encoding="utf-8", errors="replace", buffering=1) as log:
                part.chmod(0o666 & ~self.options.umask)
                yield log
            if self.options.dry_run:
                part.unlink()
                return
        except CondainerError as error:
            part.replace(project.build_log)
            raise type(error)(
                error.message, error.hint or f"the log is {project.build_log}"
            ) from error
        else:
            part.replace(project.build_log)
        finally:
            part.unlink(missing_ok=True)

    def _explained(self, error: OSError) -> CondainerError:
        full = space.explain(error, [space.Place(self.project.directory, "the project", 0)])
        where = f" {error.filename}" if error.filename else ""
        return full or BuildError(f"{error.strerror or error}{where}")


@dataclass
class _Detail:
    """What a stage has to say when it ends."""

    detail: str = ""


def _is_pip(spec: str) -> bool:
    name = spec.rpartition("::")[2]
    return name == "pip" or (name.startswith("pip") and name[3] in " =<>!~[")


def _command() -> str:
    """The `condainer` executable that `activate` is to use."""
    own = Path(sys.argv[0]).resolve()
    if own.name in {"condainer", "cnd"}:
        return str(own)
    return shutil.which("condainer") or str(Path(sys.executable).parent / "condainer")


def _replace(path: Path, text: str, mode: int) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.chmod(mode)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Have the image on disk before its name is: a crash must not leave a name without content."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
