"""Images that are damaged, or made to do harm: errors come of them, and nothing else.

The tables of most images here are not compressed, so that a number in them can be changed.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import re
import struct
import subprocess
import sys
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from condainer.fuse import squashfs, vfs
from condainer.fuse.codecs import CodecError
from condainer.fuse.squashfs import FormatError
from tests import images, support

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Change = Callable[["Forgery"], None]
    Question = Callable[[vfs.FileSystem], object]

PLAIN_TABLES = ("-noI", "-noX", "-comp", "zstd", "-b", "4096", "-always-use-fragments")
ALL_PLAIN = ("-noI", "-noD", "-noF", "-noX", "-b", "8192")
ALL_COMPRESSED = ("-comp", "lzo", "-b", "4096")
BEYOND = 0xFFFF_FFFF_FFFF_FFF0
"""A place behind the end of every image."""


@pytest.fixture(scope="session")
def originals(collection: images.Collection) -> list[Path]:
    """Small images that are whole."""
    layouts = (PLAIN_TABLES, ALL_PLAIN, ALL_COMPRESSED)
    return [collection.image("small", *layout) for layout in layouts]


def fuzz(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the program that asks for everything in images, within limits of time and memory."""
    return subprocess.run(
        [sys.executable, "-m", "tests.fuzz_fuse", *map(str, arguments)],
        cwd=support.REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


@contextlib.contextmanager
def opened(data: bytes) -> Iterator[vfs.FileSystem]:
    descriptor = os.memfd_create("image")
    try:
        os.write(descriptor, data)
        yield vfs.FileSystem(squashfs.Image(descriptor), threads=0)
    finally:
        os.close(descriptor)


class Forgery:
    """An image whose bytes can be changed.

    Args:
        original: an image whose tables are not compressed.

    Attributes:
        data: what has become of it.
    """

    def __init__(self, original: Path) -> None:
        self._original = original.read_bytes()
        self.data = bytearray(self._original)
        self._tables = struct.unpack_from("<4Q", self._original, 64)

    def superblock(self, place: int, form: str, value: int) -> None:
        """Change a number in the superblock."""
        struct.pack_into(form, self.data, place, value)

    def inode(self, path: bytes, place: int, form: str, value: int) -> None:
        """Change a number in an inode, counted from where that begins."""
        with opened(self._original) as files:
            block, offset = divmod(files.resolve(path), 1 << 16)
        struct.pack_into(form, self.data, self._tables[0] + block + 2 + offset + place, value)

    def listing(self, path: bytes, place: int, form: str, value: int) -> None:
        """Change a number in the listing of a directory, counted from where that begins."""
        with opened(self._original) as files:
            inode = files.inode(files.resolve(path))
        start = self._tables[1] + inode.start + 2 + inode.offset
        struct.pack_into(form, self.data, start + place, value)

    def index(self, table: int, value: int) -> None:
        """Change where the first block of a table lies: 2 for that of the fragments."""
        struct.pack_into("<Q", self.data, self._tables[table], value)

    def fragment(self, path: bytes, place: int, form: str, value: int) -> None:
        """Change a number in the table's entry of the fragment that has the end of a file."""
        with opened(self._original) as files:
            index = files.inode(files.resolve(path)).fragment
        (block,) = struct.unpack_from("<Q", self.data, self._tables[2])
        struct.pack_into(form, self.data, block + 2 + 16 * index + place, value)

    def xattr(self, path: bytes, place: int, form: str, value: int) -> None:
        """Change a number in the first extended attribute of a file."""
        with opened(self._original) as files:
            index = files.inode(files.resolve(path)).xattr
        (table,) = struct.unpack_from("<56xQ", self.data)
        start, _, block = struct.unpack_from("<3Q", self.data, table)
        (ref,) = struct.unpack_from("<Q", self.data, block + 2 + 16 * index)
        struct.pack_into(form, self.data, start + 2 + ref + place, value)

    def ask(self, question: Question) -> object:
        """Open what has become of the image, and ask."""
        with opened(bytes(self.data)) as files:
            return question(files)


def content(path: bytes, offset: int = 0) -> Question:
    return lambda files: b"".join(files.read(files.inode(files.resolve(path)), offset, 65536))


def names(path: bytes) -> Question:
    return lambda files: [entry.name for _, entry in files.listing(files.resolve(path))]


def name(path: bytes) -> Question:
    return lambda files: files.inode(files.resolve(path))


def target(path: bytes) -> Question:
    return lambda files: files.target(files.inode(files.resolve(path)))


def xattrs(path: bytes) -> Question:
    return lambda files: files.image.xattrs(files.inode(files.resolve(path)))


# What inodes and listings claim: a change, and the question that it makes impossible to answer.
LIES: dict[str, tuple[Change, Question]] = {
    "a file of 2**62 bytes": (
        lambda f: f.inode(b"sparse", 24, "<Q", 1 << 62),
        content(b"sparse", 1 << 61),
    ),
    "a file of 2**64 - 1 bytes": (
        lambda f: f.inode(b"sparse", 24, "<Q", (1 << 64) - 1),
        content(b"sparse", (1 << 64) - 5),
    ),
    "a file that lies elsewhere": (
        lambda f: f.inode(b"noise", 16, "<Q", BEYOND),
        content(b"noise"),
    ),
    "a block of its size on disk": (
        lambda f: f.inode(b"noise", 56, "<I", 0x00FF_FFFF),
        content(b"noise"),
    ),
    "a block that is too short": (
        lambda f: f.inode(b"noise", 56, "<I", squashfs.UNCOMPRESSED | 100),
        content(b"noise"),
    ),
    "a fragment that is not there": (
        lambda f: f.inode(b"text", 44, "<I", 77),
        content(b"text", 14_000),
    ),
    "a place behind the fragment": (
        lambda f: f.inode(b"text", 48, "<I", 0xFFFF_0000),
        content(b"text", 14_000),
    ),
    "a fragment elsewhere": (
        lambda f: f.fragment(b"text", 0, "<Q", BEYOND),
        content(b"text", 14_000),
    ),
    "a fragment of its size on disk": (
        lambda f: f.fragment(b"text", 8, "<I", 0x00FF_FFFF),
        content(b"text", 14_000),
    ),
    "a link of 4 GiB": (
        lambda f: f.inode(b"link", 20, "<I", 0xFFFF_FFFF),
        target(b"link"),
    ),
    "a link beyond the table": (
        lambda f: f.inode(b"link", 20, "<I", 60_000),
        target(b"link"),
    ),
    "an unknown kind of inode": (
        lambda f: f.inode(b"link", 0, "<H", 15),
        name(b"link"),
    ),
    "an owner that is not there": (
        lambda f: f.inode(b"link", 4, "<H", 999),
        name(b"link"),
    ),
    "a directory of 4 GiB": (
        lambda f: f.inode(b"large", 20, "<I", 0xFFFF_FFFF),
        names(b"large"),
    ),
    "a directory of 64 MiB": (
        lambda f: f.inode(b"large", 20, "<I", 64 << 20),
        names(b"large"),
    ),
    "a directory that lies elsewhere": (
        lambda f: f.inode(b"large", 24, "<I", 0xFFFF_FFF0),
        names(b"large"),
    ),
    "a directory that begins behind its block": (
        lambda f: f.inode(b"large", 34, "<H", 0xFFFF),
        names(b"large"),
    ),
    "an index of 65,535 entries": (
        lambda f: f.inode(b"large", 32, "<H", 0xFFFF),
        names(b"large"),
    ),
    "an index into nowhere": (
        lambda f: f.inode(b"large", 40, "<I", 0x7FFF_FFFF),
        names(b"large"),
    ),
    "an index of another block": (
        lambda f: f.inode(b"large", 44, "<I", 0x7FFF_FFFF),
        names(b"large"),
    ),
    "an index with a name of 4 GiB": (
        lambda f: f.inode(b"large", 48, "<I", 0xFFFF_FFFF),
        names(b"large"),
    ),
    "a run of 4 billion names": (
        lambda f: f.listing(b"directory", 0, "<I", 0xFFFF_FFFF),
        names(b"directory"),
    ),
    "a run of more names than there are": (
        lambda f: f.listing(b"directory", 0, "<I", 200),
        names(b"directory"),
    ),
    "a name of an inode elsewhere": (
        lambda f: f.listing(b"directory", 4, "<I", 0x7FFF_FFFF),
        name(b"directory/inner"),
    ),
    "a name of no known kind": (
        lambda f: f.listing(b"directory", 16, "<H", 8),
        names(b"directory"),
    ),
    "a name that is too long": (
        lambda f: f.listing(b"large", 18, "<H", 256),
        names(b"large"),
    ),
    "a name with a slash": (
        lambda f: f.listing(b"directory", 20, "<B", ord("/")),
        names(b"directory"),
    ),
    "a name with a zero": (
        lambda f: f.listing(b"directory", 20, "<B", 0),
        names(b"directory"),
    ),
    "attributes that are not there": (
        lambda f: f.inode(b"noise", 52, "<I", 88),
        xattrs(b"noise"),
    ),
    "attributes of no known kind": (
        lambda f: f.xattr(b"text", 0, "<H", 9),
        xattrs(b"text"),
    ),
    "an attribute with a name of 64 KiB": (
        lambda f: f.xattr(b"text", 2, "<H", 0xFFFF),
        xattrs(b"text"),
    ),
    "an attribute of 4 GiB": (
        lambda f: f.xattr(b"text", 8, "<I", 0xFFFF_FFFF),
        xattrs(b"text"),
    ),
    "an attribute elsewhere, of a size that is no place": (
        lambda f: f.xattr(b"text", 0, "<H", 0x100),
        xattrs(b"text"),
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_a_table_claims_is_not_believed(originals: list[Path], lie: str) -> None:
    change, question = LIES[lie]
    forgery = Forgery(originals[0])
    forgery.ask(question if "2**6" not in lie else content(b"sparse"))  # as long as it is true
    change(forgery)
    with pytest.raises(FormatError):
        forgery.ask(question)


@pytest.mark.parametrize(
    ("place", "form", "value"),
    [
        (0, "<I", 0x73717369),  # magic
        (12, "<I", 8192),  # size of a block, which differs from its logarithm
        (16, "<I", 0xFFFF_FFFF),  # fragments
        (20, "<H", 7),  # compressor
        (22, "<H", 31),  # logarithm of the size of a block
        (26, "<H", 0),  # owners
        (26, "<H", 0xFFFF),
        (28, "<H", 3),  # version
        (30, "<H", 1),
        (32, "<Q", 0xFFFF_FFFF_FFFF_FFFF),  # root
        (32, "<Q", 0x1FFF),
        (32, "<Q", 0),  # a file
        (40, "<Q", 1 << 40),  # size of the image
        (40, "<Q", 100),
        *((table, "<Q", value) for table in (48, 56, 64, 72, 80) for value in (BEYOND, 5)),
        (48, "<Q", 0xFFFF_FFFF_FFFF_FFFF),  # table of owners
        (80, "<Q", 0xFFFF_FFFF_FFFF_FFFF),  # table of fragments
    ],
)
def test_what_a_superblock_claims_is_not_believed(
    originals: list[Path], place: int, form: str, value: int
) -> None:
    forgery = Forgery(originals[0])
    forgery.superblock(place, form, value)
    with pytest.raises(FormatError if place != 20 else CodecError):
        forgery.ask(content(b"text", 14_000))


def test_no_claim_costs_time_or_memory(originals: list[Path], tmp_path: Path) -> None:
    made = []
    for number, (change, _) in enumerate(LIES.values()):
        forgery = Forgery(originals[0])
        change(forgery)
        made.append(tmp_path / f"{number}.squashfs")
        made[-1].write_bytes(forgery.data)
    done = fuzz(*made)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^\d+ requests$", done.stdout, re.MULTILINE)) == len(LIES)


def test_an_image_that_is_cut_short(originals: list[Path], tmp_path: Path) -> None:
    """Where the superblock tells its size it is refused; where that lies, errors come later."""
    made = []
    for original in originals[1:]:
        data = original.read_bytes()
        (used,) = struct.unpack_from("<40xQ", data)
        for length in range(0, used, used // 50):
            with pytest.raises(FormatError), opened(data[:length]):
                pass
            made.append(tmp_path / f"{original.stem}-{length}.squashfs")
            made[-1].write_bytes(data[:40] + struct.pack("<Q", length) + data[48:length])
    done = fuzz(*made)
    assert done.returncode == 0, done.stderr


def test_an_image_that_becomes_shorter(originals: list[Path]) -> None:
    with opened(originals[1].read_bytes()) as files:
        inode = files.inode(files.resolve(b"text"))
        os.truncate(files.image._descriptor, 200)  # noqa: SLF001  (as another program would)
        with pytest.raises(FormatError, match="the image has become shorter"):
            files.read(inode, 0, 100)


@pytest.fixture
def endless(originals: list[Path], tmp_path: Path) -> Path:
    """An image with a directory that contains itself."""
    forgery = Forgery(originals[0])
    with opened(originals[0].read_bytes()) as files:
        block, offset = divmod(files.resolve(b"directory"), 1 << 16)
    forgery.listing(b"directory", 4, "<I", block)
    forgery.listing(b"directory", 12, "<H", offset)
    image = tmp_path / "image.squashfs"
    image.write_bytes(forgery.data)
    return image


def test_a_directory_that_contains_itself(endless: Path) -> None:
    """As deep as one likes to go: no way is followed that nobody asks for."""
    with opened(endless.read_bytes()) as files:
        assert names(b"directory" + b"/inner" * 5000)(files) == [b"inner"]
    assert fuzz(endless).returncode == 0


def test_a_directory_that_contains_itself_where_it_is_mounted(
    endless: Path, tmp_path: Path
) -> None:
    with images.served(endless, tmp_path / "mnt") as mountpoint:
        with pytest.raises(OSError, match=r"Too many levels|Input/output error"):
            (mountpoint / "directory" / "inner").lstat()
        assert (mountpoint / "text").read_bytes() == b"text " * 3000


def test_damage_of_all_kinds(originals: list[Path]) -> None:
    done = fuzz("--count", 300, *originals)
    assert done.returncode == 0, done.stderr
    counted = re.fullmatch(r"(\d+) of 300 images could be opened\n", done.stdout)
    assert counted is not None
    assert int(counted[1]) > 100  # the others were damaged where it shows at once


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="there is no atheris")
def test_damage_that_coverage_leads_to(originals: list[Path], tmp_path: Path) -> None:
    done = fuzz("--seconds", 10, "--crashes", tmp_path, *originals)
    assert done.returncode == 0, done.stderr
    assert re.search(r"Done [1-9]\d* runs", done.stderr)


# Bombs


def traced(question: Callable[[], object]) -> int:
    """The most bytes that a question took while it was not answered."""
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            question()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("compressor", images.COMPRESSORS)
@pytest.mark.parametrize("where", ["block", "fragment", "table"])
def test_a_bomb(collection: images.Collection, compressor: str, where: str) -> None:
    """A block that becomes a hundred times as large as any block may be."""
    original = collection.image("noise", "-noI", "-b", "1M", "-comp", compressor)
    forgery = Forgery(original)
    block = images.bomb(compressor, 100 << 20)
    if where == "block":
        forgery.data[96 : 96 + len(block)] = block
        forgery.inode(b"block", 32, "<I", len(block))
    elif where == "fragment":
        forgery.data[96 + (1 << 20) :][: len(block)] = block
        forgery.fragment(b"fragment", 8, "<I", len(block))
    else:
        block = images.bomb(compressor, 1 << 20)
        forgery.index(2, len(forgery.data))
        forgery.data += struct.pack("<H", len(block)) + block
        forgery.superblock(40, "<Q", len(forgery.data))
    path = b"block" if where == "block" else b"fragment"
    with opened(bytes(forgery.data)) as files:
        inode = files.inode(files.resolve(path))
        assert traced(lambda: files.read(inode, 0, 100)) < 4 << 20


# What is mounted stays mounted


@pytest.mark.parametrize(
    ("change", "path", "number"),
    [
        (lambda f: f.inode(b"sparse", 32, "<Q", 1 << 40), "sparse", 0),
        (lambda f: f.inode(b"sparse", 24, "<Q", (1 << 64) - 1), "sparse", errno.EIO),
        (lambda f: f.inode(b"link", 20, "<I", 0xFFFF_FFFF), "link", errno.EIO),
        (lambda f: f.inode(b"long-link", 20, "<I", 5000), "long-link", errno.EIO),
        (lambda f: f.listing(b"directory", 16, "<H", 8), "directory", errno.EIO),
        (lambda f: f.inode(b"noise", 56, "<I", 0x00FF_FFFF), "noise", errno.EIO),
        (lambda f: f.inode(b"pipe", 0, "<H", 15), "pipe", errno.EIO),
        (lambda f: f.inode(b"large", 20, "<I", 0xFFFF_FFFF), "large", errno.EIO),
    ],
)
def test_one_damaged_inode_does_not_take_the_others_away(
    originals: list[Path], tmp_path: Path, change: Change, path: str, number: int
) -> None:
    forgery = Forgery(originals[0])
    change(forgery)
    image = tmp_path / "image.squashfs"
    image.write_bytes(forgery.data)
    with images.served(image, tmp_path / "mnt") as mountpoint:
        assert use(mountpoint / path) == number
        assert (mountpoint / "text").read_bytes() == b"text " * 3000


def test_a_damaged_inode_is_still_listed(originals: list[Path], tmp_path: Path) -> None:
    """Its name is known; what is damaged is met by who asks for more."""
    forgery = Forgery(originals[0])
    forgery.inode(b"pipe", 0, "<H", 15)
    image = tmp_path / "image.squashfs"
    image.write_bytes(forgery.data)
    with images.served(image, tmp_path / "mnt") as mountpoint:
        with opened(originals[0].read_bytes()) as files:
            expected = [os.fsdecode(entry.name) for _, entry in files.listing(files.root)]
        assert os.listdir(mountpoint) == expected  # noqa: PTH208  (in their order)
        assert use(mountpoint / "pipe") == errno.EIO


def use(path: Path) -> int:
    """Do with a file what programs do; gives the number of the error that comes of it."""
    try:
        path.lstat()
        if path.is_symlink():
            path.readlink()
        elif path.is_dir():
            list(path.iterdir())
        elif path.is_file():
            path.read_bytes()
    except OSError as error:
        return error.errno or 0
    return 0
