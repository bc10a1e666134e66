"""The portable file system, and what it reads with as an independent second reading of images."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from PySquashfsImage import SquashFsImage

from condainer.squashfs import REG, SYMLINK, opened, walk
from condainer.system import mounttable
from tests import images, support
from tests.forgery import Forgery

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MODULE = "condainer.fuse.portable"
UTF8 = ("-wildcards", "-e", "not *")
"""Leaves out the one name that is not UTF-8: PySquashfsImage reads no image that holds one."""
LAYOUTS = {
    "zstd": ("-comp", "zstd"),
    "gzip": ("-comp", "gzip"),
    "xz": ("-comp", "xz"),
    "small blocks": ("-comp", "zstd", "-b", "4096"),
    "large blocks": ("-comp", "zstd", "-b", "1M"),
    "no fragments": ("-comp", "zstd", "-no-fragments"),
    "fragments for all": ("-comp", "gzip", "-always-use-fragments", "-b", "16384"),
    "no export table": ("-comp", "zstd", "-no-exports"),
    "nothing compressed": ("-noI", "-noD", "-noF", "-noX"),
    "no holes": ("-comp", "zstd", "-no-sparse"),
}


def tree_name() -> str:
    return "every_kind" if os.getuid() == 0 else "plain"


# A second reading


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_library_reads_the_same(collection: images.Collection, layout: str) -> None:
    image = collection.image(tree_name(), *LAYOUTS[layout], *UTF8)
    ours, theirs = dict(our_reading(image)), dict(their_reading(image))
    assert len(ours) > images.LARGE
    assert ours.keys() == theirs.keys()
    assert [path for path in ours if ours[path] != theirs[path]] == []


def our_reading(image: Path) -> Iterator[tuple[str, object]]:
    with opened(image) as files:
        for path, entry in walk(files):
            inode = files.inode(entry.ref)
            content = b""
            if inode.kind == REG:
                content = b"".join(files.read(inode, 0, inode.size))
            elif inode.kind == SYMLINK:
                content = files.target(inode)
            facts = (inode.mode, inode.uid, inode.gid, inode.mtime, inode.number, inode.size)
            yield path.decode(), (*facts, content)


def their_reading(image: Path) -> Iterator[tuple[str, object]]:
    with SquashFsImage.from_file(image) as whole:
        for file in whole:
            content = b""
            if file.is_file:
                content = file.read_bytes()
            elif file.is_symlink:
                content = file.readlink().encode()
            has_size = file.is_file or file.is_dir or file.is_symlink
            facts = (file.mode, file.uid, file.gid, file.time, file.inode.inode_number)
            if file.path != "/":
                size = file.size if has_size else 0
                yield file.path[1:], (*facts, size, content)


# Mounted


@pytest.fixture(params=["mfusepy", "fusepy"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A PYTHONPATH with which the program uses one of both libraries."""
    module = {"mfusepy": "mfusepy", "fusepy": "fuse"}[request.param]
    look = [sys.executable, "-c", f"import {module}"]
    done = subprocess.run(look, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"{request.param}: {done.stderr.splitlines()[-1]}")
    if module == "mfusepy":
        return str(support.REPOSITORY)
    (tmp_path / "hiding").mkdir()
    (tmp_path / "hiding" / "mfusepy.py").write_text("raise OSError('Unable to find libfuse')")
    return f"{tmp_path / 'hiding'}:{support.REPOSITORY}"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can have the kernel judge")
@pytest.mark.parametrize("layout", ["zstd", "small blocks", "fragments for all"])
def test_everything_is_as_the_kernel_shows_it(
    collection: images.Collection, tmp_path: Path, path: str, layout: str
) -> None:
    """But for the number of blocks of files with holes, and for what it does not have."""
    image = collection.image("every_kind", *LAYOUTS[layout], "-no-xattrs", *UTF8)
    with (
        images.loop_mounted(image, tmp_path / "kernel") as kernel,
        images.served(image, tmp_path / "fuse", module=MODULE, PYTHONPATH=path) as fuse,
    ):
        found = images.differences(kernel, fuse, "st_blocks", "st_blksize")
        left_out = (
            *("xattrs", "user.no", "system.posix_acl_access", "no.such.space"),
            *("too long", "not there"),
        )
        assert [line for line in found if not any(f": {key}: " in line for key in left_out)] == []
        assert images.totals(kernel) == images.totals(fuse)
        mount = mounttable.mount_at(fuse)
        assert mount is not None
        assert (mount.kind, mount.source) == ("fuse.fusepy", str(image))


def test_what_is_not_there(collection: images.Collection, tmp_path: Path, path: str) -> None:
    image = collection.image("small")
    with images.served(image, tmp_path / "mnt", module=MODULE, PYTHONPATH=path) as place:
        for name in (b"nosuch", b"directory/nosuch", b"large/000", b"\xff"):
            with pytest.raises(FileNotFoundError):
                os.lstat(os.fsencode(place) + b"/" + name)
        with pytest.raises(NotADirectoryError):
            (place / "text" / "x").lstat()
        with pytest.raises(OSError, match="Read-only file system"):
            (place / "new").touch()


def test_options(collection: images.Collection, tmp_path: Path, path: str) -> None:
    options = "uid=12,gid=34,fsname=größe\\,a\\\\b"
    where = tmp_path / "größe ☃"
    image = collection.image("small")
    with images.served(image, where, "-o", options, module=MODULE, PYTHONPATH=path) as place:
        status = (place / "text").stat()
        assert (status.st_uid, status.st_gid, status.st_size) == (12, 34, 15_000)
        mount = mounttable.mount_at(place)
        assert mount is not None
        assert mount.source == "größe,a\\b"
    for option in ("subdir=directory", "timeout=5", "notify_pipe=/x"):
        done = images.serve(image, tmp_path, "-o", option, module=MODULE)
        assert (done.returncode, done.stderr.count("\n")) == (254, 1)


def test_many_read_a_large_file_at_once(collection: images.Collection, tmp_path: Path) -> None:
    """Here and there, in the same open file and in others: they share one file position."""
    content = (collection.tree("noise") / "block").read_bytes()
    image = collection.image("noise", "-b", "4096", "-comp", "zstd")
    wrong: list[int] = []

    def read(place: Path, number: int) -> None:
        with (place / "block").open("rb") as file:
            for index in range(60):
                offset = (index * 7919 + number) * 4099 % len(content)
                if os.pread(file.fileno(), 9000, offset) != content[offset : offset + 9000]:
                    wrong.append(offset)

    with images.served(image, tmp_path / "mnt", module=MODULE) as place:
        threads = [threading.Thread(target=read, args=(place, number)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_damage_is_an_error(collection: images.Collection, tmp_path: Path, path: str) -> None:
    image = tmp_path / "image.squashfs"
    image.write_bytes(collection.image("small", "-b", "4096").read_bytes())
    with images.served(image, tmp_path / "mnt", module=MODULE, PYTHONPATH=path) as place:
        (place / "text").read_bytes()
        os.truncate(image, 200)
        with pytest.raises(OSError, match="Input/output error"):
            (place / "noise").read_bytes()
        assert (place / "text").stat().st_size == 15_000


def test_a_bomb_costs_this_process_only(tmp_path: Path) -> None:
    """A block of a few hundred kilobytes that would become 8 GB fails, and all else is served."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "bomb").write_bytes(b"x" * 400_000)
    (tmp_path / "tree" / "text").write_text("text")
    options = ("-comp", "zstd", "-noI", "-noD", "-no-fragments", "-b", "1M")
    image = images.pack(tmp_path / "tree", tmp_path / "image", *options)
    forgery = Forgery(image)
    block = images.bomb("zstd", 8 << 30)
    place = forgery.data.index(b"x" * 100_000)
    forgery.data[place : place + len(block)] = block
    forgery.inode(b"bomb", 32, "<I", len(block))
    image.write_bytes(forgery.data)
    with images.served(image, tmp_path / "mnt", module=MODULE) as mounted:
        with pytest.raises(OSError, match=r"Input/output error|Cannot allocate memory"):
            (mounted / "bomb").read_bytes()
        assert (mounted / "text").read_text() == "text"
        (daemon,) = images.daemons(mounted, MODULE)
        assert images.status_of(daemon, "VmHWM") < 200_000


@pytest.mark.parametrize("kind", ["text", "part", "directories without end", "lz4"])
def test_it_does_not_mount(collection: images.Collection, tmp_path: Path, kind: str) -> None:
    image = tmp_path / "image"
    original = collection.image("small", "-noI", "-noD", "-noF", "-noX")
    image.write_bytes(original.read_bytes())
    if kind == "text":
        image.write_text("text " * 100)
    elif kind == "part":
        os.truncate(image, 2000)
    elif kind == "directories without end":
        forgery = Forgery(original)
        forgery.lead(b"directory", b"")
        image.write_bytes(forgery.data)
    else:
        image.write_bytes(collection.image("small", "-comp", "lz4").read_bytes())
    (tmp_path / "mnt").mkdir()
    done = images.serve(image, tmp_path / "mnt", module=MODULE)
    assert done.returncode == 255
    assert done.stderr.startswith(f"condainer.fuse.portable: {image}: ")
    assert not images.is_mounted(tmp_path / "mnt")


def test_a_mountpoint_that_is_none(
    collection: images.Collection, tmp_path: Path, path: str
) -> None:
    image = collection.image("small")
    done = images.serve(image, tmp_path / "none", module=MODULE, PYTHONPATH=path)
    assert done.returncode == 1
    assert done.stderr.endswith(f"cannot mount at {tmp_path / 'none'}\n")


def test_a_signal_unmounts(collection: images.Collection, tmp_path: Path, path: str) -> None:
    place = tmp_path / "mnt"
    place.mkdir()
    image = collection.image("small")
    done = images.serve(image, place, module=MODULE, PYTHONPATH=path)
    assert (done.returncode, done.stderr) == (0, "")
    (daemon,) = images.daemons(place, MODULE)
    os.kill(daemon, 15)
    support.wait_for(lambda: not images.daemons(place, MODULE))
    assert not images.is_mounted(place)


def test_without_libfuse_it_says_so(collection: images.Collection, tmp_path: Path) -> None:
    for name in ("mfusepy", "fuse"):
        (tmp_path / f"{name}.py").write_text("raise OSError('Unable to find libfuse')")
    path = f"{tmp_path}:{support.REPOSITORY}"
    image = collection.image("small")
    done = images.serve(image, tmp_path, module=MODULE, PYTHONPATH=path)
    assert done.returncode == 1
    assert "no binding to libfuse can be used: mfusepy with libfuse3: Unable to" in done.stderr
