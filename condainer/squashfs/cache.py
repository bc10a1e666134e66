"""Decompressed blocks: kept up to a limit, decompressed once, and ahead of who reads in order.

Any number of threads may ask at once. One that wants a block which another is decompressing waits
for that one. Which blocks there are, and what is in them, is `vfs`'s business.
"""

from __future__ import annotations

import _queue
import _thread
import contextlib
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable


class Place(NamedTuple):
    """A block in the image: where it begins, its size on disk, and what may come of it in bytes."""

    position: int
    word: int
    most: int


class _Coming:
    """A block that some thread is decompressing."""

    __slots__ = ("done", "error")

    def __init__(self) -> None:
        self.done = _thread.allocate_lock()
        self.done.acquire()
        self.error: Exception | None = None


class Blocks:
    """A cache of blocks.

    Args:
        load: decompresses a block.
        limit: bytes of blocks that are kept.
        helpers: threads that read ahead.
    """

    def __init__(self, load: Callable[[int, int, int], bytes], limit: int, helpers: int) -> None:
        self._load = load
        self._limit = limit
        self._helpers = helpers
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._bytes = 0
        self._coming: dict[int, _Coming] = {}
        self._lock = _thread.allocate_lock()
        self._wanted: _queue.SimpleQueue[Place] = _queue.SimpleQueue()
        self._started = 0

    def ready(self, position: int) -> bytes | None:
        """A block, where it is there already."""
        with self._lock:
            block = self._kept.get(position)
            if block is not None:
                self._kept.move_to_end(position)
        return block

    def get(self, place: Place) -> bytes:
        """A block; waits until it is decompressed.

        Raises:
            Exception: what `load` raises.
        """
        position = place.position
        while True:
            block = self.ready(position)
            if block is not None:
                return block
            with self._lock:
                coming = self._coming.get(position)
                if coming is None and position not in self._kept:
                    mine = self._coming[position] = _Coming()
                    break
            if coming is not None:
                with coming.done:
                    pass
                if coming.error is not None:
                    raise coming.error
        return self._decompress(place, mine)

    def _decompress(self, place: Place, mine: _Coming) -> bytes:
        try:
            block = self._load(*place)
            size = len(block)
            with self._lock:
                self._kept[place.position] = block
                self._bytes += size
                while self._bytes > self._limit and len(self._kept) > 1:
                    self._bytes -= len(self._kept.popitem(last=False)[1])
        except BaseException as error:
            mine.error = error if isinstance(error, Exception) else None
            raise
        finally:  # whatever happens, or all who want the block would wait for ever
            with self._lock:
                del self._coming[place.position]
            mine.done.release()
        return block

    def ahead(self, place: Place) -> None:
        """Have a block decompressed that will be wanted soon."""
        if place.position in self._kept or place.position in self._coming:
            return
        if self._wanted.qsize() > self._helpers:
            return  # whoever reads is slower than that, and memory is not for guesses
        if self._has_helper():
            self._wanted.put(place)

    def _has_helper(self) -> bool:
        """Start another helper where there may be more; False where there is none at all."""
        with self._lock:
            if self._started < self._helpers:
                try:
                    _thread.start_new_thread(self._help, ())
                except RuntimeError:  # no more threads may be had
                    self._helpers = self._started
                else:
                    self._started += 1
            return self._started > 0

    def _help(self) -> None:
        while True:
            place = self._wanted.get()
            with contextlib.suppress(Exception):  # who wants the block will hear of it
                self.get(place)
