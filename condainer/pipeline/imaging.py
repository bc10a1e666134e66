"""The stages that write the image file: from a directory, or while packages are being installed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from condainer.pipeline import manifest, space, squash, tree
from condainer.pipeline.events import Stage
from condainer.pipeline.overlap import Overlap
from condainer.pipeline.streaming import Streaming
from condainer.startup import listing
from condainer.units import human

if TYPE_CHECKING:
    from pathlib import Path

    from condainer.pipeline.context import BuildContext
    from condainer.pipeline.installers.interface import Solution
    from condainer.pipeline.parts import Part
    from condainer.pipeline.plan import Plan

_LEAST_COMPRESSION = 10
"""An image needs at least a tenth of what it holds: no environment compresses better."""


async def squash_directory(
    context: BuildContext, plan: Plan, part: Part, source: Path
) -> tree.Tree:
    """Compress a finished environment.

    Args:
        context: of the build.
        plan: what to build.
        part: the image file.
        source: the directory with the environment.

    Returns:
        The size of what the image holds.

    Raises:
        BuildError: If mksquashfs fails.
    """
    async with context.stage(Stage.SQUASH) as stage:
        counted = await anyio.to_thread.run_sync(tree.survey, source)
        destination = _destination(part, counted.bytes, counted.bytes // space.IMAGE_RATIO)
        with context.watching(destination):
            async with context.workplace(Stage.SQUASH) as workplace:
                order = listing.write_order(plan.startup, source, workplace.temporary)
                await squash.write(
                    *(plan.mksquashfs, source, part, plan.compression, workplace), order=order
                )
        stage.detail = f"{plan.compression.algorithm}, {human(part.size)}"
    return counted


def stream(context: BuildContext, plan: Plan, solution: Solution, part: Part) -> Streaming:
    """Prepare to compress an environment while it is being installed.

    Args:
        context: of the build.
        plan: what to build.
        solution: the packages that are being installed.
        part: the image file.

    Raises:
        NoSpaceError: If the image cannot fit.
    """
    fetched = sum(package.size for package in solution.packages)
    destination = _destination(part, fetched * space.UNPACKED_RATIO, fetched)
    workplace = context.beside(Stage.SQUASH)
    block = plan.compression.block_size
    reader, writer = os.pipe()
    installed = anyio.Event()

    async def write() -> None:
        async with context.stage(Stage.SQUASH) as stage:
            with context.watching(destination):
                await squash.write(
                    *(plan.mksquashfs, reader, part, plan.compression, workplace),
                    aside=installed,
                )
            stage.detail = f"{plan.compression.algorithm}, {human(part.size)}"

    return Streaming(
        Overlap(
            context.project.prefix,
            solution.packages,
            plan.epoch,
            plan.startup,
            writer,
            lambda done: workplace.on_progress(done // block, None, ""),
            installed.set,
        ),
        write,
    )


async def unpack(context: BuildContext, plan: Plan) -> Path:
    """Unpack the project's image into a directory below the prefix, to be compressed again.

    Args:
        context: of the build.
        plan: what to build.

    Returns:
        The directory. The prefix itself would get the permissions of the image.

    Raises:
        BuildError: If the image cannot be unpacked.
    """
    prefix, source = context.project.prefix, context.project.image
    top = prefix / "image"
    needed = source.stat().st_size * space.IMAGE_RATIO
    async with context.working(Stage.UNPACK) as (_, workplace):
        with context.watching(space.Destination(prefix, "the unpacked image", needed)):
            await squash.unpack(source, top, workplace)
            await anyio.to_thread.run_sync(tree.take_over, top)
            manifest.note_startup(top, plan.startup)
    return top


def _destination(part: Part, unpacked: int, expected: int) -> space.Destination:
    """The directory where an image is written; checks that the image may fit there."""
    destination = space.Destination(part.path.parent, "the image", expected)
    space.require(destination, unpacked // _LEAST_COMPRESSION)
    return destination
