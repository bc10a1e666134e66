"""Images that are damaged, or made to do harm: errors come of them, and nothing else.

The tables of most images here are not compressed, so that a number in them can be changed.
"""

from __future__ import annotations

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

from condainer.squashfs import FileSystem, FormatError, Image, walk
from tests import images, support
from tests.forgery import BEYOND, LIES, Forgery, content, names, opened, with_hole, xattrs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.forgery import Change

pytestmark = pytest.mark.slow

PLAIN_TABLES = ("-noI", "-noX", "-comp", "zstd", "-b", "4096", "-always-use-fragments")
ALL_PLAIN = ("-noI", "-noD", "-noF", "-noX", "-b", "8192")
ALL_COMPRESSED = ("-comp", "lzo", "-b", "4096")


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
    with pytest.raises(FormatError):
        forgery.ask(content(b"text", 14_000))


def test_an_attribute_of_no_known_kind_is_passed_over(originals: list[Path]) -> None:
    """As by the kernel: later versions may have more."""
    forgery = Forgery(originals[0])
    assert forgery.ask(xattrs(b"text")) == {b"user.name": b"1"}
    forgery.xattr(b"text", 0, "<H", 9)
    assert forgery.ask(xattrs(b"text")) == {}


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


@pytest.mark.parametrize("table", ["fragments", "attributes"])
def test_a_table_of_4_billion_entries(originals: list[Path], tmp_path: Path, table: str) -> None:
    """The image is large enough for the index of it, as a file with a hole easily is."""
    forgery = Forgery(originals[0])
    end = len(forgery.data)
    if table == "fragments":
        forgery.superblock(16, "<I", 0xFFFF_FFFF)
        forgery.superblock(80, "<Q", end)
    else:
        forgery.data += struct.pack("<QII", end, 0xFFFF_FFFF, 0)
        forgery.superblock(56, "<Q", end)
    forgery.superblock(40, "<Q", end + (100 << 20))
    image = tmp_path / "image.squashfs"
    image.write_bytes(forgery.data)
    os.truncate(image, end + (100 << 20))
    with image.open("rb") as file:
        assert traced(lambda: whole(file.fileno())) < 80 << 20


def whole(descriptor: int) -> None:
    """Open an image, and ask for what is at the end of its tables."""
    files = FileSystem(Image(descriptor), threads=0)
    files.image.xattrs.of(files.inode(files.resolve(b"text")))
    files.image.fragment(0xFFFF_FFFE)


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
        os.truncate(files.image.blocks.descriptor, 200)  # as another program would
        with pytest.raises(FormatError, match="the image has become shorter"):
            files.read(inode, 0, 100)


@pytest.fixture
def endless(originals: list[Path], tmp_path: Path) -> Path:
    """An image with a directory that contains itself."""
    forgery = Forgery(originals[0])
    forgery.lead(b"directory", b"directory")
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


def test_damage_of_all_kinds() -> None:
    done = fuzz("--count", 400)
    assert done.returncode == 0, done.stderr
    counted = re.match(r"(\d+) of 400 images could be opened\n", done.stdout)
    assert counted is not None
    assert int(counted[1]) > 100  # the others were damaged where it shows at once


@pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="nothing can be mounted")
def test_damage_of_all_kinds_where_it_is_mounted() -> None:
    done = fuzz("--mounted", 30)
    assert done.returncode == 0, done.stderr
    counted = re.match(r"(\d+) of 30 images could be opened\n", done.stdout)
    assert counted is not None
    assert int(counted[1]) > 5


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="there is no atheris")
def test_damage_that_coverage_leads_to(tmp_path: Path) -> None:
    done = fuzz("--seconds", 10, "--crashes", tmp_path)
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


# No end


@pytest.mark.parametrize("target", [b"", b"directory", b"large"], ids=["itself", "above", "twice"])
def test_directories_that_have_no_end(originals: list[Path], tmp_path: Path, target: bytes) -> None:
    """One that is in itself, or is there twice: a few of these make more names than atoms."""
    forgery = Forgery(originals[0])
    forgery.lead(b"directory", target)
    with opened(bytes(forgery.data)) as files, pytest.raises(FormatError, match="have no end"):
        list(walk(files))
    image = tmp_path / "image.squashfs"
    image.write_bytes(forgery.data)
    (tmp_path / "record").write_bytes(bytes(8))
    programs = (
        ["startup.record", str(tmp_path / "record"), str(image)],
        ["squashfs.unpack", str(image)],
    )
    for name, *arguments in programs:
        done = subprocess.run(
            [sys.executable, "-m", f"condainer.{name}", *arguments],
            cwd=support.REPOSITORY,
            capture_output=True,
            text=True,
            timeout=support.PATIENCE,
            check=False,
        )
        assert (done.returncode, done.stderr) == (1, f"{image}: its directories have no end\n")


@pytest.fixture(scope="module")
def hole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An image that is small, and that holds a file of 13 TB."""
    top = tmp_path_factory.mktemp("hole")
    (top / "tree/hole").mkdir(parents=True)
    (top / "tree/hole/file").touch()
    (top / "tree/text").write_text("text")
    images.pack(top / "tree", top / "image", *HOLLOW)
    return with_hole((top / "image").read_bytes(), b"hole/file", 100_000_000)


HOLLOW = ("-noI", "-no-exports", "-no-xattrs", "-no-fragments", "-comp", "zstd")


def test_a_far_place_in_a_hole_keeps_nobody_waiting(hole: bytes) -> None:
    """It takes a while to find, so that another thread does; then it is known."""
    with opened(hole) as files:
        inode = files.inode(files.resolve(b"hole/file"))
        place = inode.size - 10
        assert files.ready(inode, place, 10) is None
        assert b"".join(files.read(inode, place, 20)) == bytes(10)
        assert files.ready(inode, place, 10) is not None
        assert list(files.extents(inode)) == []


def test_a_file_has_no_more_blocks_than_it_can_have(hole: bytes) -> None:
    forged = bytearray(hole)
    place = forged.index(struct.pack("<2Q", 96, 100_000_000 << 17))
    struct.pack_into("<2Q", forged, place + 8, 1 << 60, 1 << 60)
    with opened(bytes(forged)) as files:
        inode = files.inode(files.resolve(b"hole/file"))
        with pytest.raises(FormatError, match="more blocks"):
            files.read(inode, inode.size - 10, 10)


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
