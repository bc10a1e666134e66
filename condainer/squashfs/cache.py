"""What is kept in memory of an image: decompressed blocks, and what was found out in its tables.

Each cache has a limit. `BlockCache` decompresses a block only once, however many threads want it at
the same time, and decompresses ahead of a program that reads in order.
"""

from __future__ import annotations

import _queue
import _thread
import contextlib
from collections import OrderedDict
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from condainer.squashfs.blocks import DataBlock

_K = TypeVar("_K")
_V = TypeVar("_V")


class LimitedDict(dict[_K, _V]):
    """What was found out last, up to a total weight; the oldest goes first.

    Args:
        most: the weight that is kept.
        weigh: tells the weight of a value, always the same.
    """

    def __init__(self, most: int, weigh: Callable[[_V], int] = lambda _: 1) -> None:
        super().__init__()
        self._most = most
        self._weigh = weigh
        self._weight = 0
        self._lock = _thread.allocate_lock()

    def keep(self, key: _K, value: _V) -> None:
        """Keep a value for as long as there is room.

        Args:
            key: what it is kept under.
            value: the last one is kept in any case, whatever its weight.
        """
        with self._lock:
            if key in self:  # another thread was quicker
                self._weight -= self._weigh(self.pop(key))
            self[key] = value
            self._weight += self._weigh(value)
            while self._weight > self._most and len(self) > 1:
                self._weight -= self._weigh(self.pop(next(iter(self))))


class _Coming:
    """A block that some thread is decompressing."""

    __slots__ = ("done", "error")

    def __init__(self) -> None:
        self.done = _thread.allocate_lock()
        self.done.acquire()
        self.error: Exception | None = None

    def wait(self) -> None:
        """Wait until it is decompressed; raises the error if that has failed."""
        with self.done:
            pass
        if self.error is not None:
            raise self.error


class BlockCache:
    """Decompressed blocks. Any number of threads may ask at once.

    Args:
        load: decompresses a block, given the fields of its DataBlock.
        limit: bytes of blocks that are kept.
        helpers: threads that decompress ahead, at most; they are started when they are needed.
    """

    def __init__(self, load: Callable[[int, int, int], bytes], limit: int, helpers: int) -> None:
        self._load = load
        self._limit = limit
        self._helpers = helpers
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._bytes = 0
        self._coming: dict[int, _Coming] = {}
        self._lock = _thread.allocate_lock()
        self._wanted: _queue.SimpleQueue[DataBlock] = _queue.SimpleQueue()
        self._started = 0

    def ready(self, position: int) -> bytes | None:
        """A block if it is there already, else None.

        Args:
            position: of the block in the image.
        """
        with self._lock:
            block = self._kept.get(position)
            if block is not None:
                self._kept.move_to_end(position)
        return block

    def get(self, wanted: DataBlock) -> bytes:
        """A block; waits until it is decompressed.

        Args:
            wanted: where the block is.

        Raises:
            Exception: If `load` raises it, here or in the thread that decompresses the block.
        """
        position = wanted.position
        while (block := self.ready(position)) is None:
            with self._lock:
                coming = self._coming.get(position)
                if coming is None and position not in self._kept:
                    mine = self._coming[position] = _Coming()
                    break
            if coming is not None:
                coming.wait()
        else:
            return block
        return self._decompress(wanted, mine)

    def _decompress(self, wanted: DataBlock, mine: _Coming) -> bytes:
        try:
            block = self._load(*wanted)
            size = len(block)
            with self._lock:
                self._kept[wanted.position] = block
                self._bytes += size
                while self._bytes > self._limit and len(self._kept) > 1:
                    self._bytes -= len(self._kept.popitem(last=False)[1])
        except BaseException as error:
            mine.error = error if isinstance(error, Exception) else None
            raise
        finally:  # whatever happens: all who want the block wait for this
            with self._lock:
                del self._coming[wanted.position]
            mine.done.release()
        return block

    def ahead(self, wanted: DataBlock) -> None:
        """Have a block decompressed that will be wanted soon.

        Args:
            wanted: where the block is.
        """
        if wanted.position in self._kept or wanted.position in self._coming:
            return
        if self._wanted.qsize() > self._helpers:
            return  # whoever reads is slower than that, and memory is not for guesses
        if self._has_helper():
            self._wanted.put(wanted)

    def _has_helper(self) -> bool:
        """Start another helper if there may be more; False if there is none at all."""
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
            wanted = self._wanted.get()
            with contextlib.suppress(Exception):  # whoever wants the block will hear of it
                self.get(wanted)
