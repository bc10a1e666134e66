"""The directory that a project's image is mounted at: what is there, making it, clearing it.

What it holds is never removed, and what somebody uses is never unmounted by force; an empty
directory is removed, with rmdir. Another user may have mounted over it in a namespace of theirs:
users tell each other that they need it by a locked file beside it. When to mount and to unmount
is the business of `use` and `keeper`.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import fnmatch
import os
import stat
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from condainer.errors import CondainerError, MountError
from condainer.mounting import asking, backends, live
from condainer.system import locks, mounttable, runtime, trust, users
from condainer.system.mounttable import Mount
from condainer.units import foreign

if TYPE_CHECKING:
    from condainer.project.project import Project

_POLL = 0.02
_PATIENCE = 3.0
"""Seconds for another user's directory to go, or to become a mount."""
_IMAGE_KINDS = {
    *("squashfs", "fuse", "fuse.squashfuse", "fuse.squashfuse_ll", "fuse.condainer"),
    "fuse.fusepy",
}
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
        StuckError: if what is mounted does not answer.
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
        raise _mounted_by_another(project, mount)
    record = live.read(project.places)
    try:
        asking.see_served(str(project.prefix), record.daemon if record is not None else 0)
    except OSError as error:
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
            if asking.root_of(str(project.prefix), 0) == record.root:
                mount = Mount(0, project.prefix, backends.EXTRACT, str(project.image), os.getuid())
                return Situation(State.LIVE, mount)
    return Situation(State.ABSENT, None)


def is_there(project: Project) -> bool:
    """Whether there is anything at a project's mountpoint; what is mounted there is not asked."""
    try:
        os.close(os.open(project.prefix, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC))
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True


def check_unoccupied(project: Project) -> None:
    """See that no user who is not trusted has made what is at a project's mountpoint.

    Raises:
        MountError: if one has; says who, and what to do.
    """
    mount = mounttable.mount_at(project.prefix)
    if mount is not None:
        if (mount.owner or 0) not in trust.trusted(project):
            raise _mounted_by_another(project, mount)
        return
    with contextlib.suppress(FileNotFoundError):
        status = project.prefix.lstat()
        if status.st_uid not in trust.trusted(project):
            raise MountError(*trust.of_another(project, status))


def prepare(project: Project) -> None:
    """Make the directory to mount at, or see that the one there will do.

    Raises:
        MountError: where something else is there.
    """
    prefix = project.prefix
    with contextlib.suppress(FileExistsError):
        try:
            prefix.mkdir(mode=0o755)
            _open_to_all(prefix)
        except FileExistsError:
            raise
        except OSError as error:
            raise MountError(
                f"cannot make the mountpoint {prefix}: {error.strerror}",
                "mount_base_directory must exist and be writable on this node",
            ) from error
    status = prefix.lstat()
    hint = "look what it is, and move it away"
    if status.st_uid != os.getuid():
        raise MountError(*trust.of_another(project, status))
    if stat.S_ISLNK(status.st_mode):
        raise MountError(f"the mountpoint {prefix} is a symbolic link", hint)
    if not stat.S_ISDIR(status.st_mode):
        raise MountError(f"the mountpoint {prefix} is not a directory", hint)
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        prefix.chmod(0o755)
    if any(prefix.iterdir()):
        raise MountError(
            f"the mountpoint {prefix} is not empty",
            "a build may have been killed; 'condainer build --force' then cleans up; or " + hint,
        )


def _open_to_all(prefix: Path) -> None:
    """Give the mountpoint that this user has just made its mode, whatever an odd umask has left."""
    descriptor = os.open(prefix, os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_uid == os.getuid():
            Path(f"/proc/self/fd/{descriptor}").chmod(0o755)
    finally:
        os.close(descriptor)


def prepare_private(project: Project) -> None:
    """Make the directory to mount at in a namespace of its own, or see that the one there will do.

    Whoever owns the directory can put another in its place, in the namespace as well, and so
    decide what programs find there.

    Args:
        project: whose image.

    Raises:
        MountError: if it belongs to somebody who is not trusted, or something else is there.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            _prepare_beside(project)
        except MountError:
            if time.monotonic() > deadline:  # what is there may just be going
                raise
            time.sleep(_POLL)
        else:
            return


def _prepare_beside(project: Project) -> None:
    mount = mounttable.mount_at(project.prefix)
    if mount is not None:
        if (mount.owner or 0) not in trust.trusted(project):
            raise _mounted_by_another(project, mount)
        return
    try:
        status = project.prefix.lstat()
    except FileNotFoundError:
        prepare(project)
        return
    if status.st_uid == os.getuid():
        prepare(project)
    elif status.st_uid not in trust.trusted(project):
        raise MountError(*trust.of_another(project, status))
    elif not stat.S_ISDIR(status.st_mode):
        raise MountError(f"the mountpoint {project.prefix} is not a directory", "look what it is")
    else:
        trust.check_prefix(project)


def _mounted_by_another(project: Project, mount: Mount) -> MountError:
    return MountError(
        f"{project.prefix} is mounted by {trust.user_name(mount.owner or 0)}",
        f"try again when that has ended, or {trust.other_base(project)}",
    )


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
        if runtime.exists(path):
            with contextlib.suppress(CondainerError):
                locks.discard(path, locks.acquire(path))
    runtime.tidy(project.runtime_directory)


def traces(project: Project) -> list[Path]:
    """The files that there are of a mount, besides the lock of who mounts."""
    return [
        path
        for path in (project.use_lock, project.keeper_lock, *_notes(project))
        if runtime.exists(path)
    ]


def _notes(project: Project) -> tuple[Path, ...]:
    places = project.places
    there = runtime.names(project.runtime_directory)
    parts = [
        project.runtime_directory / name
        for path in (project.record, Path(places.results))
        for name in fnmatch.filter(there, f"{path.name}.*")
    ]
    own = (project.record, project.pin, project.mount_log)
    return (*own, Path(places.reads), Path(places.results), *parts)


def _forget(project: Project) -> None:
    for path in _notes(project):
        runtime.remove(path)


def _tidy_those_gone(project: Project) -> None:
    """Remove what was noted of a project's mounts in namespaces that were killed.

    Their names are of one state of the image and one place, so nobody comes by them again.
    """
    uuid = project.config.uuid
    found = fnmatch.filter(runtime.names(project.runtime_directory), f"{uuid}.*-*-*.*")
    for instance in {f".{name[len(uuid) :].split('.')[1]}" for name in found}:
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
    kinds = {".use", ".keeper"}
    with contextlib.suppress(OSError, CondainerError):
        found = fnmatch.filter(runtime.names(own.parent), f"{project.config.uuid}*")
        paths = [own.with_name(name) for name in found]
        others = [path for path in paths if path.suffix in kinds and path.stem != own.stem]
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
    if mounttable.mount_at(project.prefix) is None and (
        project.prefix.lstat().st_uid == os.getuid()
    ):
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
                raise MountError(
                    f"cannot lock {path}: another user does",
                    f"try again, or {trust.other_base(project)}",
                ) from None
            time.sleep(_POLL)
            continue
        except OSError as error:
            raise MountError(f"cannot make and lock {path}: {error.strerror}") from error
        status = os.fstat(descriptor)
        if status.st_uid != os.getuid():  # others would not heed it
            os.close(descriptor)
            raise MountError(
                f"{path} belongs to {trust.describe_owner(status)}; condainer needs that name",
                f"you cannot remove it: ask its owner or an administrator to; or "
                f"{trust.other_base(project)}",
            )
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(status, path.lstat()):
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
