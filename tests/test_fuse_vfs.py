"""The file system in an image, and the caches before it, asked by any number of threads at once."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from typing import TYPE_CHECKING, TypeVar

from condainer.fuse import squashfs, vfs
from tests.support import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import FrameType

    from tests import images

_T = TypeVar("_T")


@contextlib.contextmanager
def opened(image: Path, *, threads: int = 0, **how: int) -> Iterator[vfs.FileSystem]:
    descriptor = os.open(image, os.O_RDONLY)
    try:
        yield vfs.FileSystem(squashfs.Image(descriptor), threads=threads, **how)
    finally:
        os.close(descriptor)


def read(files: vfs.FileSystem, path: bytes, offset: int, size: int) -> bytes:
    return b"".join(files.read(files.inode(files.resolve(path)), offset, size))


def at_once(count: int, ask: Callable[[int], _T]) -> list[_T]:
    """Ask in as many threads, which begin together, and give what each was answered."""
    found: dict[int, _T | Exception] = {}
    together = threading.Barrier(count)

    def run(number: int) -> None:
        together.wait(PATIENCE)
        try:
            found[number] = ask(number)
        except Exception as error:  # noqa: BLE001  (raised below)
            found[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers = [found[number] for number in range(count)]
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return [answer for answer in answers if not isinstance(answer, Exception)]


def in_step(filename: str, ask: Callable[[int], _T]) -> list[_T]:
    """Ask in two threads that take each step of a module together, and so meet where they can."""
    together = threading.Barrier(2)

    def hook(frame: FrameType, event: str, _: object) -> None:
        if event.startswith("c_") and frame.f_code.co_filename == filename:
            with contextlib.suppress(threading.BrokenBarrierError):  # the other has ended
                together.wait(PATIENCE)

    def ask_in_step(number: int) -> _T:
        sys.setprofile(hook)
        try:
            return ask(number)
        finally:
            sys.setprofile(None)
            together.abort()

    return at_once(2, ask_in_step)


# Files of many blocks


def test_two_find_the_blocks_of_a_file_at_once(collection: images.Collection) -> None:
    """What one has found out of where blocks lie is not counted twice."""
    number = 15_351  # behind many windows; no hole
    with opened(collection.image("long", "-b", "4096", "-comp", "zstd")) as files:
        read(files, b"file", 0, 8)
        found = in_step(vfs.__file__, lambda _: read(files, b"file", number * 4096, 8))
        assert found == [b"%08d" % number] * 2
