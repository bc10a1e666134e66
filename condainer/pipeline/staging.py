"""The directory an environment is installed in before it becomes an image.

It lies at the very prefix the image will be mounted at. Whatever stands there and was not made by
an earlier build of the same project is left alone: nothing that is not known to be ours is ever
removed, and nothing below a mountpoint.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shlex
import stat
import time
from typing import TYPE_CHECKING

from condainer import locks, mounttable
from condainer.errors import BuildError, CondainerError
from condainer.project import METADATA

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from condainer.project import Project

_ANY = "any"
_MOMENT = 0.2
"""Seconds for which somebody who only looks may hold a lock."""

_PERSISTENCE = 5.0
"""Seconds for which a directory that fills up again while it is removed is removed again."""


@contextlib.contextmanager
def claim(project: Project) -> Iterator[int]:
    """Hold a project's prefix for one build; what stands there afterwards is removed.

    Yields:
        the descriptor of the lock. Programs that write to the staging directory inherit it, so
        that an orphan of a killed build is not mistaken for a left-over.

    Raises:
        BuildError: where the prefix is not ours to use.
    """
    check_base_directory(project.prefix.parent)
    descriptor = _lock(project)
    try:
        check_prefix(project)
        _remove_ours(project.prefix)  # what a killed build left behind
        _note(descriptor, None)
        with _removing(project.prefix):
            yield descriptor
        os.ftruncate(descriptor, 0)
    finally:
        _release(project, descriptor)


@contextlib.contextmanager
def borrow(project: Project) -> Iterator[int]:
    """Hold the prefix of an application that somebody else installed; it is left as it was.

    Yields:
        the descriptor of the lock.

    Raises:
        BuildError: where the prefix is not what it should be.
    """
    descriptor = _lock(project)
    try:
        check_application(project)
        ours = project.prefix / METADATA
        is_new = not os.path.lexists(ours)
        try:
            yield descriptor
        finally:
            if is_new:
                remove_tree(ours)
    finally:
        locks.discard(project.build_lock, descriptor)


def make_prefix(prefix: Path, descriptor: int) -> None:
    """Make the directory to install in, and note in the lock which one it is.

    Raises:
        BuildError: where somebody else was quicker.
    """
    try:
        prefix.mkdir(mode=0o755)
    except FileExistsError:
        raise BuildError(f"{prefix} was made by somebody else this very moment") from None
    status = prefix.lstat()
    _note(descriptor, [status.st_dev, status.st_ino])


def let_make_prefix(descriptor: int) -> None:
    """Note in the lock that an installer is about to make the directory itself."""
    _note(descriptor, _ANY)


def check_made(prefix: Path) -> None:
    """See that what an installer made is this user's own, and open it for reading to everybody.

    Raises:
        BuildError: where it is not.
    """
    status = prefix.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise BuildError(f"{prefix} was made by somebody else while it was being filled")
    prefix.chmod(0o755)


def check_base_directory(base: Path) -> None:
    """See that an environment can be installed below a directory and run from there.

    Raises:
        BuildError: where it is missing, not writable, or mounted noexec.
    """
    hint = "choose another mount_base_directory in condainer.yml"
    if not base.is_dir():
        raise BuildError(f"mount_base_directory {base} is missing", f"make it, or {hint}")
    flags = os.statvfs(base).f_flag
    if flags & os.ST_RDONLY:
        raise BuildError(f"mount_base_directory {base} is read-only", hint)
    if not os.access(base, os.W_OK | os.X_OK):
        raise BuildError(f"mount_base_directory {base} is not writable for you", hint)
    if flags & os.ST_NOEXEC:
        raise BuildError(f"mount_base_directory {base} is mounted noexec: no program runs", hint)


def check_prefix(project: Project) -> None:
    """See that a project's prefix is free, or holds what an earlier build of ours left.

    Raises:
        BuildError: says what stands there.
    """
    prefix = project.prefix
    _check_unmounted(project)
    try:
        status = prefix.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise BuildError(f"cannot look at {prefix}: {error.strerror}") from error
    hint = "nothing was removed; look what it is, move it away, and build again"
    if stat.S_ISLNK(status.st_mode):
        raise BuildError(f"the mountpoint {prefix} is a symbolic link", hint)
    if not stat.S_ISDIR(status.st_mode):
        raise BuildError(f"the mountpoint {prefix} is not a directory", hint)
    if status.st_uid != os.getuid():
        raise BuildError(f"the mountpoint {prefix} belongs to user {status.st_uid}", hint)
    if any(prefix.iterdir()) and not _left_over(project):
        raise BuildError(f"{prefix} is in use by something else: it is not empty", hint)


def check_application(project: Project) -> None:
    """See that somebody else's application can be read at a project's prefix.

    Raises:
        BuildError: says what stands there instead.
    """
    prefix = project.prefix
    _check_unmounted(project)
    if prefix.is_symlink():
        raise BuildError(f"the mountpoint {prefix} is a symbolic link", "move the program there")
    if not prefix.is_dir():
        raise BuildError(
            f"there is nothing at {prefix}",
            "install the application there first; build then compresses it",
        )


def remove_tree(top: Path) -> None:
    """Remove a directory and all below it, on this one file system only.

    An installer's threads may still be writing: what appears meanwhile is removed as well.

    Raises:
        BuildError: where something is mounted below it, or it cannot be removed.
    """
    deadline = time.monotonic() + _PERSISTENCE
    while True:
        if mounttable.mounts_at_or_below(top):
            raise BuildError(f"{top} was not removed: something is mounted there")
        try:
            device = top.lstat().st_dev
            parent = os.open(top.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                _remove_below(parent, top.name, device)
                os.rmdir(top.name, dir_fd=parent)
            finally:
                os.close(parent)
        except FileNotFoundError:
            if not os.path.lexists(top):
                return
        except OSError as error:
            busy = error.errno in {errno.ENOTEMPTY, errno.EEXIST}
            if not busy or time.monotonic() > deadline:
                raise BuildError(f"cannot remove {top}: {error.strerror}") from error
        time.sleep(0.02)


@contextlib.contextmanager
def _removing(prefix: Path) -> Iterator[None]:
    """Remove a staging directory afterwards; why a build failed matters more than that this did."""
    try:
        yield
    except BaseException as error:
        try:
            _remove_ours(prefix)
        except BuildError as left:
            if isinstance(error, CondainerError):
                error.hint = "; ".join(filter(None, (error.hint, left.message)))
        raise
    _remove_ours(prefix)


def _remove_ours(prefix: Path) -> None:
    """Remove a staging directory, unless somebody else made what is there."""
    if os.path.lexists(prefix) and prefix.lstat().st_uid == os.getuid():
        remove_tree(prefix)


def _remove_below(parent: int, name: str, device: int) -> None:
    """Empty a directory without ever following a link or entering another file system."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    try:
        directory = os.open(name, flags, dir_fd=parent)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=parent)
        directory = os.open(name, flags, dir_fd=parent)
    try:
        status = os.fstat(directory)
        if status.st_dev != device:
            raise OSError(errno.EXDEV, f"{name} is on another file system")
        if status.st_mode & 0o300 != 0o300:  # noqa: PLR2004  (write and search, for removing)
            os.fchmod(directory, 0o700)
        with os.scandir(directory) as entries:
            names = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        for child, is_directory in names:
            if is_directory:
                _remove_below(directory, child, device)
                os.rmdir(child, dir_fd=directory)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(child, dir_fd=directory)
    finally:
        os.close(directory)


def _check_unmounted(project: Project) -> None:
    mounted = mounttable.mounts_at_or_below(project.prefix)
    if mounted:
        directory = shlex.quote(str(project.directory))
        raise BuildError(
            f"{mounted[-1].mountpoint} is mounted ({mounted[-1].kind})",
            f"end what uses it, then run: condainer -d {directory} umount",
        )


def _lock(project: Project) -> int:
    try:
        descriptor = locks.acquire(project.build_lock, timeout=_MOMENT)
    except locks.BusyError:
        raise BuildError(
            f"another build of this project is running on this machine{_holder(project)}",
            "wait until it has ended",
        ) from None
    # Whoever mounts looks at the build's lock while it holds this one: a mount that has begun is
    # to be seen from here on, and none begins any more.
    try:
        mounting = locks.acquire(project.mount_lock, timeout=_MOMENT)
    except locks.BusyError:
        _release(project, descriptor)
        raise BuildError(
            f"the image at {project.prefix} is being mounted by another process",
            "end what uses it, then build again",
        ) from None
    locks.discard(project.mount_lock, mounting)
    return descriptor


def _release(project: Project, descriptor: int) -> None:
    if project.prefix.exists() and _was_staging(descriptor):
        os.close(descriptor)  # the next build recognises what could not be removed
    else:
        locks.discard(project.build_lock, descriptor)


def _holder(project: Project) -> str:
    try:
        return f" (process {json.loads(project.build_lock.read_bytes())['process']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _left_over(project: Project) -> bool:
    """Whether the directory at the prefix is one that an earlier build of ours made."""
    try:
        made = json.loads(project.build_lock.read_bytes())["made"]
        status = project.prefix.lstat()
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return made in (_ANY, [status.st_dev, status.st_ino])


def _note(descriptor: int, made: list[int] | str | None) -> None:
    """Write into the lock who holds it, and which directory it made: device and inode."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps({"process": os.getpid(), "made": made}).encode(), 0)


def _was_staging(descriptor: int) -> bool:
    return os.fstat(descriptor).st_size > 0
