"""The backend `fusepy`: serves an image with two libraries, PySquashfsImage and fusepy or mfusepy.

`python -m condainer.fuse.portable IMAGE MOUNTPOINT` is a program of its own. It shares nothing with
`python -m condainer.fuse` except the command line. It is for places where that one cannot speak to
the kernel, and gives the tests an independent second reading of each image. It is slower, has no
extended attributes, and reads no image that is compressed with lz4 or lzma, nor one that holds a
name which is not UTF-8.

PySquashfsImage reads all inodes when it opens an image, and believes what an image says. So this
process limits its own memory: a hostile image ends or stops this process, and nothing else.
"""

from __future__ import annotations

import errno
import gc
import importlib
import os
import resource
import sys
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from PySquashfsImage import SquashFsImage

from condainer.fuse import options

if TYPE_CHECKING:
    from types import ModuleType

_NOT_MOUNTED, _WRONG_USAGE, _BAD_IMAGE = 1, 254, 255
"""Exit statuses, as squashfuse has them."""
_MEMORY = 4 << 30
"""Bytes of address space that this process may use."""
_WINDOW = 2 << 20
"""Bytes of an open file that are kept: the kernel's requests come a little out of order."""
_FOREVER = 1e9
"""Seconds for which the kernel may remember what it was told: an image never changes."""
_LIBRARIES = (("mfusepy", "fuse3"), ("mfusepy", "fuse"), ("fuse", "fuse"))
"""Modules, and the libfuse that they use: 3, or 2, which is named without a number. Only libfuse 3
takes over a mount that another process has made. fusepy's module is named `fuse`."""
_ENCODING = "latin-1"
"""Between libfuse and us: any byte is a character of it, so no name can fail on the way."""
_OWN_OPTIONS = ("subdir", "timeout", "notify_pipe")
"""Options that only the other file system knows."""
_PASSED_ON = ("allow_other", "allow_root", "default_permissions", "debug", "uid", "gid")
"""Options that libfuse knows."""


class _Reader:
    """Reads an open file. PySquashfsImage gives its blocks only one after the other."""

    def __init__(self, file: Any, block_size: int) -> None:  # noqa: ANN401  (a RegularFile)
        self._file = file
        self._block_size = block_size
        self._kept: deque[bytes] = deque(maxlen=max(2, _WINDOW // block_size))
        self._content = file.iter_bytes()
        self._next = 0

    def read(self, offset: int, size: int) -> bytes:
        end = min(offset + size, self._file.size)
        first, last = offset // self._block_size, -(-end // self._block_size)
        pieces = [self._block(index) for index in range(first, last)]
        start = offset - first * self._block_size
        return b"".join(pieces)[start : start + max(end - offset, 0)]

    def _block(self, index: int) -> bytes:
        if index < self._next - len(self._kept):  # again from the beginning
            self._content, self._next = self._file.iter_bytes(), 0
            self._kept.clear()
        while self._next <= index:
            block = next(self._content, b"")
            if len(block) != min(self._block_size, self._file.size - self._next * self._block_size):
                raise OSError(errno.EIO, "a block has not its size")
            self._kept.append(block)
            self._next += 1
        return self._kept[index - self._next]


class _Files:
    """What fusepy and mfusepy call: `Operations`, by path. Whatever fails is an OSError.

    Args:
        image: an open SquashFsImage.
    """

    use_ns = True

    def __init__(self, image: Any) -> None:  # noqa: ANN401
        self._image = image
        self._readers: dict[int, _Reader] = {}
        self._last = 0
        # The image has one file position, which all readers share.
        self._lock = threading.Lock()

    def _find(self, path: str) -> Any:  # noqa: ANN401  (a File)
        file = self._image.root
        try:
            for name in path.encode(_ENCODING).decode().split("/"):
                if name and not file.is_dir:
                    raise OSError(errno.ENOTDIR, "not a directory")
                file = file[name] if name else file
        except (KeyError, UnicodeDecodeError):
            raise OSError(errno.ENOENT, "no such file") from None
        return file

    def getattr(self, path: str, _handle: object = None) -> dict[str, int]:
        """What stat(2) tells."""
        file = self._find(path)
        is_device = file.is_block_device or file.is_char_device
        size = 0 if is_device else file.size
        return {
            "st_ino": file.inode.inode_number,
            "st_mode": file.mode,
            "st_nlink": getattr(file.inode, "nlink", 1),
            "st_uid": file.uid,
            "st_gid": file.gid,
            "st_rdev": os.makedev(file.major, file.minor) if is_device else 0,
            "st_size": size,
            "st_blocks": size + 511 >> 9 if file.is_file else 0,
            **dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), file.time * 10**9),
        }

    def access(self, path: str, mask: int) -> int:
        """Whether it may be used so: whoever may use the mount may read all of it."""
        file = self._find(path)
        if mask & os.X_OK and not file.is_dir and not file.mode & 0o111:
            raise OSError(errno.EACCES, "nobody can execute it")
        return 0

    def readlink(self, path: str) -> str:
        """What a symbolic link points to."""
        return _recoded(self._find(path).readlink())

    def readdir(self, path: str, _handle: object) -> list[tuple[str, dict[str, int], int]]:
        """The names in a directory, with the numbers and the kinds of their inodes."""
        directory = self._find(path)
        named = {".": directory, "..": directory.parent or directory, **directory.children}
        return [
            (_recoded(name), {"st_ino": file.inode.inode_number, "st_mode": file.mode}, 0)
            for name, file in named.items()
        ]

    def open(self, path: str, _flags: int) -> int:
        """Open a file; gives its handle."""
        with self._lock:
            self._last += 1
            self._readers[self._last] = _Reader(self._find(path), self._image.sblk.block_size)
            return self._last

    def read(self, _path: str, size: int, offset: int, handle: int) -> bytes:
        """A range of a file's content."""
        with self._lock:
            try:
                return self._readers[handle].read(offset, size)
            except MemoryError:
                raise OSError(errno.ENOMEM, "a block needs too much memory") from None
            except Exception as error:  # whatever a damaged block brings about in the library
                raise OSError(errno.EIO, str(error)) from error

    def release(self, _path: str, handle: int) -> int:
        """Close a file."""
        with self._lock:
            del self._readers[handle]
        return 0

    def statfs(self, _path: str) -> dict[str, int]:
        """The sizes of the whole file system."""
        superblock = self._image.sblk
        size = superblock.block_size
        sizes = {"f_bsize": size, "f_frsize": size, "f_blocks": -(-superblock.bytes_used // size)}
        return {**sizes, "f_files": superblock.inodes, "f_namemax": 256}


def main(arguments: list[str]) -> int:
    """Run the program.

    Args:
        arguments: of the command line, without the program's name.

    Returns:
        the exit status.
    """
    try:
        asked = options.parse(arguments)
    except options.UsageError as error:
        return _fail(_WRONG_USAGE, str(error))
    if any(getattr(asked, name) for name in _OWN_OPTIONS):
        return _fail(_WRONG_USAGE, f"it has no options {', '.join(_OWN_OPTIONS)}")
    try:
        image = _open(asked)
    except Exception as error:  # noqa: BLE001  (whatever a damaged image brings about)
        return _fail(_BAD_IMAGE, f"{asked.image}: {type(error).__name__}: {error}")
    try:
        return _serve(image, asked)
    except RuntimeError:  # libfuse has said why
        return _fail(_NOT_MOUNTED, f"cannot mount at {asked.mountpoint}")


def _open(asked: options.Options) -> Any:  # noqa: ANN401  (a SquashFsImage)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    soft = _MEMORY if hard == resource.RLIM_INFINITY else min(hard, _MEMORY)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    gc.disable()  # this makes many objects, none of which goes
    image = SquashFsImage.from_file(asked.image, asked.offset)
    gc.freeze()
    gc.enable()
    return image


def _serve(image: Any, asked: options.Options) -> int:  # noqa: ANN401  (a SquashFsImage)
    library = _library()
    if isinstance(library, str):
        return _fail(_NOT_MOUNTED, library)
    # What is not defined here is as the library has it: mostly, it says that it cannot be done.
    operations = type("Operations", (_Files, library.Operations), {})
    words: dict[str, object] = dict.fromkeys(asked.flags, True)
    words |= {name: getattr(asked, name) for name in _PASSED_ON if getattr(asked, name) is not None}
    library.FUSE(
        operations(image),
        os.fsencode(asked.mountpoint).decode(_ENCODING),
        encoding=_ENCODING,
        foreground=asked.foreground,
        nothreads=asked.single,
        fsname=options.escaped(os.fsencode(asked.fsname).decode(_ENCODING)),
        subtype="fusepy",
        use_ino=True,
        kernel_cache=True,
        **dict.fromkeys(("entry_timeout", "attr_timeout", "negative_timeout"), _FOREVER),
        **words,
    )
    return 0


def _library() -> ModuleType | str:
    """Mfusepy or fusepy, or why there is neither."""
    reasons = []
    for name, libfuse in _LIBRARIES:
        os.environ["FUSE_LIBRARY_NAME"] = libfuse
        try:
            return importlib.import_module(name)
        except (ImportError, OSError) as error:  # OSError: it finds no libfuse
            reasons.append(f"{name} with lib{libfuse}: {error}")
    return f"no binding to libfuse can be used: {'; '.join(reasons)}"


def _recoded(name: str) -> str:
    """A name of the image, as libfuse's binding is to have it."""
    return name.encode().decode(_ENCODING)


def _fail(status: int, reason: str) -> int:
    sys.stderr.write(f"condainer.fuse.portable: {reason}\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
