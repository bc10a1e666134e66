"""The superblock of an image, and the manifest inside it, read without mounting.

The format is that of SquashFS 4.0 as the kernel documents it
(https://docs.kernel.org/filesystems/squashfs.html). Nothing here trusts an image: what a
superblock says is checked against the file before anybody mounts it.
"""

from __future__ import annotations

import json
import os
import stat
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from condainer.errors import ImageError

if TYPE_CHECKING:
    from pathlib import Path

MANIFEST = ".condainer/manifest.json"
"""Path of the manifest inside an image."""

_SUPERBLOCK = struct.Struct("<5I6H8Q")
_MAGIC = 0x73717368
_NO_TABLE = 0xFFFFFFFFFFFFFFFF
_COMPRESSORS = {1: "gzip", 2: "lzma", 3: "lzo", 4: "xz", 5: "lz4", 6: "zstd"}
_MIN_BLOCK_LOG, _MAX_BLOCK_LOG = 12, 20
_TABLES = 64 << 10
"""Bytes at the end of an image."""
_MANIFEST_MAX = 64 << 20
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


def read_superblock(path: Path) -> Superblock:
    """Read the head of an image and compare it with the file.

    Raises:
        ImageError: where there is no such file, where it is no SquashFS 4.0 image, or where it
            is shorter than its own superblock says.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # it may be a pipe
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ImageError(f"the image {path} is not a regular file")
            data = os.pread(descriptor, _SUPERBLOCK.size, 0)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ImageError(f"cannot read the image {path}: {error.strerror}") from error
    return _checked(path, data, status.st_size)


def fingerprint(path: Path) -> str:
    """What tells the content of an image from that of others, without reading all of it.

    Made of the superblock and the end, where the tables are: these tell the place and the size on
    disk of all that the image holds.

    Raises:
        ImageError: where it cannot be read.
    """
    import hashlib

    try:
        with path.open("rb") as file:
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
    superblock = read_superblock(path)
    if superblock.compression == "lzma":
        raise ImageError(f"cannot read inside {path}: it is compressed with lzma")
    try:
        manifest: dict[str, Any] = json.loads(_read_file(path, MANIFEST))
    except ImportError as error:
        raise ImageError(f"cannot read inside {path}: {error}") from error
    except ImageError:
        raise
    except Exception as error:  # a damaged image fails in as many ways as it has bytes
        raise ImageError(f"the image {path} is damaged: {error}", _REBUILD) from error
    if not _is_manifest(manifest):
        raise ImageError(f"the manifest of {path} is not what it should be", _REBUILD)
    return manifest


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
    with path.open("rb") as file:
        file.seek(_behind(superblock))
        data = file.read(_STARTUP.size)
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


def _read_file(path: Path, name: str) -> bytes:
    """One small file of an image, found by walking only the directories above it."""
    import PySquashfsImage
    from PySquashfsImage.const import Type

    class LazyImage(PySquashfsImage.SquashFsImage):  # type: ignore[misc]
        """Reads directories when they are asked for: the base class scans the whole tree."""

        def _dir_scan(self, start_block: int, offset: int) -> Any:  # noqa: ANN401
            return self._opendir(start_block, offset)

        def find_inode(self, parts: list[str]) -> Any:  # noqa: ANN401
            directory = self.root
            for depth, part in enumerate(parts):
                wanted = part.encode()
                entry = next((e for e in directory.entries if e["name"] == wanted), None)
                if entry is None:
                    raise ImageError(f"{path} was not built by condainer: it has no {name}")
                last = depth == len(parts) - 1
                if entry["type"] != (Type.FILE if last else Type.DIR):
                    raise ImageError(f"{path} was not built by condainer: {name} is no file")
                if last:
                    return self._read_inode(entry["start_block"], entry["offset"])
                directory = self._opendir(entry["start_block"], entry["offset"])
            raise AssertionError(name)

    with path.open("rb") as file:
        image = LazyImage(file, closefd=False)
        inode = image.find_inode(name.split("/"))
        if inode.data > _MANIFEST_MAX:
            raise ImageError(f"{path}: {name} is larger than it can be", _REBUILD)
        data: bytes = image.read_file(inode)
        return data
