"""Which way to the kernel: its own protocol, or one of the Python bindings to libfuse.

The protocol is the fastest and needs no library, only somebody who may mount: root, a user
namespace, or `fusermount3`. fusepy (libfuse 2) and mfusepy (libfuse 3 as well) are for systems
where it cannot be spoken; they are asked by path, so each request costs more.
`CONDAINER_FUSE_BINDING` asks for one by name: `kernel`, `fusepy`, `mfusepy`.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING

from condainer.fuse.attach import AttachError
from condainer.fuse.options import escaped

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from condainer.fuse.options import Options
    from condainer.squashfs.vfs import FileSystem

NAMES = ("kernel", "fusepy", "mfusepy")
_MODULES = {"fusepy": "fuse", "mfusepy": "mfusepy"}
_LIBRARIES = {
    "fusepy": "libfuse 2 (libfuse2 of Debian and Ubuntu, fuse-libs of Fedora and RHEL)",
    "mfusepy": "libfuse 3 (libfuse3-3 of Debian and Ubuntu, fuse3-libs of Fedora and RHEL)",
}
_MOST_THREADS = 8


def serve(files: FileSystem, options: Options, on_ready: Callable[[], None]) -> None:
    """Mount and serve, until the file system has been unmounted.

    Args:
        files: what is served.
        options: how.
        on_ready: called once the mount is live.

    Raises:
        AttachError: where it cannot be mounted: what stands against each of the ways.
    """
    asked = os.environ.get("CONDAINER_FUSE_BINDING")
    if asked and asked not in NAMES:
        raise AttachError(f"CONDAINER_FUSE_BINDING={asked}: there are {', '.join(NAMES)}")
    if asked in _MODULES:
        _serve_by_library(_load(str(asked)), files, options, on_ready)
        return
    if asked == "kernel" or sys.platform == "linux":
        from condainer.fuse import service

        service.serve(files, options, 1 if options.single else threads(), on_ready)
        return
    reasons = []
    for name in _MODULES:
        try:
            module = _load(name)
        except AttachError as error:
            reasons.append(str(error))
            continue
        _serve_by_library(module, files, options, on_ready)
        return
    raise AttachError("; ".join(reasons))


def threads() -> int:
    """How many threads answer: one for each processor, and one that waits for the next request."""
    return min(len(os.sched_getaffinity(0)) + 1, _MOST_THREADS)


def _load(name: str) -> ModuleType:
    import importlib

    try:
        return importlib.import_module(_MODULES[name])
    except ImportError:
        raise AttachError(f"{name} is not installed") from None
    except OSError as error:  # what it raises where there is no libfuse of its kind
        raise AttachError(f"{name} needs {_LIBRARIES[name]}: {error}") from error


def _serve_by_library(
    module: ModuleType, files: FileSystem, options: Options, on_ready: Callable[[], None]
) -> None:
    from condainer.fuse.operations import ENCODING, Operations, text

    if not os.path.isdir(options.mountpoint):  # noqa: PTH112  (root may mount on a file, oddly)
        raise AttachError(f"cannot mount at {options.mountpoint}: {os.strerror(errno.ENOTDIR)}")
    operations = Operations(files, options.uid, options.gid, on_ready)
    words: dict[str, object] = dict.fromkeys(options.flags, True)
    for word in ("allow_other", "allow_root", "default_permissions"):
        if getattr(options, word):
            words[word] = True
    try:
        module.FUSE(
            operations,
            text(os.fsencode(options.mountpoint)),
            encoding=ENCODING,
            foreground=True,
            nothreads=options.single,
            debug=options.debug,
            fsname=escaped(text(os.fsencode(options.fsname))),
            subtype="condainer",
            use_ino=True,
            kernel_cache=True,
            entry_timeout=_FOREVER,
            attr_timeout=_FOREVER,
            negative_timeout=_FOREVER,
            **words,
        )
    except RuntimeError as error:  # libfuse has said why
        raise AttachError(f"cannot mount at {options.mountpoint}") from error


_FOREVER = 1e9
