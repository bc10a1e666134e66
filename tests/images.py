"""Trees with every kind of inode, images of them, and mounts of these images.

The images are real ones of mksquashfs's, made once and shared by the tests of the file system.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import lzma
import os
import random
import stat
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import zstandard

from condainer.system import mounttable
from tests import support

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FUSE = (sys.executable, "-m", "condainer.fuse")
COMPRESSORS = ("gzip", "lzma", "lzo", "xz", "lz4", "zstd")
"""In the order of their numbers in the superblock."""

LARGE = 3200
"""Names in the large directory: enough for a listing of several metadata blocks."""


# Trees


def make_every_kind(top: Path) -> None:
    """A tree with every kind of inode, with and without what makes it a long one; needs root."""
    make_plain(top)
    make_special(top)
    set_attributes(top)
    for name, times in (("d7", 2**31 + 5), ("d8/f8", 0), ("link", 2**32 - 1)):
        os.utime(top / name, (times, times), follow_symlinks=False)


def make_plain(top: Path) -> None:
    """Files, directories and links, as anybody can make them."""
    top.mkdir(parents=True)
    make_contents(top)
    make_names(top)
    os.link(top / "sparse", top / "hard")
    (top / "link").symlink_to("d0/f0")
    (top / "long-link").symlink_to("x" * 4000)
    (top / "dangling").symlink_to("../nothing")
    (top / "links").mkdir()
    for index in range(1000):  # in the inode table they end at any place of a metadata block
        (top / "links" / f"{index}").symlink_to("t" * (1 + index * 7 % 61))


def make_contents(top: Path) -> None:
    """Files of all sorts of sizes, of what compresses and of what does not, and with holes."""
    chance = random.Random(1)  # noqa: S311
    sizes = [0, 1, 100, 4095, 4096, 4097, 70_000, 131_072, 200_000, 300_000]
    for index in range(68):
        directory = top / f"d{index % 17}"
        directory.mkdir(exist_ok=True)
        size = sizes[index % len(sizes)]
        line = b"line %d of a text\n" % index
        text = (line * (1 + size // len(line)))[:size]
        (directory / f"f{index}").write_bytes(chance.randbytes(size) if index % 3 else text)
    with (top / "sparse").open("wb") as file:
        file.truncate(5 << 20)
        file.seek(3 << 20)
        file.write(b"x" * 100_000)
    with (top / "ends-in-a-hole").open("wb") as file:
        file.write(chance.randbytes(10_000))
        file.truncate((1 << 20) + 77)
    (top / "holes-only").touch()
    os.truncate(top / "holes-only", 3 << 20)


def make_names(top: Path) -> None:
    """Directories without names, with many, with odd ones, and deep ones."""
    (top / "empty").mkdir()
    (top / "large").mkdir()
    for index in range(LARGE):
        (top / "large" / f"{'name' * 5}{index:05d}").write_text(str(index))
    for name in ("größe ☃ name", "new\nline", "y" * 255, " ", "a,b\\c", "-"):
        (top / name).write_text(name)
    Path(os.fsdecode(os.fsencode(top) + b"/not \xff\xfe UTF-8")).touch()
    (top / "deep" / "/".join("d" * 60)).mkdir(parents=True)


def make_special(top: Path) -> None:
    """Pipes, sockets and devices; of each kind one, and one that will have attributes."""
    for name in ("", "-x"):
        os.mkfifo(top / f"pipe{name}")
        os.mknod(top / f"character{name}", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        os.mknod(top / f"block{name}", 0o600 | stat.S_IFBLK, os.makedev(259, 70_000))
        os.mknod(top / f"socket{name}", 0o600 | stat.S_IFSOCK)
    (top / "link-x").symlink_to("d0/f0")


def set_attributes(top: Path) -> None:
    """Owners, modes, and extended attributes: short, long, and the same one several times."""
    (top / "d4").chmod(0o1777)
    (top / "d5" / "f5").chmod(0o6755)
    (top / "d6").chmod(0)
    os.chown(top / "d6", 1234, 5678)
    os.chown(top / "link", 70_000, 4_000_000_000, follow_symlinks=False)
    for name in ("pipe-x", "character-x", "block-x", "socket-x", "link-x"):
        os.setxattr(top / name, "trusted.kind", name.encode(), follow_symlinks=False)
    os.setxattr(top / "d1", "user.short", b"1")
    os.setxattr(top / "large", "user.short", b"1")
    os.setxattr(top / "sparse", "user.empty", b"")
    os.setxattr(top / "sparse", "user.long", b"v" * 3000)
    os.setxattr(top / "sparse", "security.other", b"s")
    capabilities = bytes.fromhex("0000000200200000000000000000000000000000")
    os.setxattr(top / "d0" / "f0", "security.capability", capabilities)
    for index in range(1, 12):  # which is stored once, elsewhere than the others
        os.setxattr(top / f"d{index}" / f"f{index}", "user.same", b"s" * 400)
        os.setxattr(top / f"d{index}" / f"f{index}", "trusted.number", b"%d" % index)


def make_huge(top: Path) -> None:
    """A file of more than 4 GiB, most of which are holes."""
    top.mkdir(parents=True)
    with (top / "huge").open("wb") as file:
        file.truncate((4 << 30) + 12_345)
        for place in (1 << 30, (4 << 30) - 10, (4 << 30) + 12_300):
            file.seek(place)
            file.write(b"across the line")


def make_small(top: Path) -> None:
    """A tree of few bytes and entries, of all kinds that anybody can make; for damage."""
    top.mkdir(parents=True)
    (top / "text").write_bytes(b"text " * 3000)
    (top / "noise").write_bytes(random.Random(2).randbytes(9000))  # noqa: S311
    with (top / "sparse").open("wb") as file:
        file.truncate(60_000)
        file.seek(20_000)
        file.write(b"x" * 5000)
    (top / "noise").chmod(0o600)
    os.link(top / "text", top / "hard")
    (top / "link").symlink_to("text")
    (top / "long-link").symlink_to("y" * 300)
    os.mkfifo(top / "pipe")
    (top / "directory" / "inner").mkdir(parents=True)
    (top / "directory" / "inner" / "file").write_text("hi")
    (top / "large").mkdir()
    for index in range(45):  # more than a metadata block lists
        (top / "large" / f"{index:03d}{'n' * 200}").touch()
    for name, value in (("text", b"1"), ("directory", b"w" * 500), ("noise", b"w" * 500)):
        os.setxattr(top / name, "user.name", value)


def make_noise(top: Path) -> None:
    """A file of one data block and one of a fragment, neither of which compresses."""
    top.mkdir(parents=True)
    (top / "block").write_bytes(random.Random(3).randbytes(1 << 20))  # noqa: S311
    (top / "fragment").write_bytes(random.Random(4).randbytes(600_000))  # noqa: S311


def make_long(top: Path) -> None:
    """A file of many small blocks, every seventh of which is no hole and tells its number."""
    top.mkdir(parents=True)
    with (top / "file").open("wb") as file:
        for number in range(0, 15_360, 7):
            file.seek(number * 4096)
            file.write(b"%08d" % number * 300)
        file.truncate(15_360 * 4096)


# Images


def pack(tree: Path, image: Path, *options: str) -> Path:
    """Make an image of a tree."""
    command = ["mksquashfs", str(tree), str(image), "-noappend", "-no-progress", "-quiet"]
    subprocess.run([*command, "-processors", "2", *options], check=True, capture_output=True)
    return image


def many_names() -> list[str]:
    """Twenty thousand names: half of them in one directory, the others in many."""
    spread = [f"{index % 100}/{index // 100 % 10}/file{index}" for index in range(10_000)]
    return sorted([*spread, *(f"one/file{index}" for index in range(10_000))])


def pack_many_names(image: Path) -> None:
    """Make an image of empty files of these names, without making the files."""
    command = ["mksquashfs", "-", str(image), "-tar", "-no-progress", "-quiet", "-comp", "zstd"]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process,
        tarfile.open(fileobj=process.stdin, mode="w|") as archive,
    ):
        for name in many_names():
            archive.addfile(tarfile.TarInfo(name))
    assert process.returncode == 0


def pack_huge(image: Path, tree: Path) -> None:
    """Make an image of a tree without reading its holes, all of which mksquashfs itself would."""
    tar = ["tar", "-C", str(tree), "--sparse", "-cf", "-", "huge"]
    with subprocess.Popen(tar, stdout=subprocess.PIPE) as archive:
        command = ["mksquashfs", "-", str(image), "-tar", "-no-progress", "-quiet", "-b", "1M"]
        subprocess.run(command, stdin=archive.stdout, stdout=subprocess.DEVNULL, check=True)
    assert archive.returncode == 0


class Collection:
    """Images of the trees, each made when it is first asked for.

    Args:
        directory: holds trees and images.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def tree(self, name: str) -> Path:
        """A tree, by the name of the function that makes it."""
        tree = self._directory / name
        if not tree.exists():
            TREES[name](tree)
        return tree

    def image(self, name: str, *options: str) -> Path:
        """An image of a tree, made with some of mksquashfs's options."""
        image = self._directory / f"{name}{''.join(options)}.squashfs"
        if not image.exists():
            pack(self.tree(name), image, *options)
        return image

    def huge(self) -> Path:
        """An image of a huge file."""
        image = self._directory / "huge.squashfs"
        if not image.exists():
            pack_huge(image, self.tree("huge"))
        return image

    def many(self) -> Path:
        """An image of many empty files."""
        image = self._directory / "many.squashfs"
        if not image.exists():
            pack_many_names(image)
        return image


TREES = {
    "small": make_small,
    "noise": make_noise,
    "plain": make_plain,
    "every_kind": make_every_kind,
    "huge": make_huge,
    "long": make_long,
}


def bomb(compressor: str, size: int) -> bytes:
    """A small block that becomes a large one: so many zeros, or a few more."""
    long = bytes([255]) * (size // 255)
    match compressor:
        case "gzip":
            return zlib.compress(bytes(size))
        case "lzma":
            return lzma.compress(bytes(size), format=lzma.FORMAT_ALONE, preset=0)
        case "lzo":  # one zero, and what repeats it; then the mark of the end
            return b"\x12\0" + b"\x20" + bytes(size // 255) + b"\1\0\0" + b"\x11\0\0"
        case "xz":
            return lzma.compress(bytes(size), check=lzma.CHECK_CRC32, preset=0)
        case "lz4":  # likewise; the last bytes have to be literal
            return b"\x1f\0\1\0" + long + b"\0" + b"\x50" + bytes(5)
        case _:
            return zstandard.ZstdCompressor().compress(bytes(size))


# Mounts


@contextlib.contextmanager
def loop_mounted(image: Path, mountpoint: Path) -> Iterator[Path]:
    """An image as the kernel mounts it; the test is skipped where it cannot."""
    if os.getuid() != 0:
        pytest.skip("only root can have the kernel mount an image")
    mountpoint.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "squashfs", "-o", "loop,ro", str(image), str(mountpoint)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"this kernel cannot mount it: {done.stderr.strip()}")
    try:
        yield mountpoint
    finally:
        subprocess.run(["umount", str(mountpoint)], check=True)


def serve(
    image: Path,
    mountpoint: Path | str,
    *options: str,
    cwd: Path | None = None,
    module: str = FUSE[-1],
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    """Run a file system of ours, which goes to the background once it is mounted."""
    return subprocess.run(
        [*FUSE[:-1], module, *options, str(image), str(mountpoint)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(support.REPOSITORY), **variables},
        capture_output=True,
        text=True,
        timeout=support.PATIENCE,
        check=False,
    )


@contextlib.contextmanager
def served(
    image: Path,
    mountpoint: Path,
    *options: str,
    cwd: Path | None = None,
    module: str = FUSE[-1],
    **variables: str,
) -> Iterator[Path]:
    """An image as a file system of ours mounts it; afterwards nothing may be left of it."""
    mountpoint.mkdir(parents=True, exist_ok=True)
    done = serve(image, mountpoint, *options, cwd=cwd, module=module, **variables)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    try:
        yield mountpoint
        unmount(mountpoint)
    finally:
        if is_mounted(mountpoint):
            unmount(mountpoint, "-z")
        support.wait_for(lambda: not daemons(mountpoint, module), "the daemon is still there")


def unmount(mountpoint: Path, *options: str) -> None:
    """Unmount what nobody uses."""
    command = ["fusermount3", "-u", *options, "--", str(mountpoint)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def is_mounted(mountpoint: Path) -> bool:
    """Whether something is mounted there."""
    return mounttable.mount_at(mountpoint) is not None


def mount_options(mountpoint: Path) -> set[str]:
    """The options of what is mounted there: those of every file system, and those of its own."""
    mount = mounttable.mount_at(mountpoint)
    assert mount is not None
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split(" ")
        if fields[0] == str(mount.identity):
            return {*fields[5].split(","), *fields[-1].split(",")}
    raise AssertionError("it has gone")


def daemons(mountpoint: Path, module: str = FUSE[-1]) -> list[int]:
    """The processes that serve a mountpoint."""
    return support.running(Path(sys.executable).name, module, str(mountpoint))


def status_of(pid: int, name: str) -> int:
    """A number that the kernel keeps of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def wait_for_turns(pid: int) -> None:
    """Wait until the first thread of a process has woken several times."""
    name = "voluntary_ctxt_switches"
    before = status_of(pid, name)
    support.wait_for(lambda: status_of(pid, name) >= before + 4)


# What programs see

_ATTRIBUTES = tuple(
    name for name in dir(os.stat_result) if name.startswith("st_") and name != "st_dev"
)
_SMALL, _WHOLE = 100, 64 << 20
"""Bytes up to which a file is read only whole, and up to which also whole."""
_ALIKE = 200
"""Names in a directory from which on not each is looked at closely."""
_FOREIGN = ("user.no", "system.posix_acl_access", "no.such.space")
"""Extended attributes that no file has."""


def differences(expected: Path, actual: Path, *leaving: str, closely: bool = False) -> list[str]:
    """What programs see in one tree and not in another: all names, and all they can ask of each.

    Of a large directory each name is looked at, but only some closely, as they are all alike.

    Args:
        expected: one tree.
        actual: the other.
        leaving: attributes of files that may differ, as `st_ino`.
        closely: look at each name of large directories closely, too.
    """
    found: list[str] = []
    left = [""]
    while left:
        path = left.pop()
        one = _facts(expected / path, path, leaving)
        other = _facts(actual / path, path, leaving)
        found += [
            f"{path}: {key}: {str(one.get(key))[:200]} != {str(other.get(key))[:200]}"
            for key in {**one, **other}
            if one.get(key) != other.get(key)
        ]
        names = [f"{path}/{name}".lstrip("/") for name in one.get("names", ())]
        if closely or len(names) < _ALIKE:
            left += names
            continue
        left += names[:: _ALIKE // 4]
        found += [
            name
            for name in names
            if _attributes(expected / name, leaving) != _attributes(actual / name, leaving)
        ]
    return found


def _attributes(path: Path, leaving: tuple[str, ...]) -> dict[str, Any]:
    status = path.lstat()
    return {name: getattr(status, name) for name in _ATTRIBUTES if name not in leaving}


def totals(mountpoint: Path) -> list[int]:
    """Of the whole file system; without the flags of the mount."""
    found = os.statvfs(mountpoint)
    return [
        *(found.f_bsize, found.f_frsize, found.f_blocks, found.f_bfree, found.f_bavail),
        *(found.f_files, found.f_ffree, found.f_favail, found.f_namemax),
    ]


def _facts(path: Path, seed: str, leaving: tuple[str, ...]) -> dict[str, Any]:
    facts = _attributes(path, leaving)
    facts["xattrs"] = _attempt(_xattrs, path)
    facts["access"] = [os.access(path, how, follow_symlinks=False) for how in range(8)]
    facts["too long"] = _attempt(os.lstat, f"{path}/{'n' * 257}")
    facts["not there"] = _attempt(os.lstat, f"{path}/{'n' * 256}")
    for name in _FOREIGN:
        facts[name] = _attempt(_xattr, path, name)
    status = path.lstat()
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFLNK:
        facts["target"] = path.readlink()
    if kind == stat.S_IFREG:
        facts["content"] = _content(path, status.st_size, seed)
    if kind == stat.S_IFDIR:
        with os.scandir(path) as entries:
            listing = [(e.name, e.inode(), e.is_dir(follow_symlinks=False)) for e in entries]
        facts["names"] = [name for name, _, _ in listing]
        if "st_ino" not in leaving:
            facts["listing"] = listing
    return facts


def _attempt(ask: Callable[..., object], *arguments: object) -> object:
    """An answer, or the name of the error that is the answer."""
    try:
        return ask(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def _xattrs(path: Path) -> list[tuple[str, bytes]]:
    return [(name, _xattr(path, name)) for name in os.listxattr(path, follow_symlinks=False)]


def _xattr(path: Path, name: str) -> bytes:
    return os.getxattr(path, name, follow_symlinks=False)


def _content(path: Path, size: int, seed: str) -> list[str]:
    """Digests of some ranges, and of the whole where it is not huge."""
    chance = random.Random(os.fsencode(seed))  # noqa: S311
    with path.open("rb", buffering=0) as file:
        ranges = [(max(0, size - 5), 100)]
        if size > _SMALL:
            ranges += [(chance.randrange(size), chance.randrange(200_000)) for _ in range(4)]
        found = [_digest(os.pread(file.fileno(), length, start)) for start, length in ranges]
        if size <= _WHOLE:
            found.append(_digest(file.readall()))
    return found


def _digest(data: bytes) -> str:
    return f"{len(data)} bytes, {hashlib.blake2b(data, digest_size=8).hexdigest()}"
