"""The stages that fill the prefix: solve, install, pip, compile, snapshot."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from condainer.pipeline import (
    bytecode,
    editable,
    manifest,
    pip,
    scripts,
    snapshot,
    space,
    tree,
)
from condainer.pipeline.events import Stage
from condainer.pipeline.packages import check_names
from condainer.units import human

if TYPE_CHECKING:
    from pathlib import Path

    from condainer.pipeline.context import BuildContext
    from condainer.pipeline.installers.interface import Installer, Solution
    from condainer.pipeline.lockfile import PipPackage
    from condainer.pipeline.overlap import Overlap
    from condainer.pipeline.packages import Package
    from condainer.pipeline.plan import Plan
    from condainer.pipeline.staging import Claim
    from condainer.pipeline.workplace import Workplace

_PIP_TOO_OLD = (
    "this pip is older than 22.2 and does not report what it has installed; the lock file does not "
    "list it, and 'build --locked' will not install it"
)


@dataclass(frozen=True)
class Installed:
    """What is at the prefix.

    Attributes:
        packages: conda's.
        added: pip's, as the lock file lists them.
        described: what the image says about itself.
    """

    packages: tuple[Package, ...]
    added: tuple[PipPackage, ...]
    described: manifest.Manifest


async def solve(context: BuildContext, plan: Plan, installer: Installer) -> Solution:
    """Find the packages to install, and check that there is room for them.

    Args:
        context: of the build.
        plan: what to build.
        installer: what solves.

    Raises:
        BuildError: If there is no solution.
        NoSpaceError: If the packages do not fit.
    """
    async with context.working(Stage.SOLVE, 1) as (stage, workplace):
        solution = await installer.solve(plan.request, workplace)
        check_names(solution.packages)
        stage.detail = f"{len(solution.packages)} packages"
        stage.detail += f", {human(solution.to_fetch)} to fetch" if solution.to_fetch else ""
    _require_space(context, plan, solution)
    return solution


async def fill(
    context: BuildContext,
    plan: Plan,
    solution: Solution,
    installer: Installer,
    claim: Claim,
    overlap: Overlap | None = None,
) -> Installed:
    """Make the environment at the prefix.

    Args:
        context: of the build.
        plan: what to build.
        solution: the packages.
        installer: what installs them.
        claim: on the prefix; checked between the stages.
        overlap: is told of packages that can be compressed already; None if none is.

    Raises:
        CondainerError: If a stage fails.
    """
    packages = await _install(context, plan, solution, installer, claim, overlap)
    added = await _add_with_pip(context, plan, claim.temporary)
    await _compile(context, plan)
    claim.check()
    described = await describe(context, plan, packages)
    claim.check()  # scripts of packages and pip have run since
    await anyio.to_thread.run_sync(tree.close, context.project.prefix)
    return Installed(packages, added, described)


async def describe(
    context: BuildContext, plan: Plan, packages: tuple[Package, ...]
) -> manifest.Manifest:
    """Take the snapshot of the activation, and write it and the manifest into the prefix.

    Args:
        context: of the build.
        plan: what to build.
        packages: conda's packages at the prefix.

    Raises:
        BuildError: If a package or script has left something there that cannot be read.
    """
    prefix = context.project.prefix
    async with context.working(Stage.SNAPSHOT, 1) as (_, workplace):
        for reserved in snapshot.reserved(plan.variables):
            context.note(f"variables: activation sets {reserved} itself; that line is ignored")
        if plan.variables:
            snapshot.write_state(prefix, plan.variables)
        added = await anyio.to_thread.run_sync(pip.list_installed, prefix) if packages else []
        captured = await snapshot.capture(prefix, plan.name, plan.variables, workplace)
        for trouble in captured.troubles:
            context.note(f"the activation script {trouble}")
        described = manifest.Manifest(
            environment=plan.environment,
            requirements=plan.requirements_text,
            packages=packages,
            pip=tuple(added),
            tools=plan.tools,
            snapshot=captured.snapshot,
            startup=plan.startup,
        )
        with context.watching(space.Destination(prefix, "the manifest", 0)):
            manifest.write(context.project, described, plan.epoch)
    return described


def _require_space(context: BuildContext, plan: Plan, solution: Solution) -> None:
    """Check that there is room for what is to be installed, before anything is fetched."""
    prefix = context.project.prefix
    where = prefix.parent if prefix in plan.options.idle else prefix
    total = sum(package.size for package in solution.packages)
    # Nothing can be a hard link into a cache that is on another file system.
    apart = solution.cache and not space.on_one_file_system(solution.cache, where)
    needed = total * space.UNPACKED_RATIO
    least = total if apart else solution.to_fetch
    space.require(space.Destination(where, "the installation", needed), least)


async def _install(
    context: BuildContext,
    plan: Plan,
    solution: Solution,
    installer: Installer,
    claim: Claim,
    overlap: Overlap | None,
) -> tuple[Package, ...]:
    prefix = context.project.prefix
    needed = sum(package.size for package in solution.packages) * space.UNPACKED_RATIO
    async with context.working(Stage.INSTALL) as (_, workplace):
        destination = space.Destination(prefix, "the installation", needed)
        with context.watching(destination, solution.cache):
            claim.check()
            own = replace(workplace, on_ready=overlap.ready) if overlap else workplace
            ran = await installer.install(plan.request, solution, own)
            if overlap is not None:
                overlap.complete(has_run_scripts=bool(ran))
            claim.check()
            done = ran if installer.vouches_for_scripts else frozenset()
            left = [package for package in solution.packages if package.name not in done]
            if scripts.has_post_link(prefix, left):
                activated = await _activated(context, plan, workplace)
                await scripts.run_post_link(prefix, left, activated)
            claim.check()
        for message in scripts.take_messages(prefix):
            context.note(message)
    await anyio.to_thread.run_sync(manifest.clean_records, prefix, plan.epoch)
    return await anyio.to_thread.run_sync(manifest.installed_packages, prefix, solution.packages)


async def _add_with_pip(
    context: BuildContext, plan: Plan, temporary: Path
) -> tuple[PipPackage, ...]:
    """Install the `pip:` list, then requirements.txt; or what the lock file lists of both."""
    runs = _pip_runs(context, plan, temporary)
    if not runs:
        return ()
    added: dict[str, PipPackage] = {}
    async with context.working(Stage.PIP, 1) as (stage, workplace):
        activated = await _activated(context, plan, workplace)
        for run in runs:
            packages = await _run_pip(context, plan, run, temporary, activated)
            added.update((package.name.lower(), package) for package in packages)
        editable.check(context.project.prefix)
        stage.detail = f"{len(added)} packages" if added else ""
    warning = editable.note(added.values())
    if warning:
        context.note(warning)
    return tuple(added.values())


def _pip_runs(context: BuildContext, plan: Plan, temporary: Path) -> list[pip.Requirements]:
    """The requirements files that pip is run with, one after the other."""
    project = context.project
    base = project.environment_file.parent
    if plan.lock:
        groups = pip.apart(package.requirement for package in plan.lock.pip)
        source = project.lock_file
    else:
        groups, source = [list(plan.pip_lines)], project.environment_file
    runs = [
        pip.Requirements(
            pip.write_requirements(lines, base, temporary), base, f"the packages of pip in {source}"
        )
        for lines in groups
        if lines
    ]
    if plan.requirements and not plan.lock:
        path = plan.requirements
        runs.append(pip.Requirements(path, path.parent, str(path)))
    return runs


async def _run_pip(
    context: BuildContext,
    plan: Plan,
    run: pip.Requirements,
    temporary: Path,
    activated: Workplace,
) -> list[PipPackage]:
    """Run pip once; returns what it has installed, as far as it reports that."""
    project = context.project
    file, copied = editable.without(run.file, run.base, temporary, activated.environment)
    if copied:
        context.note(f"{run.origin}: a copy is installed instead of -e: {', '.join(copied)}")
    logins: list[Path] = []
    if plan.lock:  # which holds no passwords
        base = project.environment_file.parent
        logins.append(pip.write_requirements(plan.pip_lines, base, temporary))
        logins += [plan.requirements] if plan.requirements else []
    with context.watching(space.Destination(project.prefix, "what pip installs", 0)):
        packages = await pip.install(
            project.prefix,
            replace(run, file=file),
            logins,
            locked=plan.lock is not None,
            offline=plan.options.offline,
            workplace=activated,
        )
    if packages is None:
        context.note(f"{run.origin}: {_PIP_TOO_OLD}")
    return packages or []


async def _compile(context: BuildContext, plan: Plan) -> None:
    prefix = context.project.prefix
    async with context.working(Stage.COMPILE) as (stage, workplace):
        activated = await _activated(context, plan, workplace)
        python = await bytecode.find_interpreter(prefix, activated)
        if python is None:
            stage.detail = "no Python to compile for"
            return
        sources = await anyio.to_thread.run_sync(bytecode.uncompiled, python, plan.epoch.latest)
        with context.watching(space.Destination(prefix, "compiled modules", 0)):
            compiled = await bytecode.compile_all(python, sources, activated)
        stage.detail = f"{compiled} modules"


async def _activated(context: BuildContext, plan: Plan, workplace: Workplace) -> Workplace:
    """A workplace whose programs run as in the environment, as far as that is there already."""
    return await snapshot.activate(context.project.prefix, plan.name, plan.variables, workplace)
