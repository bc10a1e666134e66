"""Gives up on servers that have gone silent, which rattler would wait for as long as it runs.

A limit for a whole request would end large packages on slow lines as well; so what counts is that
nothing comes any more.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

import anyio

from condainer.errors import BuildError
from condainer.system import process

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from typing_extensions import Never

SILENCE = 60.0
"""Seconds after which a silent server is given up."""

_LOOKS = 6
"""So many times in them it is looked whether something has come. A process that was stopped for
longer than that by a signal misses one of them."""

_BUSY = 0.1
"""Share of one processor beyond which this process is at work rather than waiting."""

BUILD_AGAIN = (
    "see whether this machine can reach it, and build again: what has come completely is kept"
)
"""What to do where a package cannot be fetched."""

_Result = TypeVar("_Result")


async def unless_silent(
    work: Awaitable[_Result], signs: Callable[[], object], source: Callable[[], str]
) -> _Result:
    """Await something for as long as something comes.

    Args:
        work: what is awaited; a solver's computing counts as well, since it says nothing either.
        signs: changes its value when something has come.
        source: where it should come from, for people.

    Raises:
        BuildError: where nothing has come for some time.
    """
    async with process.task_group() as group:
        group.start_soon(_watch, signs, source)
        result = await work
        group.cancel_scope.cancel()
    return result


async def _watch(signs: Callable[[], object], source: Callable[[], str]) -> Never:
    step = SILENCE / _LOOKS
    silent = 0
    while silent < _LOOKS:
        before, computed = signs(), time.process_time()
        await anyio.sleep(step)
        busy = time.process_time() - computed > step * _BUSY
        silent = 0 if busy or signs() != before else silent + 1
    raise BuildError(
        f"nothing has come from {source()} for {SILENCE:.0f} s",
        BUILD_AGAIN,
    )
