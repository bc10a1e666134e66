"""The staging directory: the prefix, where an environment is installed before it becomes an image.

Packages contain their prefix, so they are installed at the path where the image will be mounted.
Whatever is there and was not made by an earlier build of the same project is left alone. Nothing is
removed that is not known to be ours, and nothing below a mountpoint.

The directory is made before anything is solved. Nobody else can enter it while it exists. It is
known by its inode: before each step `Claim.check` finds out whether somebody has put something else
in its place.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from condainer.errors import BuildError, CondainerError
from condainer.pipeline import occupancy, tree
from condainer.project.project import METADATA
from condainer.system import locks
from condainer.system.removal import remove_tree

if TYPE_CHECKING:
    from collections.abc import Iterator

    from condainer.project.project import Project

_MOMENT = 0.2
"""Seconds for which somebody who only looks may hold a lock."""
_CLOSED = 0o700
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Claim:
    """A running build's exclusive claim on its prefix.

    Attributes:
        descriptor: of the build's lock. Programs that write to the staging directory inherit it, so
            that one that outlives a killed build still holds the lock.
        temporary: a directory for temporary files, since a program that is ended leaves its own
            behind.
        prefix: where the environment is installed.
        made: device and inode of the staging directory; None if the prefix holds an application
            that somebody else has installed.
    """

    descriptor: int
    temporary: Path
    prefix: Path
    made: tuple[int, int] | None = None

    def note(self) -> None:
        """Write into the lock which process holds it, and what to remove if that is killed."""
        identity = occupancy.identity(self.temporary.lstat())
        text = {
            "process": os.getpid(),
            "temporary": [str(self.temporary), *identity],
            "made": self.made,
        }
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, json.dumps(text).encode(), 0)

    def check(self) -> None:
        """Check that the staging directory is the one that this build has made, and close it again.

        Raises:
            BuildError: If something else is there.
        """
        if self.made is None:
            return
        try:
            directory = os.open(self.prefix, _DIRECTORY)
        except OSError as error:
            raise self._exchanged() from error
        try:
            status = os.fstat(directory)
            if occupancy.identity(status) != self.made or status.st_uid != os.geteuid():
                raise self._exchanged()
            if stat.S_IMODE(status.st_mode) != _CLOSED:
                os.fchmod(directory, _CLOSED)
        finally:
            os.close(directory)

    def _exchanged(self) -> BuildError:
        return BuildError(
            f"{self.prefix} is no longer the directory that this build has made: a script of a "
            "package, or somebody else, has put something in its place",
            "the log says which script ran last; leave out its package",
        )


@contextlib.contextmanager
def claim(project: Project) -> Iterator[Claim]:
    """Claim a project's prefix for one build, with an empty directory that is removed at the end.

    Args:
        project: what is built.

    Raises:
        BuildError: If the prefix is not ours to use.
    """
    occupancy.check_base_directory(project)
    with _locked(project) as descriptor:
        occupancy.check_prefix(project)
        _remove_ours(project.prefix)  # which a killed build has left
        with _holding(project, descriptor) as claimed, _making(claimed) as made:
            yield made


@contextlib.contextmanager
def borrow(project: Project) -> Iterator[Claim]:
    """Claim a prefix with an application that somebody else has installed; it is left as it was.

    Args:
        project: what is built.

    Raises:
        BuildError: If there is no application that can be read.
    """
    with _locked(project) as descriptor:
        occupancy.check_application(project)
        ours = project.prefix / METADATA
        is_new = not os.path.lexists(ours)
        with _holding(project, descriptor) as claimed, contextlib.ExitStack() as stack:
            stack.callback(os.ftruncate, descriptor, 0)  # what stays at the prefix is no left-over
            if is_new:
                stack.callback(remove_tree, ours)
            yield claimed


@contextlib.contextmanager
def removing(prefix: Path) -> Iterator[None]:
    """Remove a directory of ours at the end.

    If a build fails and the directory cannot be removed, the error is that of the build.

    Args:
        prefix: the directory.

    Raises:
        CondainerError: If the directory cannot be removed.
    """
    try:
        yield
    except BaseException as error:
        try:
            _remove_ours(prefix)
        except CondainerError as left:
            if isinstance(error, CondainerError):
                error.hint = "; ".join(filter(None, (error.hint, left.message)))
        raise
    _remove_ours(prefix)


@contextlib.contextmanager
def _making(claimed: Claim) -> Iterator[Claim]:
    """Make the directory to install in, and remove it at the end.

    Raises:
        BuildError: If somebody else has made one meanwhile.
    """
    try:
        claimed.prefix.mkdir(mode=_CLOSED)
    except FileExistsError:
        raise BuildError(
            f"somebody else has just made {claimed.prefix}", "see what it is, then build again"
        ) from None
    made = replace(claimed, made=occupancy.identity(claimed.prefix.lstat()))
    made.check()
    with removing(claimed.prefix):
        made.note()
        try:
            yield made
        finally:
            _close(made)


def _close(claimed: Claim) -> None:
    """Take write permission from others: hard links into a package cache stay."""
    with contextlib.suppress(CondainerError):
        claimed.check()
        tree.close_own(claimed.prefix)


def _remove_ours(prefix: Path) -> None:
    """Remove a staging directory, unless somebody else made what is there."""
    if os.path.lexists(prefix) and prefix.lstat().st_uid == os.getuid():
        remove_tree(prefix)


@contextlib.contextmanager
def _locked(project: Project) -> Iterator[int]:
    """Hold the lock of a build. Its text stays if the next build has something to remove."""
    try:
        descriptor = locks.acquire(project.build_lock, timeout=_MOMENT)
    except locks.BusyError:
        raise occupancy.claimed_by_another(project) from None
    try:
        _wait_for_mounting(project)
        yield descriptor
    finally:
        if os.fstat(descriptor).st_size > 0 and os.path.lexists(project.prefix):
            os.close(descriptor)
        else:
            locks.discard(project.build_lock, descriptor)


def _wait_for_mounting(project: Project) -> None:
    """Wait until nobody mounts or unmounts at the prefix.

    Whoever mounts checks the build's lock while holding the mount lock. So a mount that has begun
    can be seen from here on, and no other begins. Whoever unmounts removes an empty directory at
    the end, which would be the build's.
    """
    try:
        mounting = locks.acquire(project.mount_lock, timeout=_MOMENT)
    except locks.BusyError:
        raise BuildError(
            f"the image at {project.prefix} is being mounted by another process",
            "end what uses it, then build again",
        ) from None
    locks.discard(project.mount_lock, mounting)
    with contextlib.suppress(locks.BusyError):  # a mount is there, and will be seen, or just went
        locks.discard(project.use_lock, locks.acquire(project.use_lock, timeout=_MOMENT))


@contextlib.contextmanager
def _holding(project: Project, descriptor: int) -> Iterator[Claim]:
    """Make the directory for temporary files; that of a killed build is removed first."""
    start = f"condainer-{project.config.uuid}-"
    _remove_temporary(start, occupancy.noted(project).get("temporary"))
    claimed = Claim(descriptor, Path(tempfile.mkdtemp(prefix=start)), project.prefix)
    with removing(claimed.temporary):
        claimed.note()
        yield claimed


def _remove_temporary(start: str, noted: object) -> None:
    """Remove a killed build's temporary files, if they are what the lock says.

    Args:
        start: how the name of their directory begins.
        noted: its path, device and inode.
    """
    match noted:
        case [str(name), int(device), int(inode)]:
            path = Path(name)
            with contextlib.suppress(OSError):
                if path.name.startswith(start) and occupancy.identity(path.lstat()) == (
                    device,
                    inode,
                ):
                    _remove_ours(path)
