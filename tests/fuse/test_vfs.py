"""The file system in an image, and the caches before it, asked by any number of threads at once."""

from __future__ import annotations

import contextlib
import os
import random
import sys
import threading
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from condainer.squashfs import (
    DIR,
    REG,
    SYMLINK,
    FileSystem,
    Image,
    NotFoundError,
    WrongKindError,
    codecs,
    image,
    layout,
    vfs,
)
from condainer.squashfs.blocks import BlockReader
from tests import images
from tests.support import at_once, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import FrameType

    from condainer.squashfs.cache import LimitedDict

_T = TypeVar("_T")


@contextlib.contextmanager
def opened(path: Path, *, threads: int = 0, **how: int) -> Iterator[FileSystem]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield FileSystem(Image(descriptor), threads=threads, **how)
    finally:
        os.close(descriptor)


def read(files: FileSystem, path: bytes, offset: int, size: int) -> bytes:
    return b"".join(files.read(files.inode(files.resolve(path)), offset, size))


def in_step(filename: str, ask: Callable[[int], _T]) -> list[_T]:
    """Ask in two threads that take each step of a module together, and so meet where they can."""
    together = threading.Barrier(2)

    def hook(frame: FrameType, event: str, _: object) -> None:
        if event.startswith("c_") and frame.f_code.co_filename == filename:
            with contextlib.suppress(threading.BrokenBarrierError):
                together.wait(1)  # until one has ended, or waits for the other

    def ask_in_step(number: int) -> _T:
        sys.setprofile(hook)
        try:
            return ask(number)
        finally:
            sys.setprofile(None)
            together.abort()

    return at_once(2, ask_in_step)


# What the tree holds, comes out


@pytest.fixture(params=images.COMPRESSORS)
def compressor(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_everything_comes_out(collection: images.Collection, compressor: str) -> None:
    tree = collection.tree("plain")
    with opened(collection.image("plain", "-comp", compressor)) as files:
        assert differences(files, tree) == []


@pytest.mark.parametrize("compressor", ["lz4", "lzo"])
def test_everything_comes_out_where_there_is_no_library(
    collection: images.Collection, monkeypatch: pytest.MonkeyPatch, compressor: str
) -> None:
    monkeypatch.setattr(codecs, "_library", lambda _name: None)
    tree = collection.tree("plain")
    with opened(collection.image("plain", "-comp", compressor)) as files:
        assert differences(files, tree) == []


def differences(files: FileSystem, tree: Path) -> list[Path]:
    """The paths where an image differs from the tree that it was made of."""
    found = []
    left = [(files.root, tree)]
    while left:
        ref, path = left.pop()
        inode, status = files.inode(ref), path.lstat()
        expected = (status.st_mode, status.st_uid, status.st_gid, int(status.st_mtime))
        same = (inode.mode, inode.uid, inode.gid, inode.mtime) == expected
        if inode.kind == DIR:
            entries = {entry.name: entry.ref for _, entry in files.listing(ref)}
            names = sorted(os.fsencode(entry.name) for entry in path.iterdir())
            same = same and sorted(entries) == names
            same = same and all(files.lookup(ref, name) == at for name, at in entries.items())
            left += [(at, path / os.fsdecode(name)) for name, at in entries.items()]
        elif inode.kind == SYMLINK:
            same = same and os.fsdecode(files.target(inode)) == str(path.readlink())
        elif inode.kind == REG:
            same = same and inode.size == status.st_size
            same = same and b"".join(files.read(inode, 0, inode.size)) == path.read_bytes()
        if not same:
            found.append(path)
    return found


def test_inodes_that_begin_in_one_block_and_end_in_the_next(tmp_path: Path) -> None:
    """Wherever that is: there are so many of them, of so many lengths."""
    top = tmp_path / "tree"
    top.mkdir()
    for number in range(3000):
        (top / f"link{number}").symlink_to("x" * (1 + number % 37))
        with (top / f"file{number}").open("wb") as file:
            file.write(b"%d" % number)
            file.truncate(4096 * (1 + number % 11))
    for number in range(0, 3000, 5):
        os.setxattr(top / f"file{number}", "user.number", b"%d" % number)
    image = images.pack(top, tmp_path / "image.squashfs", "-b", "4096", "-no-fragments")
    with opened(image) as files:
        for number in range(3000):
            link = files.inode(files.resolve(b"link%d" % number))
            assert files.target(link) == b"x" * (1 + number % 37)
            assert read(files, b"file%d" % number, 0, 9) == (b"%d" % number).ljust(9, b"\0")
            assert read(files, b"file%d" % number, 4096 * (number % 11) + 4090, 9) == bytes(6)
            if number % 5 == 0:
                inode = files.inode(files.resolve(b"file%d" % number))
                assert files.image.xattrs.of(inode) == {b"user.number": b"%d" % number}


def test_names_are_looked_up(collection: images.Collection) -> None:
    with opened(collection.image("plain")) as files:
        assert files.resolve(b"") == files.resolve(b"/") == files.resolve(b"./.") == files.root
        assert files.resolve(b"d0/f0") == files.resolve(b"//d0///f0") != files.resolve(b"d0")
        assert files.resolve(b"hard") == files.resolve(b"sparse")
        for path in (b"nosuch", b"d0/nosuch", b"empty/x", b"large/name", b"large/zzz", b"\xff"):
            with pytest.raises(NotFoundError):
                files.resolve(path)
        for path in (b"sparse/x", b"link/x", b"d0/f0/x"):
            with pytest.raises(WrongKindError):
                files.resolve(path)


def test_links_lead_where_they_do(collection: images.Collection) -> None:
    """Also those whose inode ends in another metadata block than it begins in, and in any part."""
    tree = collection.tree("plain")
    with opened(collection.image("plain")) as files:
        for link in (tree / "links").iterdir():
            inode = files.inode(files.resolve(b"links/" + link.name.encode()))
            assert os.fsdecode(files.target(inode)) == str(link.readlink())


def test_what_is_asked_of_the_wrong_kind(collection: images.Collection) -> None:
    with opened(collection.image("plain")) as files:
        directory, file = (files.inode(files.resolve(path)) for path in (b"d0", b"d0/f0"))
        with pytest.raises(WrongKindError):
            files.read(directory, 0, 1)
        with pytest.raises(WrongKindError):
            files.target(file)
        with pytest.raises(WrongKindError):
            list(files.listing(file.ref))


def test_a_listing_goes_on_from_any_entry(collection: images.Collection) -> None:
    with opened(collection.image("plain")) as files:
        large = files.resolve(b"large")
        whole = list(files.listing(large))
        assert len(whole) == images.LARGE
        for start in range(0, images.LARGE, 97):
            cookie = whole[start][0]
            assert list(files.listing(large, cookie)) == whole[start + 1 :]


# Many threads at once


def test_many_read_everything_at_once(collection: images.Collection) -> None:
    tree = collection.tree("plain")
    with opened(collection.image("plain", "-comp", "zstd"), threads=2) as files:
        assert at_once(16, lambda _: differences(files, tree)) == [[]] * 16


def test_many_read_everything_with_hardly_any_cache(
    collection: images.Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_NAMES", "_SEGMENTS", "_LAYOUTS", "_INODES", "_LISTINGS", "_READERS"):
        monkeypatch.setattr(vfs, name, 3)
    tree = collection.tree("small")
    with opened(collection.image("small", "-b", "4096"), threads=2, cache_bytes=5000) as files:
        assert at_once(16, lambda _: differences(files, tree)) == [[]] * 16


# Files of many blocks


def test_two_find_the_blocks_of_a_file_at_once(collection: images.Collection) -> None:
    """What one has found out of where blocks lie is not counted twice."""
    number = 15_351  # behind many windows; no hole
    with opened(collection.image("long", "-b", "4096", "-comp", "zstd")) as files:
        assert read(files, b"file", 0, 8) == b"00000000"
        found = in_step(layout.__file__, lambda _: read(files, b"file", number * 4096, 8))
        assert found == [b"%08d" % number] * 2


def test_blocks_are_found_in_any_order(collection: images.Collection) -> None:
    numbers = list(range(0, 15_360, 7))
    random.Random(6).shuffle(numbers)  # noqa: S311

    def look(files: FileSystem, start: int) -> None:
        for number in numbers[start::16]:
            assert read(files, b"file", number * 4096, 8) == b"%08d" % number
            assert read(files, b"file", number * 4096 + 4090, 12) == bytes(12)

    with opened(collection.image("long", "-b", "4096", "-comp", "zstd"), threads=1) as files:
        at_once(16, lambda start: look(files, start))


class Counting(BlockReader):
    """Counts how many metadata blocks are asked for."""

    asked = 0

    def metadata(self, position: int) -> tuple[bytes, int]:
        self.asked += 1
        return super().metadata(position)


def test_the_end_of_a_long_file_is_found_in_few_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many blocks are before it, none of their words is passed twice."""
    (tmp_path / "tree").mkdir()
    with (tmp_path / "tree" / "file").open("wb") as file:
        file.truncate(1 << 30)
    path = images.pack(tmp_path / "tree", tmp_path / "image.squashfs", "-b", "4096")
    monkeypatch.setattr(image, "BlockReader", Counting)
    with opened(path) as files:
        assert read(files, b"file", (1 << 30) - 5, 10) == bytes(5)
        assert isinstance(files.image.blocks, Counting)
        assert files.image.blocks.asked < 1000  # of 128 blocks with 262,144 words


# What is kept


def test_what_is_kept_is_bounded(
    collection: images.Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In names, segments and places of blocks; what several find out at once counts once."""
    limits = {"_NAMES": 1000, "_SEGMENTS": 100, "_LAYOUTS": 200}
    for name, limit in limits.items():
        monkeypatch.setattr(vfs, name, limit)
    tree = collection.tree("plain")
    with opened(collection.image("plain", "-b", "4096")) as files:
        assert at_once(8, lambda _: differences(files, tree)) == [[]] * 8
        caches: list[LimitedDict[Any, Any]]
        caches = [files._names, files._folders, files._layouts]  # noqa: SLF001
        for cache, limit in zip(caches, limits.values(), strict=True):
            weights = list(map(cache._weigh, cache.values()))  # noqa: SLF001
            assert 1 < len(weights) <= sum(weights) == cache._weight <= limit  # noqa: SLF001


# Reading ahead in files


class Noting(BlockReader):
    """Knows who has had which blocks decompressed."""

    def __init__(self, descriptor: int, offset: int) -> None:
        super().__init__(descriptor, offset)
        self.by_thread: list[tuple[int, int]] = []

    def data(self, position: int, word: int, most: int) -> bytes:
        self.by_thread.append((threading.get_ident(), position))
        return super().data(position, word, most)


@contextlib.contextmanager
def counted(path: Path, threads: int) -> Iterator[tuple[FileSystem, Noting]]:
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setattr(image, "BlockReader", Noting)
        files = stack.enter_context(opened(path, threads=threads))
        assert isinstance(files.image.blocks, Noting)
        yield files, files.image.blocks


@pytest.fixture(scope="session")
def noise(collection: images.Collection) -> Path:
    """An image of a file of 256 blocks."""
    return collection.image("noise", "-b", "4096", "-comp", "zstd")


def test_who_reads_in_order_is_read_ahead_of(noise: Path) -> None:
    with counted(noise, threads=2) as (files, noted):
        read(files, b"block", 0, 4096)
        assert len(noted.by_thread) == 1
        read(files, b"block", 4096, 4096)
        wait_for(lambda: len(noted.by_thread) > 3)
        helpers = {thread for thread, _ in noted.by_thread[2:]}
        assert threading.get_ident() not in helpers
        for block in range(256):
            read(files, b"block", block * 4096, 4096)
        wait_for(lambda: len(noted.by_thread) == 256)
        assert len({position for _, position in noted.by_thread}) == 256  # each once


def test_a_large_file_is_found_with_few_marks(noise: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "_WINDOW", 4)
    monkeypatch.setattr(layout, "_MARKS", 5)
    with counted(noise, threads=0) as (files, _):
        whole = read(files, b"block", 0, 1 << 20)
    with counted(noise, threads=0) as (files, _):
        for block in (3, 200, 10, 255, 90, 240, 4, 30, 31, 32, 128, 0):
            assert read(files, b"block", block * 4096, 4096) == whole[block * 4096 :][:4096]


def test_who_reads_here_and_there_is_not_read_ahead_of(noise: Path) -> None:
    with counted(noise, threads=2) as (files, noted):
        for block in (200, 10, 150, 90, 240, 30):
            read(files, b"block", block * 4096, 4096)
        assert {thread for thread, _ in noted.by_thread} == {threading.get_ident()}
        assert len(noted.by_thread) == 6


def test_one_thread_reads_nothing_ahead(noise: Path) -> None:
    with counted(noise, threads=0) as (files, noted):
        for block in range(20):
            read(files, b"block", block * 4096, 4096)
        assert len(noted.by_thread) == 20


def test_what_is_there_needs_no_waiting(noise: Path) -> None:
    with counted(noise, threads=0) as (files, noted):
        inode = files.inode(files.resolve(b"block"))
        assert files.ready(inode, 0, 4096) is None
        assert noted.by_thread == []
        content = b"".join(files.read(inode, 0, 4096))
        found = files.ready(inode, 100, 3000)
        assert found is not None
        assert b"".join(found) == content[100:3100]
        assert files.ready(inode, 100, 4096) is None
        assert files.ready(inode, inode.size, 10) == []
