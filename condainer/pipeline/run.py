"""Runs the builds of one command side by side, and ends them all when a signal asks for it."""

from __future__ import annotations

import collections
import dataclasses
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio

from condainer.errors import CondainerError, InterruptedBySignalError, named
from condainer.pipeline import schedule
from condainer.pipeline.build import Build, Options
from condainer.pipeline.events import Failed
from condainer.system import groups, process

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from condainer.pipeline.events import Emit
    from condainer.project.project import Project

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Failure:
    """A build that did not come to its end."""

    project: Project
    error: CondainerError


def build_all(
    projects: Sequence[Project], options: Options, jobs: int, emit: Emit
) -> list[Failure]:
    """Build images; one that fails does not stop the others.

    Args:
        projects: what to build.
        options: how.
        jobs: processors for all of them together.
        emit: takes the events; called from several threads.

    Raises:
        InterruptedBySignalError: on SIGINT, SIGTERM or SIGHUP, when all is cleaned up.
    """
    schedule.bind_to(jobs)
    # What goes into an image is for all who may use it; the user's own umask is for the image file.
    options = dataclasses.replace(options, umask=os.umask(0o022))
    return anyio.run(_build_all, projects, options, jobs, emit)


async def _build_all(
    projects: Sequence[Project], options: Options, jobs: int, emit: Emit
) -> list[Failure]:
    budget = schedule.Budget(jobs)
    labels = _labels(projects)
    failures: list[Failure] = []
    received: list[int] = []

    async def build(project: Project) -> None:
        try:
            await Build(project, labels[project.directory], options, budget, emit).run()
        except Exception as error:  # noqa: BLE001  (the other builds go on)
            failures.append(Failure(project, named(error)))
            emit(Failed(labels[project.directory]))

    # What the caller has this process ignore, as nohup does, ends nothing.
    heeded = [s for s in _SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]

    async def watch(scope: anyio.CancelScope) -> None:
        with anyio.open_signal_receiver(*heeded) as signals:
            async for signum in signals:
                # A second one changes nothing: cleaning up takes a few seconds at the most.
                received.append(signum)
                scope.cancel()

    async with anyio.create_task_group() as watching:
        async with groups.adopting():
            with anyio.CancelScope() as scope:
                watching.start_soon(watch, scope)
                async with anyio.create_task_group() as building:
                    for project in projects:
                        building.start_soon(build, project)
        watching.cancel_scope.cancel()
    if received:
        process.end_calls()
        raise InterruptedBySignalError(received[0])
    return failures


def _labels(projects: Sequence[Project]) -> dict[Path, str]:
    """How messages name each project: by its directory's name, or in full where two share it."""
    names = collections.Counter(project.label for project in projects)
    return {
        each.directory: each.label if names[each.label] == 1 else str(each.directory)
        for each in projects
    }
