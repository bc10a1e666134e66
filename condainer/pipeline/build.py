"""Builds the image of one project: runs the stages in order.

The environment is installed at the prefix and compressed into a file with another name. That file
is checked, and then renamed to the image. Until the rename, a build changes nothing that existed
before, so a build that fails leaves the old image as it was.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import anyio.to_thread

from condainer.errors import BuildError
from condainer.pipeline import filling, imaging, lockfile, parts, snapshot, squash, staging
from condainer.pipeline.context import BuildContext
from condainer.pipeline.events import Built, Emit, Stage
from condainer.pipeline.filling import Installed
from condainer.pipeline.plan import BuildOptions, Plan, make_plan, note_foreign_owner
from condainer.project import image as image_module
from condainer.running import shell
from condainer.startup import listing

if TYPE_CHECKING:
    from condainer.pipeline.parts import Part
    from condainer.pipeline.schedule import Budget
    from condainer.pipeline.staging import Claim
    from condainer.pipeline.tree import Tree
    from condainer.project.project import Project


@dataclass
class Build:
    """One run of the pipeline, for one project.

    Args:
        project: what is built.
        label: how messages name the project.
        options: what the command line asks for.
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
            CondainerError: If the build fails; it leaves nothing behind but its log.
        """
        context, options = self._context, self.options
        note_foreign_owner(context, options)
        with context.explaining():
            async with self.budget.build():
                plan = await self._check()
                if options.dry_run:
                    await self._tell(plan)
                    return
                with context.log(options.mode), context.explaining():
                    await self._run(plan)

    async def _check(self) -> Plan:
        async with self._context.stage(Stage.CHECK) as stage:
            # It changes nothing, and may wait long for a program to say its version.
            plan = await anyio.to_thread.run_sync(
                make_plan, self._context, self.options, abandon_on_cancel=True
            )
            stage.detail = plan.tools.get("installer", "")
        return plan

    async def _tell(self, plan: Plan) -> None:
        """Say what a build would install."""
        if plan.installer is not None:
            solution = await filling.solve(self._context, plan, plan.installer)
            for package in solution.packages:
                self._context.note(f"would install {package.stem}")
        self._context.note(f"would write {self.project.image}")

    async def _run(self, plan: Plan) -> None:
        project = self.project
        fills = plan.installer is not None or self.options.repack
        claiming = staging.claim if fills else staging.borrow
        with claiming(project) as claim:
            self._context.claim = claim
            parts.remove_stale(
                [
                    *(plan.image, project.lock_file, project.build_log),
                    *(project.activate, project.deactivate),
                ]
            )
            await self._build(plan, claim)

    async def _build(self, plan: Plan, claim: Claim) -> None:
        source = image_module.fingerprint(plan.image) if self.options.repack else ""
        with parts.writing(plan.image) as part:
            installed, counted = await self._make(plan, claim, part)
            await self._verify(plan, part, counted)
            size = part.size
            async with self._context.stage(Stage.PUBLISH):
                if source and image_module.fingerprint(plan.image) != source:
                    raise BuildError(
                        f"{plan.image} was built again meanwhile, maybe on another node",
                        "it stays as it is; repack it again",
                    )
                await self._publish((part, plan.image), installed, plan.created)
        self._report(size, counted, len(installed.packages) if installed else 0)

    async def _make(self, plan: Plan, claim: Claim, part: Part) -> tuple[Installed | None, Tree]:
        """Install the environment and compress it, both at once if that is possible.

        Returns:
            What was installed, and the size of what the image holds.
        """
        context, prefix = self._context, self.project.prefix
        if self.options.repack:
            top = await imaging.unpack(context, plan)
            return None, await imaging.squash_directory(context, plan, part, top)
        if plan.installer is None:
            application = Installed((), (), await filling.describe(context, plan, ()))
            return application, await imaging.squash_directory(context, plan, part, prefix)
        solution = await filling.solve(context, plan, plan.installer)
        if not self._can_overlap(plan):
            installed = await filling.fill(context, plan, solution, plan.installer, claim)
            return installed, await imaging.squash_directory(context, plan, part, prefix)
        stream = imaging.stream(context, plan, solution, part)
        async with stream.running():
            installed = await filling.fill(
                context, plan, solution, plan.installer, claim, stream.overlap
            )
            counted = await stream.finish()
        if counted is None:
            context.note(f"compressing all again: {stream.problem}")
            counted = await imaging.squash_directory(context, plan, part, prefix)
        return installed, counted

    def _report(self, size: int, counted: Tree, packages: int) -> None:
        self.emit(
            Built(
                project=self.label,
                image=str(self.project.image),
                image_bytes=size,
                files=counted.entries,
                tree_bytes=counted.bytes,
                packages=packages,
                stages=tuple(self._context.seconds),
                seconds=self._context.elapsed(),
            )
        )

    def _can_overlap(self, plan: Plan) -> bool:
        """Whether to compress while packages are being installed.

        An image that is to be the same each time is always made in the same way, however many
        processors there are: the order of its files depends on the way.
        """
        is_worth_it = self.budget.is_enough or plan.epoch.is_fixed
        return self.options.overlap and squash.reads_archives(plan.mksquashfs) and is_worth_it

    async def _verify(self, plan: Plan, part: Part, counted: Tree) -> None:
        async with self._context.working(Stage.VERIFY, 1) as (_, workplace):
            await anyio.to_thread.run_sync(squash.verify, part.content, counted)
            if plan.startup:
                await listing.mark(part, plan.startup, workplace)

    async def _publish(
        self, image: tuple[Part, Path], installed: Installed | None, created: int
    ) -> None:
        """Put all files in place by rename: last the image, from its part to its name."""
        # The content is on disk before the name is: a crash must not leave an empty image.
        await anyio.to_thread.run_sync(os.fsync, image[0].descriptor)
        mode = self.options.mode
        if installed is None:
            parts.publish({}, mode, image)
            return
        project, described = self.project, installed.described
        variables = described.environment.variables if described.environment else ()
        texts = {
            project.activate: shell.activate_script(
                described.snapshot,
                snapshot.own_variables(project.prefix, variables),
                _command(),
                *snapshot.for_shells(project.prefix),
            ),
            project.deactivate: shell.deactivate_script(),
        }
        if described.packages:
            texts[project.lock_file] = lockfile.render(described.packages, installed.added, created)
        parts.publish(texts, mode, image)


def _command() -> str:
    """The `condainer` executable that `activate` runs."""
    own = Path(sys.argv[0]).resolve()
    if own.name in {"condainer", "cnd"}:
        return str(own)
    return shutil.which("condainer") or str(Path(sys.executable).parent / "condainer")
