"""Runs the builds of one command side by side, and ends them all if a signal asks for it."""

from __future__ import annotations

import collections
import dataclasses
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio

from condainer.errors import CondainerError, InterruptedBySignalError, named
from condainer.pipeline import schedule
from condainer.pipeline.build import Build
from condainer.pipeline.events import Failed
from condainer.system import groups, process

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from pathlib import Path

    from condainer.pipeline.events import Emit
    from condainer.pipeline.plan import BuildOptions
    from condainer.project.project import Project

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Failure:
    """A build that failed."""

    project: Project
    error: CondainerError


def build_all(
    projects: Sequence[Project], options: BuildOptions, jobs: int, emit: Emit
) -> list[Failure]:
    """Build images; one that fails does not stop the others.

    Args:
        projects: what to build.
        options: what the command line asks for.
        jobs: processors for all builds together.
        emit: takes the events; called from several threads.

    Returns:
        The builds that failed.

    Raises:
        InterruptedBySignalError: If SIGINT, SIGTERM or SIGHUP came; all is cleaned up by then.
    """
    schedule.bind_to(jobs)
    # All who use an image must be able to read it; the user's own umask counts for the file itself.
    options = dataclasses.replace(options, umask=os.umask(0o022))
    return anyio.run(_build_all, projects, options, jobs, emit)


async def _build_all(
    projects: Sequence[Project], options: BuildOptions, jobs: int, emit: Emit
) -> list[Failure]:
    budget = schedule.Budget(jobs)
    labels = _labels(projects)
    failures: list[Failure] = []

    async def build(project: Project) -> None:
        try:
            await Build(project, labels[project.directory], options, budget, emit).run()
        except Exception as error:  # noqa: BLE001  (the other builds go on)
            failures.append(Failure(project, named(error)))
            emit(Failed(labels[project.directory]))

    received = await _unless_signalled(build, projects)
    if received is not None:
        process.end_calls()
        raise InterruptedBySignalError(received)
    return failures


async def _unless_signalled(
    build: Callable[[Project], Coroutine[Any, Any, None]], projects: Sequence[Project]
) -> int | None:
    """Build all projects at once; cancel that at the first signal, and return its number."""
    # What the caller lets this process ignore, as nohup does, ends nothing.
    heeded = [s for s in _SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]
    received: list[int] = []

    async def watch(building: anyio.CancelScope) -> None:
        with anyio.open_signal_receiver(*heeded) as signals:
            async for signum in signals:
                # A second one changes nothing: cleaning up takes a few seconds at most.
                received.append(signum)
                building.cancel()

    async with anyio.create_task_group() as watching:
        scope = anyio.CancelScope()
        watching.start_soon(watch, scope)
        async with groups.adopting():
            await _side_by_side(build, projects, scope)
        watching.cancel_scope.cancel()
    return received[0] if received else None


async def _side_by_side(
    build: Callable[[Project], Coroutine[Any, Any, None]],
    projects: Sequence[Project],
    scope: anyio.CancelScope,
) -> None:
    with scope:
        async with anyio.create_task_group() as building:
            for project in projects:
                building.start_soon(build, project)


def _labels(projects: Sequence[Project]) -> dict[Path, str]:
    """How messages name each project: by its directory's name, or in full if two have the same."""
    names = collections.Counter(project.label for project in projects)
    return {
        each.directory: each.label if names[each.label] == 1 else str(each.directory)
        for each in projects
    }
