"""`python -m condainer.fuse IMAGE MOUNTPOINT`: serves an image as `squashfuse_ll` does.

It goes to the background once the mount is live. The exit statuses are squashfuse's: 0, 1 if it
cannot be mounted, 254 for wrong usage, 255 for a file that is no image, or a damaged one.
"""

from __future__ import annotations

import _thread
import contextlib
import errno
import gc
import os
import stat
import sys
from typing import NoReturn

import condainer
from condainer.fuse import options, service
from condainer.fuse.attach import AttachError
from condainer.fuse.options import INHERITED, Options, UnknownOptionError, UsageError
from condainer.squashfs import FileSystem, Image, SquashfsError
from condainer.startup import note

_NOT_MOUNTED, _WRONG_USAGE, _BAD_IMAGE = 1, 254, 255
_RECORD = "CONDAINER_FUSE_RECORD"
"""Names a file that is to hold what is read: see `startup/record.py`."""


def main(arguments: list[str]) -> int:
    """Run the program.

    Args:
        arguments: of the command line, without the program's name.

    Returns:
        the exit status.
    """
    if {"-h", "--help"} & set(arguments):
        _say(options.USAGE, end="")
        return _WRONG_USAGE
    if {"-V", "--version"} & set(arguments):
        _say(f"condainer.fuse {condainer.__version__}")
        return _WRONG_USAGE
    try:
        asked = options.parse(arguments)
    except UsageError as error:
        _say(f"condainer.fuse: {error}\n{options.USAGE}", end="")
        return _NOT_MOUNTED if isinstance(error, UnknownOptionError) else _WRONG_USAGE
    if asked.notify_pipe and not _is_pipe(asked.notify_pipe):
        _say(f"condainer.fuse: {asked.notify_pipe}: it is no pipe")
        asked = asked._replace(notify_pipe="")
    status = _mount(asked)
    if status != 0 and asked.notify_pipe:
        _notify(asked.notify_pipe, b"f")
    return status


def _mount(asked: Options) -> int:
    mountpoint = asked.mountpoint
    if not os.path.lexists(mountpoint) and not mountpoint.startswith(INHERITED):
        _say(f"condainer.fuse: bad mount point {mountpoint}: {os.strerror(errno.ENOENT)}")
        return _WRONG_USAGE
    try:
        files = open_files(asked)
    except (OSError, SquashfsError, MemoryError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        reason = reason or "it needs too much memory"
        _say(f"condainer.fuse: {asked.image}: {reason}")
        return _BAD_IMAGE
    return _serve(files, asked, -1) if asked.foreground else _serve_in_background(files, asked)


def open_files(asked: Options) -> FileSystem:
    """Open the image that a command line names.

    Args:
        asked: the command line.

    Raises:
        OSError: If it cannot be read.
        SquashfsError: If it is no image, or damaged, cannot be decompressed here, or has no such
            subdirectory.
    """
    descriptor = os.open(asked.image, os.O_RDONLY | os.O_CLOEXEC)
    opened = Image(descriptor, asked.offset)
    threads = 0 if asked.single else service.threads() - 1
    files = FileSystem(opened, threads=threads)
    if _RECORD in os.environ:
        from condainer.startup.record import Recorder

        files = Recorder(opened, threads=threads, path=os.environ[_RECORD])
    if asked.subdir:
        files.descend(os.fsencode(asked.subdir))
    return files


def _serve_in_background(files: FileSystem, asked: Options) -> int:
    """Let a child serve; gives 0 once its mount is live."""
    receiver, sender = os.pipe()
    if os.fork() == 0:
        os.close(receiver)
        status = _NOT_MOUNTED
        try:
            status = _serve(files, asked, sender)
        finally:
            os._exit(status)
    os.close(sender)
    return 0 if os.read(receiver, 1) else _NOT_MOUNTED


def _serve(files: FileSystem, asked: Options, sender: int) -> int:
    def on_ready() -> None:
        with contextlib.suppress(OSError):
            blocks = files.image.blocks
            note.read_ahead(blocks.descriptor, blocks.superblock, blocks.offset)
        if asked.notify_pipe:
            try:
                _thread.start_new_thread(_notify, (asked.notify_pipe, b"s"))
            except RuntimeError:  # no more threads may be had; the mount is live all the same
                _say(f"condainer.fuse: {asked.notify_pipe}: no thread can be started")
        if sender >= 0:
            _leave(sender)

    gc.freeze()  # nothing that is there now will go
    try:
        service.serve(files, asked, on_ready)
    except AttachError as error:
        _say(f"condainer.fuse: {error}")
        return _NOT_MOUNTED
    except OSError as error:
        _say(f"condainer.fuse: /dev/fuse: {error.strerror}")
        return _NOT_MOUNTED
    return 0


def _leave(sender: int) -> None:
    """Become a daemon, and let whoever waits for the mount go on."""
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.write(sender, b"s")
    os.close(sender)


def _is_pipe(path: str) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)  # noqa: PTH116  (pathlib is slow to import)
    except OSError:
        return False


def _notify(path: str, word: bytes) -> None:
    """Tell whoever reads from a pipe; waits until somebody does."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        os.write(descriptor, word)
        os.close(descriptor)
    except OSError as error:
        _say(f"condainer.fuse: {path}: {error.strerror}")


def _say(text: str, end: str = "\n") -> None:
    with contextlib.suppress(OSError):  # nobody may be there to hear it
        os.write(2, (text + end).encode("utf-8", "surrogateescape"))


def _open_streams() -> None:
    """Let no descriptor of ours take the place of a standard stream that is closed."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # noqa: PLR2004
        os.set_inheritable(descriptor, True)  # noqa: FBT003
    os.close(descriptor)


def _entry() -> NoReturn:
    _open_streams()
    os._exit(main(sys.argv[1:]))  # threads may still wait for work


if __name__ == "__main__":
    _entry()
