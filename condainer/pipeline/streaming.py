"""Runs mksquashfs while the environment is being installed: its tasks, and how they end.

`overlap` decides what is sent to it, and whether that is what was installed.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from condainer.errors import BuildError
from condainer.pipeline.archive import ChangedError
from condainer.system import process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from condainer.pipeline.overlap import Overlap
    from condainer.pipeline.tree import Tree


class Streaming:
    """One image that is being written from a pipe.

    Args:
        overlap: what is sent.
        write: runs mksquashfs to its end.

    Attributes:
        overlap: what is sent.
        problem: what has changed after it was sent; empty if nothing has.
    """

    def __init__(self, overlap: Overlap, write: Callable[[], Awaitable[None]]) -> None:
        self.problem = ""
        self.overlap = overlap
        self._write = write
        self._writing = anyio.CancelScope()
        self._fed, self._written = anyio.Event(), anyio.Event()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run both tasks. If one of them fails, or the installation does, all end."""
        try:
            async with process.task_group() as group:
                group.start_soon(self._squash)
                group.start_soon(self._feed)
                try:
                    yield
                finally:
                    self.overlap.stop()
        finally:
            self.overlap.close()

    async def finish(self) -> Tree | None:
        """Send the rest, and wait for the end.

        Returns:
            The size of what the image holds; None if the image is of no use, and `problem` says
            why.

        Raises:
            BuildError: If mksquashfs has ended too early.
        """
        counted = None
        try:
            if not self.problem:
                await anyio.to_thread.run_sync(self.overlap.look)
                await self._fed.wait()
            if not self.problem:
                counted = await anyio.to_thread.run_sync(self.overlap.finish)
        except ChangedError as error:
            self._give_up(error)
        except BrokenPipeError:
            await self._written.wait()  # mksquashfs itself says why
            raise BuildError("mksquashfs has ended before all files were sent") from None
        await self._fed.wait()
        self.overlap.close()
        await self._written.wait()
        return counted

    async def _squash(self) -> None:
        with self._writing:
            try:
                await self._write()
            except BaseException:
                self.overlap.stop()  # nobody needs what is still being sent or compared
                raise
        self._written.set()

    async def _feed(self) -> None:
        try:
            # A thread besides those that all share: it may wait for what these do.
            own = anyio.CapacityLimiter(1)
            await anyio.to_thread.run_sync(self.overlap.feed, limiter=own)
        except ChangedError as error:
            self._give_up(error)
        except BrokenPipeError:
            pass  # mksquashfs has ended, and says itself why
        self._fed.set()

    def _give_up(self, error: ChangedError) -> None:
        self.problem = str(error)
        self.overlap.stop()
        self._writing.cancel()
