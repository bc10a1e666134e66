"""The cache of decompressed blocks, asked by any number of threads at once."""

from __future__ import annotations

import random
import threading

import pytest

from condainer.squashfs import (
    FormatError,
)
from condainer.squashfs.blocks import DataBlock
from condainer.squashfs.cache import BlockCache
from tests.support import PATIENCE, at_once, wait_for


class Loader:
    """Loads blocks, when it is let, and counts how often.

    Attributes:
        loaded: the positions of the blocks, in order.
        gate: what loading waits for.
        threads: that loaded.
    """

    def __init__(self) -> None:
        self.loaded: list[int] = []
        self.threads: list[int] = []
        self.gate = threading.Event()
        self.error: Exception | None = None

    def __call__(self, position: int, word: int, most: int) -> bytes:
        assert word == 1
        self.loaded.append(position)
        self.threads.append(threading.get_ident())
        assert self.gate.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        return bytes([position]) * most


def test_a_block_that_many_want_is_loaded_once() -> None:
    loader = Loader()
    blocks = BlockCache(loader, 1000, 0)
    answers: list[bytes] = []

    def ask() -> None:
        answers.append(blocks.get(DataBlock(7, 1, 10)))

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    wait_for(lambda: loader.loaded)
    loader.gate.set()
    for thread in threads:
        thread.join()
    assert answers == [bytes([7]) * 10] * 16
    assert loader.loaded == [7]
    assert blocks.ready(7) == bytes([7]) * 10
    assert blocks.ready(8) is None


def test_many_want_many_blocks() -> None:
    loader = Loader()
    loader.gate.set()
    blocks = BlockCache(loader, 10_000, 0)

    def ask(number: int) -> None:
        order = list(range(50))
        random.Random(number).shuffle(order)  # noqa: S311
        for position in order:
            assert blocks.get(DataBlock(position, 1, 100)) == bytes([position]) * 100

    at_once(16, ask)
    assert sorted(loader.loaded) == list(range(50))


def test_all_who_wait_hear_of_an_error_and_the_next_tries_again() -> None:
    loader = Loader()
    loader.error = FormatError("damaged")
    blocks = BlockCache(loader, 1000, 0)
    errors: list[str] = []

    def ask() -> None:
        try:
            blocks.get(DataBlock(7, 1, 10))
        except FormatError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_for(lambda: loader.loaded)
    loader.gate.set()
    for thread in threads:
        thread.join()
    assert errors == ["damaged"] * 8
    loader.error = None
    assert blocks.get(DataBlock(7, 1, 10)) == bytes([7]) * 10


class Unkept(bytes):
    """A block that there is no memory left to keep."""

    __slots__ = ()

    def __len__(self) -> int:
        raise MemoryError


def test_nobody_waits_for_a_block_that_could_not_be_kept() -> None:
    loaded: list[bytes] = [Unkept(), b"block"]
    blocks = BlockCache(lambda *_: loaded.pop(0), 1000, 0)
    with pytest.raises(MemoryError):
        blocks.get(DataBlock(7, 1, 10))
    assert not blocks._coming  # noqa: SLF001  (whoever found it there would wait)
    assert blocks.get(DataBlock(7, 1, 10)) == b"block"


def test_blocks_are_kept_up_to_a_limit() -> None:
    """Those that were wanted last; one block is kept even where it is larger."""
    loader = Loader()
    loader.gate.set()
    blocks = BlockCache(loader, 1000, 0)
    for position in range(20):
        blocks.get(DataBlock(position, 1, 100))
        assert kept(blocks, 100) <= 1000
    assert kept(blocks, 100) == 1000
    assert blocks.ready(10) is not None
    blocks.get(DataBlock(99, 1, 100))
    assert blocks.ready(10) is not None
    assert blocks.ready(11) is None
    blocks.get(DataBlock(100, 1, 5000))
    assert kept(blocks, 100) == 0
    assert blocks.ready(100) is not None


def kept(blocks: BlockCache, size: int) -> int:
    return sum(size for position in range(100) if blocks.ready(position) is not None)


def test_many_threads_keep_to_the_limit() -> None:
    loader = Loader()
    loader.gate.set()
    blocks = BlockCache(loader, 1000, 0)

    def ask(number: int) -> None:
        chance = random.Random(number)  # noqa: S311
        for _ in range(300):
            position = chance.randrange(50)
            assert blocks.get(DataBlock(position, 1, 100)) == bytes([position]) * 100

    at_once(16, ask)
    assert kept(blocks, 100) == 1000


def test_helpers_load_ahead() -> None:
    loader = Loader()
    blocks = BlockCache(loader, 1000, 2)
    for position in range(10):
        blocks.ahead(DataBlock(position, 1, 10))
    loader.gate.set()
    wait_for(lambda: blocks.ready(0) and blocks.ready(1))
    assert threading.get_ident() not in loader.threads
    assert len(loader.loaded) < 10  # nobody who wants them: no more than a few are remembered


def test_nobody_loads_ahead_without_helpers() -> None:
    loader = Loader()
    blocks = BlockCache(loader, 1000, 0)
    blocks.ahead(DataBlock(1, 1, 10))
    assert loader.loaded == []


def test_who_loads_ahead_keeps_errors_to_itself() -> None:
    loader = Loader()
    loader.gate.set()
    loader.error = FormatError("damaged")
    blocks = BlockCache(loader, 1000, 1)
    blocks.ahead(DataBlock(1, 1, 10))
    wait_for(lambda: loader.loaded == [1])
    loader.error = None
    blocks.ahead(DataBlock(2, 1, 10))
    wait_for(lambda: blocks.ready(2))
