"""The superblock of an image, and the manifest inside it, read without mounting.

The format is that of SquashFS 4.0 as the kernel documents it
(https://docs.kernel.org/filesystems/squashfs.html). Nothing here trusts an image: what a
superblock says is checked against the file before anybody mounts it.
"""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from condainer.errors import ImageError
from condainer.system import files

if TYPE_CHECKING:
    from pathlib import Path

    from condainer.squashfs.vfs import FileSystem

MANIFEST = ".condainer/manifest.json"
"""Path of the manifest inside an image."""

_SUPERBLOCK = struct.Struct("<5I6H8Q")
_MAGIC = 0x73717368
_NO_TABLE = 0xFFFFFFFFFFFFFFFF
_COMPRESSORS = {1: "gzip", 2: "lzma", 3: "lzo", 4: "xz", 5: "lz4", 6: "zstd"}
_MIN_BLOCK_LOG, _MAX_BLOCK_LOG = 12, 20
_TABLES = 64 << 10
"""Bytes at the end of an image."""
MANIFEST_MAX = 16 << 20
"""Bytes of a manifest at the most."""
_MANIFEST_VALUES = 500_000
"""What a manifest may hold: one of 5,000 packages has a quarter of that."""
_DIRECTORY_MAX = 4 << 20
"""Bytes of a directory's listing: 100,000 names or more."""
_KINDS = {"name": str, "built": str, "packages": list, "pip": list, "tools": dict}
"""What others read of a manifest, and of which type it is."""


@dataclass(frozen=True)
class Superblock:
    """The head of an image.

    Attributes:
        inodes: number of files, directories and links.
        block_size: bytes.
        compression: name of the algorithm.
        bytes_used: bytes of the file that belong to the image.
    """

    inodes: int
    block_size: int
    compression: str
    bytes_used: int


def is_image(path: Path) -> bool:
    """Whether a file begins as an image does, whole or not."""
    try:
        descriptor = open_image(path)
        try:
            return os.pread(descriptor, 4, 0) == struct.pack("<I", _MAGIC)
        finally:
            os.close(descriptor)
    except (ImageError, OSError):
        return False


def read_superblock(path: Path) -> Superblock:
    """Read the head of an image and compare it with the file.

    Raises:
        ImageError: where there is no such file, where it is no SquashFS 4.0 image, or where it
            is shorter than its own superblock says.
    """
    try:
        descriptor = open_image(path)
        try:
            data = os.pread(descriptor, _SUPERBLOCK.size, 0)
            size = os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ImageError(f"cannot read the image {path}: {error.strerror}") from error
    return _checked(path, data, size)


def open_image(path: Path) -> int:
    """A descriptor of an image, which may be a pipe.

    Raises:
        ImageError: where it is something else than a regular file.
        OSError: where it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ImageError(f"the image {path} is not a regular file")
    return descriptor


def fingerprint(path: Path) -> str:
    """What tells the content of an image from that of others, without reading all of it.

    Made of the superblock and the end, where the tables are: these tell the place and the size on
    disk of all that the image holds.

    Raises:
        ImageError: where it cannot be read.
    """
    import hashlib

    try:
        with open(open_image(path), "rb") as file:
            digest = hashlib.sha256(file.read(_SUPERBLOCK.size))
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TABLES))
            digest.update(file.read())
    except OSError as error:
        raise ImageError(f"cannot read the image {path}: {error.strerror}") from error
    return f"{size}-{digest.hexdigest()}"


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest inside an image, without mounting it.

    Raises:
        ImageError: where the image is damaged, was not built by condainer, or uses a
            compression this interpreter cannot read.
    """
    try:
        manifest = files.parse_json(read_inside(path, MANIFEST), most_values=_MANIFEST_VALUES)
    except ValueError as error:
        raise ImageError(f"the image {path} is damaged: {MANIFEST}: {error}", _REBUILD) from error
    if not _is_manifest(manifest):
        raise ImageError(f"the manifest of {path} is not what it should be", _REBUILD)
    return cast("dict[str, Any]", manifest)


def read_inside(path: Path, name: str) -> bytes:
    """Read a small file inside an image, such as the manifest, without mounting it.

    Args:
        path: of the image.
        name: path of the file inside; no links are followed.

    Raises:
        ImageError: where the image is damaged or has no such file, where that is too large, or
            where the image uses a compression this interpreter cannot read.
    """
    from condainer.squashfs import codecs, image, vfs

    read_superblock(path)
    try:
        descriptor = open_image(path)
        try:
            inside = vfs.FileSystem(image.Image(descriptor), threads=0)
            return _content(inside, os.fsencode(name))
        finally:
            os.close(descriptor)
    except codecs.CodecError as error:
        raise ImageError(f"cannot read inside {path}: {error}") from error
    except (image.FormatError, MemoryError) as error:
        reason = str(error) or "it needs too much memory"
        raise ImageError(f"the image {path} is damaged: {reason}", _REBUILD) from error
    except vfs.NotFoundError:
        raise ImageError(f"{path} was not built by condainer: it has no {name}") from None
    except vfs.WrongKindError:
        raise ImageError(f"{path} was not built by condainer: {name} is no file") from None
    except OSError as error:
        raise ImageError(f"cannot read the image {path}: {error.strerror}") from error


def _content(inside: FileSystem, name: bytes) -> bytes:
    """What a file holds, however large the directories are that it lies in."""
    from condainer.squashfs.image import FormatError

    place = inside.root
    for part in name.split(b"/"):
        if inside.inode(place).size > _DIRECTORY_MAX:
            raise FormatError(f"a directory above {os.fsdecode(name)} is larger than it can be")
        place = inside.lookup(place, part)
    inode = inside.inode(place)
    if inode.size > MANIFEST_MAX:
        raise FormatError(f"{os.fsdecode(name)} is larger than it can be")
    return b"".join(inside.read(inode, 0, inode.size))


_STARTUP = struct.Struct("<24sQQ")
_STARTUP_MARK = b"condainer startup part 1"
_PAGE = 4096
"""Images are padded to a multiple of that, which file systems want that are used as a device."""
_REBUILD = "copy it again from where it came, or build it again with 'condainer build --force'"


def write_startup(path: Path, start: int, end: int) -> None:
    """Note behind an image which of its bytes a program needs when it starts.

    No file system looks there: an image ends where its superblock says.

    Raises:
        ImageError: where it is no image.
    """
    place = _behind(read_superblock(path))
    with path.open("r+b") as file:
        file.truncate(place)
        file.seek(place)
        file.write(_STARTUP.pack(_STARTUP_MARK, start, end).ljust(_PAGE, b"\0"))


def read_startup(path: Path) -> tuple[int, int]:
    """Which bytes of an image a program needs when it starts; 0 and 0 where nobody has noted it.

    Raises:
        ImageError: where it is no image.
    """
    superblock = read_superblock(path)
    try:
        with open(open_image(path), "rb") as file:
            file.seek(_behind(superblock))
            data = file.read(_STARTUP.size)
    except OSError as error:
        raise ImageError(f"cannot read the image {path}: {error.strerror}") from error
    if len(data) < _STARTUP.size:
        return 0, 0
    mark, start, end = _STARTUP.unpack(data)
    sane = mark == _STARTUP_MARK and start < end <= superblock.bytes_used
    return (start, end) if sane else (0, 0)


def _behind(superblock: Superblock) -> int:
    return -(-superblock.bytes_used // _PAGE) * _PAGE


def _is_manifest(document: object) -> bool:
    """Whether what others read of it has the types that it should have."""
    return (
        isinstance(document, dict)
        and all(isinstance(document.get(key, kind()), kind) for key, kind in _KINDS.items())
        and all(isinstance(version, str) for version in document.get("tools", {}).values())
    )


def _checked(path: Path, data: bytes, size: int) -> Superblock:
    if len(data) < _SUPERBLOCK.size or data[:4] != struct.pack("<I", _MAGIC):
        raise ImageError(f"{path} is not a squashfs image", _REBUILD)
    values = _SUPERBLOCK.unpack(data)
    inodes, _, block_size, _, compression, block_log = values[1:7]
    major, minor, bytes_used = values[9], values[10], values[12]
    tables = values[13:]
    if (major, minor) != (4, 0):
        raise ImageError(f"{path} is squashfs {major}.{minor}; only 4.0 can be read")
    if bytes_used > size:
        raise ImageError(
            f"the image {path} is truncated: it has {size} of {bytes_used} bytes", _REBUILD
        )
    sane = (
        _MIN_BLOCK_LOG <= block_log <= _MAX_BLOCK_LOG
        and block_size == 1 << block_log
        and compression in _COMPRESSORS
        and inodes > 0
        and all(_SUPERBLOCK.size <= table < bytes_used for table in tables if table != _NO_TABLE)
    )
    if not sane:
        raise ImageError(f"the superblock of {path} is damaged", _REBUILD)
    return Superblock(inodes, block_size, _COMPRESSORS[compression], bytes_used)
