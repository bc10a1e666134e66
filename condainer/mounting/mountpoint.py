"""The directory that a project's image is mounted at: what is there, making it, clearing it.

What it holds is never removed, and what somebody uses is never unmounted by force; an empty
directory is removed, with rmdir. Another user may have mounted over it in a namespace of theirs:
users tell each other that they need it by a locked file beside it. When to mount and to unmount
is the business of `lifetime` and `keeper`.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import os
import stat
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from condainer import locks, mounttable, users
from condainer.errors import CondainerError, MountError
from condainer.mounting import backends, live
from condainer.mounttable import Mount
from condainer.units import foreign

if TYPE_CHECKING:
    from collections.abc import Callable

    from condainer.project import Project

_POLL = 0.02
_PATIENCE = 3.0
"""Seconds for another user's directory to go, or to become a mount."""
_IMAGE_KINDS = {"squashfs", "fuse", "fuse.squashfuse", "fuse.squashfuse_ll", "fuse.condainer"}
"""File system types in the mount table that an image may have."""

_DEAD = {errno.ENOTCONN, errno.ECONNABORTED}


class RefusedError(MountError):
    """An image is not to be mounted now, in a namespace of its own neither."""


class State(enum.Enum):
    """What is at a mountpoint."""

    ABSENT = "not mounted"
    LIVE = "mounted"
    DEAD = "dead"


@dataclass(frozen=True)
class Situation:
    """What is at a mountpoint, and the line of the mount table that says so."""

    state: State
    mount: Mount | None


def look(project: Project) -> Situation:
    """See what is at a project's mountpoint.

    Raises:
        MountError: where another user's mount is there, or one of something else.
    """
    mount = mounttable.mount_at(project.prefix)
    if mount is None:
        return _look_for_unpacked(project)
    if mount.kind not in _IMAGE_KINDS:
        raise RefusedError(
            f"something else is mounted at {project.prefix}: {foreign(mount.source)} "
            f"({foreign(mount.kind)})",
            "it is left alone; unmount it yourself, or choose another mount_base_directory",
        )
    if mount.owner not in {None, os.getuid()}:
        raise MountError(
            f"{project.prefix} is mounted by user {mount.owner}",
            "on this node only one user at a time can have this image mounted there",
        )
    try:
        os.statvfs(project.prefix)  # the kernel asks the daemon; to stat it knows the answer itself
    except OSError as error:
        if error.errno == errno.ENOSYS:  # the daemon lives to say that it cannot tell
            return Situation(State.LIVE, mount)
        if error.errno in _DEAD:
            return Situation(State.DEAD, mount)
        if error.errno == errno.ENOENT:  # it went after the table was read
            return Situation(State.ABSENT, None)
        raise MountError(f"cannot look at {project.prefix}: {error.strerror}") from error
    return Situation(State.LIVE, mount)


def _look_for_unpacked(project: Project) -> Situation:
    record = live.read(project.places)
    if record is not None and record.backend == backends.EXTRACT:
        with contextlib.suppress(OSError):
            if live.root_of(str(project.prefix)) == record.root:
                mount = Mount(0, project.prefix, backends.EXTRACT, str(project.image), os.getuid())
                return Situation(State.LIVE, mount)
    return Situation(State.ABSENT, None)


def prepare(project: Project) -> None:
    """Make the directory to mount at, or see that the one there will do.

    Raises:
        MountError: where something else is there.
    """
    prefix = project.prefix
    with contextlib.suppress(FileExistsError):
        try:
            locks.check_base(prefix.parent)
            prefix.mkdir(mode=0o755)
            locks.set_mode(prefix, 0o755)
        except FileExistsError:
            raise
        except OSError as error:
            raise MountError(
                f"cannot make the mountpoint {prefix}: {error.strerror}",
                "mount_base_directory must exist and be writable on this node",
            ) from error
    status = prefix.lstat()
    hint = "look what it is, and move it away"
    if stat.S_ISLNK(status.st_mode):
        raise MountError(f"the mountpoint {prefix} is a symbolic link", hint)
    if not stat.S_ISDIR(status.st_mode):
        raise MountError(f"the mountpoint {prefix} is not a directory", hint)
    if status.st_uid != os.getuid():
        raise MountError(f"the mountpoint {prefix} belongs to user {status.st_uid}", hint)
    if any(prefix.iterdir()):
        raise MountError(
            f"the mountpoint {prefix} is not empty",
            "a build may have been killed; 'condainer build --force' then cleans up; or " + hint,
        )


def prepare_private(project: Project, on_warning: Callable[[str], None]) -> None:
    """Make the directory to mount at in a namespace of its own, or see that the one there will do.

    Whoever owns the directory can put another in its place, and so decide what programs find there.

    Args:
        project: whose image.
        on_warning: takes a line where the directory is of a user who has no say otherwise.

    Raises:
        MountError: where something else is there.
    """
    prefix = project.prefix
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        mount = mounttable.mount_at(prefix)
        try:
            status = prefix.lstat() if mount is None else None  # which another's mount would refuse
        except FileNotFoundError:
            prepare(project)
            return
        if status is not None and not stat.S_ISDIR(status.st_mode):
            break
        owner = status.st_uid if status is not None else mount.owner or 0 if mount else 0
        if owner == os.getuid() and mount is None:
            prepare(project)
            return
        if owner in _trusted(project):
            return
        if mount is not None:
            on_warning(
                f"{prefix} belongs to user {owner}, who uses this image as well, and whom you "
                "trust by going on; a mount_base_directory of your own would be safer"
            )
            return
        time.sleep(_POLL)  # it may just be going, or be about to be mounted
    raise MountError(f"the mountpoint {prefix} is not yours", "look what it is")


def _trusted(project: Project) -> set[int]:
    """The users who decide in any case what programs of a project do."""
    found = {0, os.getuid()}
    for path in (project.image, project.directory):
        with contextlib.suppress(OSError):
            found.add(path.stat().st_uid)
    return found


def take_away(project: Project, kind: str) -> str:
    """Take away what is at the mountpoint; gives an empty text, or why that cannot be done."""
    if kind == backends.EXTRACT:
        from condainer.mounting import extract

        return extract.remove(project)
    return _unmount(project, kind)


def _unmount(project: Project, kind: str, *, dead: bool = False) -> str:
    problem = backends.unmount(project.prefix, kind, dead=dead)
    return problem if problem and mounttable.mount_at(project.prefix) is not None else ""


def mend(project: Project) -> bool:
    """Take away a mount whose daemon has died; the caller holds the mount lock.

    Returns:
        whether there was one.

    Raises:
        MountError: where that cannot be done.
    """
    situation = look(project)
    if situation.state is not State.DEAD or situation.mount is None:
        return False
    problem = _unmount(project, situation.mount.kind, dead=True)
    if problem:
        raise MountError(
            f"the daemon behind {project.prefix} has died, and it cannot be unmounted: {problem}",
            "end the processes that still use it, then try again",
        )
    tidy(project)
    return True


def clear(project: Project) -> None:
    """Remove all that was noted of a mount that is not there; the caller holds the mount lock.

    Raises:
        BusyError: where somebody is about to use it.
    """
    descriptor = locks.acquire(project.use_lock)
    tidy(project)
    locks.discard(project.use_lock, descriptor)


def tidy(project: Project) -> None:
    """Remove what a mount leaves behind: what was noted of it, and the empty mountpoint."""
    _forget(project)
    _tidy_those_gone(project)
    _drop_claim(project)  # of one that was killed
    remove(project)
    for path in (project.mount_lock, project.keeper_lock):  # left by those that were killed
        if path.exists():
            with contextlib.suppress(CondainerError):
                locks.discard(path, locks.acquire(path))
    locks.tidy(project.runtime_directory)


def traces(project: Project) -> list[Path]:
    """The files that there are of a mount, besides the lock of who mounts."""
    return [
        path for path in (project.use_lock, project.keeper_lock, *_notes(project)) if path.exists()
    ]


def _notes(project: Project) -> tuple[Path, ...]:
    places = project.places
    return project.record, Path(places.part), project.pin, project.mount_log, Path(places.reads)


def _forget(project: Project) -> None:
    for path in _notes(project):
        path.unlink(missing_ok=True)


def _tidy_those_gone(project: Project) -> None:
    """Remove what was noted of a project's mounts in namespaces that were killed.

    Their names are of one state of the image and one place, so nobody comes by them again.
    """
    uuid = project.config.uuid
    found = project.runtime_directory.glob(f"{uuid}.*-*-*.*")
    for instance in {f".{path.name[len(uuid) :].split('.')[1]}" for path in found}:
        other = replace(project, instance=instance)
        if instance == project.instance:
            continue
        with contextlib.suppress(CondainerError):
            descriptor = locks.acquire(other.use_lock)
            try:
                keeper = locks.acquire(other.keeper_lock)
            except CondainerError:
                os.close(descriptor)
                raise
            _forget(other)
            locks.discard(other.keeper_lock, keeper)
            locks.discard(other.use_lock, descriptor)


def remove(project: Project) -> None:
    """Remove the empty mountpoint, unless a build or a mount in another namespace needs it.

    The kernel would take such a mount away with the directory.
    """
    if locks.is_held(
        project.build_lock
    ):  # which waits for those that have looked before: `staging`
        return
    own = project.use_lock
    found = own.parent.glob(f"{project.config.uuid}*")
    kinds = {".use", ".keeper"}
    others = [path for path in found if path.suffix in kinds and path.stem != own.stem]
    with contextlib.suppress(OSError, CondainerError):
        if not any(locks.is_held(path) for path in others) and not is_needed_by_others(project):
            project.prefix.rmdir()


def is_needed_by_others(project: Project) -> bool:
    """Whether another user has mounted over a project's mountpoint, in a namespace of theirs."""
    return bool(users.claimants(project.prefix))


def claim(project: Project) -> int:
    """Let the user whose directory the mountpoint is know that it is needed.

    Returns:
        the descriptor that says so while it is open; -1 where the directory is this user's own.

    Raises:
        MountError: where something stands in the way.
    """
    with contextlib.suppress(PermissionError):  # as another's mount answers
        if project.prefix.lstat().st_uid == os.getuid():
            return -1
    path = _claim(project)
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            descriptor = os.open(path, users.OPEN_FOREIGN | os.O_CREAT, 0o644)
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:  # somebody looks whether it is held
            os.close(descriptor)
            if time.monotonic() > deadline:
                raise MountError(f"cannot lock {path}: another user does") from None
            time.sleep(_POLL)
            continue
        except OSError as error:
            raise MountError(f"cannot make and lock {path}: {error.strerror}") from error
        if locks.is_current(path, descriptor):
            return descriptor
        os.close(descriptor)  # removed by another mount's keeper meanwhile


def disclaim(project: Project, descriptor: int) -> None:
    """Take back what `claim` has said."""
    if descriptor >= 0:
        os.close(descriptor)
        _drop_claim(project)


def _drop_claim(project: Project) -> None:
    """Remove what `claim` has made, unless another mount of this user's needs it."""
    path = _claim(project)
    with contextlib.suppress(OSError):
        descriptor = os.open(path, users.OPEN_FOREIGN)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        finally:
            os.close(descriptor)


def _claim(project: Project) -> Path:
    return project.prefix.with_name(f"{project.prefix.name}.{os.getuid()}")
