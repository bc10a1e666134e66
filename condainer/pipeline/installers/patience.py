"""Gives up on servers that have gone silent; rattler itself would wait for ever.

A limit for a whole request would also end large packages on slow lines. So it counts only that
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
"""How often in this time to check whether something has come. A process that a signal has stopped
for longer misses one of the checks."""

_BUSY = 0.1
"""Share of one processor above which this process is working, not waiting."""

BUILD_AGAIN = "check that this machine can reach it, then build again: complete packages are kept"
"""The hint if a package cannot be fetched."""

_Result = TypeVar("_Result")


async def unless_silent(
    work: Awaitable[_Result], signs: Callable[[], object], source: Callable[[], str]
) -> _Result:
    """Await something for as long as something comes.

    Args:
        work: what is awaited. A solver that computes counts as well, although nothing comes.
        signs: returns another value when something has come.
        source: returns where it comes from, for people.

    Raises:
        BuildError: If nothing has come for `SILENCE` seconds.
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
        f"{source()} has sent nothing for {SILENCE:.0f} s",
        BUILD_AGAIN,
    )
