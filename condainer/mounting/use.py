"""The life of a mount: made by the first that needs it, shared by all, gone after the last.

Whoever uses a mount holds a shared lock on a file. The descriptor survives `execve`, and the
kernel drops the lock however the process ends, so the count is always right. A keeper, a process
of its own, serves the mount: it takes the lock for itself alone when nobody uses the mount any
more, and then unmounts, never by force. A mount that a user asked for by name is pinned: it stays
until that user unmounts it.

What a mountpoint holds is never removed; an empty one is, with rmdir.
"""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import os
import signal
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from condainer.errors import CondainerError, ImageError, MountError
from condainer.mounting import backends, live, namespace, target
from condainer.mounting.target import RefusedError, State
from condainer.project import image
from condainer.project.places import private_instance
from condainer.system import files, locks, runtime, trust

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from condainer.mounting.backends import Backend
    from condainer.mounting.live import Record
    from condainer.mounting.target import Situation
    from condainer.project.places import Places
    from condainer.project.project import Project
    from condainer.squashfs import Superblock
    from condainer.system.locks import Turn
    from condainer.system.users import User

    OnNote = Callable[[str], None]

DEADLINE = live.DEADLINE
_POLL = 0.02
_PATIENCE = 3.0
"""Seconds for another user's directory to go, or to become a mount."""
_TAKE_OVER = 5.0
"""Seconds for the shadow of a killed keeper to take its place."""
_A_MOMENT = 0.1
"""Seconds to wait for a lock that the keeper takes for an instant now and then, to see whether
anybody holds it."""


@dataclass(frozen=True)
class _Wishes:
    """How to mount, and to whom to tell what."""

    backend: str
    on_note: OnNote
    on_warning: OnNote


@dataclass(frozen=True)
class Held:
    """A mount that is held.

    Attributes:
        descriptor: of the lock: while it is open, here or in a program it was passed on to, the
            mount stays.
        record: what it serves; None where that was not noted.
    """

    descriptor: int
    record: Record | None

    def step_in(self, project: Project) -> None:
        """See the mount at its place: where it has a namespace of its own, enter that.

        Raises:
            MountError: where it is not there any more.
        """
        if self.record is not None:
            live.step_in(str(project.prefix), self.record)


def use(
    project: Project,
    backend: str = "auto",
    *,
    on_note: OnNote | None = None,
    on_warning: OnNote | None = None,
    turn: Turn | None = None,
    may_be_private: bool = False,
) -> Held:
    """See that an image is mounted, and hold it.

    Args:
        project: whose image.
        backend: name of the backend, where it has to be mounted first.
        on_note: takes a line about each backend that cannot be used, and the one that is.
        on_warning: takes a line where an older image is used than there is.
        turn: to mount it, where that has fallen to this process already.
        may_be_private: whether the mount may be in a namespace of its own, which this process has
            to step into; where it cannot be seen by all.

    Returns:
        what holds the mount.

    Raises:
        ImageError: where the image is not whole.
        MountError: where it cannot be mounted.
        TooLateError: where another process has tried to for too long.
    """
    check_image(project)
    trust.check_base(project)
    private = _private(project) if may_be_private else None
    wishes = _Wishes(backend, on_note or _say_nothing, on_warning or _say_nothing)
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        if turn is None:
            found = _enter(project, private, deadline)
            if isinstance(found, tuple):
                return Held(*found)
            turn = found
        try:
            held = _see_to(project, private, wishes)
        finally:
            turn.end()
        if held is not None:
            return held
        turn = None  # it was mounted and has gone again
    raise live.too_late(project.places)


def _say_nothing(_text: str) -> None:
    """What takes lines that nobody wants."""


def _private(project: Project) -> Project:
    """The same project with the mount that its image has in a namespace of its own."""
    instance = private_instance(live.identity(str(project.image)), namespace.here())
    return replace(project, instance=instance)


def private_mounts(project: Project) -> list[Project]:
    """The mounts of a project's images that are in namespaces of their own, of this user."""
    uuid, suffix = project.config.uuid, ".keeper"
    return [
        replace(project, instance=name[len(uuid) : -len(suffix)])
        for name in sorted(runtime.names(project.runtime_directory))
        if fnmatch.fnmatchcase(name, f"{uuid}.?*-*{suffix}")
        and locks.is_held(project.runtime_directory / name)
    ]


def _enter(project: Project, private: Project | None, deadline: float) -> tuple[int, Record] | Turn:
    identity = live.identity(str(project.image))
    base, uuid = str(project.config.mount_base_directory), project.config.uuid

    def look_around() -> list[Places]:
        return live.choices(base, uuid, identity) if private else [project.places]

    try:
        return live.enter(look_around, lambda record: record.image == identity, deadline)
    except locks.BusyError:
        raise live.too_late(project.places) from None


def _see_to(project: Project, private: Project | None, wishes: _Wishes) -> Held | None:
    """Make of what is at the mountpoint what should be there, and hold it; others wait."""
    failures: list[MountError] = []
    for words, see_to in _ways(project, private, wishes):
        for text in (*(failure.message for failure in failures[-1:]), words):
            if text:
                wishes.on_note(text)
        try:
            return see_to()
        except MountError as error:
            failures.append(error)
            if isinstance(failures[0], RefusedError):
                raise
    if len(failures) > 1:
        wishes.on_note(failures[-1].message)
    raise next((each for each in failures if isinstance(each, trust.ExposedError)), failures[0])


def _ways(
    project: Project, private: Project | None, wishes: _Wishes
) -> Iterator[tuple[str, Callable[[], Held | None]]]:
    """How it can be seen to, the best first, and what to say about it."""
    own = "mounting in a namespace of its own"
    if private is None or wishes.backend == backends.EXTRACT:
        yield "", lambda: _see_to_shared(project, wishes, stand_in=private)
    elif backends.needs_namespace():
        yield f"there is no setuid fusermount: {own}", lambda: _see_to_private(private, wishes)
    else:
        yield "", lambda: _see_to_shared(project, wishes, stand_in=private)
        yield own, lambda: _see_to_private(private, wishes)
    if wishes.backend == "auto":
        unpacking = replace(wishes, backend=backends.EXTRACT)
        yield "", lambda: _see_to_shared(project, unpacking, stand_in=None)


def _see_to_shared(project: Project, wishes: _Wishes, stand_in: Project | None) -> Held | None:
    from condainer.mounting import keeper

    pinned = runtime.exists(project.pin)
    descriptor = _hold(project)
    try:
        situation = target.look(project)
        if situation.state is State.LIVE and not locks.is_held(project.keeper_lock):
            wishes.on_note(f"{project.prefix} is mounted, but nobody keeps it: doing so again")
            keeper.adopt(project)
        if situation.state is State.LIVE and not _serves(project):
            os.close(descriptor)
            problem = _unmount_idle(project, situation)
            descriptor = _hold(project)
            situation = target.look(project)
            if problem and stand_in is not None:
                held = _beside_the_old(project, stand_in, wishes)
                if held is not None:
                    os.close(descriptor)
                    return held
        if situation.state is not State.LIVE:
            _mount_unless_mounted(project, situation, wishes)
            if pinned:
                pin(project)
        if target.look(project).state is State.LIVE:
            return Held(descriptor, live.read(project.places))
    except BaseException:
        _let_go(project, descriptor)
        raise
    _let_go(project, descriptor)
    return None


def _mount_unless_mounted(project: Project, situation: Situation, wishes: _Wishes) -> None:
    """Mount; where something else has been mounted meanwhile, leave it to be looked at."""
    from condainer.mounting import keeper

    if runtime.exists(project.mount_log) and not locks.is_held(project.keeper_lock):
        keeper.end_orphans(project)
        situation = target.look(project)
    try:
        _mount(project, situation, wishes)
    except MountError:
        if target.look(project).state is situation.state:
            raise


def _beside_the_old(project: Project, stand_in: Project, wishes: _Wishes) -> Held | None:
    """The new image in a namespace of its own, or else None: then the old one has to do."""
    try:
        return _see_to_private(stand_in, wishes)
    except MountError as error:
        wishes.on_note(error.message)
    wishes.on_warning(
        f"{project.prefix} is in use and holds the image from before the last build; so does this "
        "command"
    )
    return None


def _see_to_private(private: Project, wishes: _Wishes) -> Held:
    """Mount in a namespace of its own, or hold what is mounted there."""
    if locks.is_held(private.build_lock):  # which removes the directory, and all mounts on it
        raise _being_built(private)
    descriptor = _hold(private)
    try:
        return Held(descriptor, _private_record(private, wishes))
    except BaseException:
        _let_go(private, descriptor)
        raise


def _private_record(private: Project, wishes: _Wishes) -> Record:
    """What a mount in a namespace of its own serves, which is made where nobody keeps one.

    The keeper there is may be one that takes over, or whose daemon has died and that is going.
    """
    deadline = time.monotonic() + _TAKE_OVER
    while True:
        record = live.read(private.places)
        if record is not None and live.is_live(private.places, record):
            return record
        if time.monotonic() > deadline:
            raise MountError(f"what is mounted at {private.prefix} is just going", "try again")
        if locks.is_held(private.keeper_lock, shared=True):
            time.sleep(_POLL)
        else:
            _start_first(private, backends.candidates(wishes.backend, wishes.on_note), wishes)


def _serves(project: Project) -> bool:
    """Whether what is mounted is a project's image as it is now; also where that is not known."""
    record = live.read(project.places)
    if record is None or not record.fingerprint:
        return True
    if record.image == live.identity(str(project.image)):
        return True
    return record.fingerprint == image.fingerprint(project.image)


def offer(project: Project) -> Path:
    """The lock file, made where it is missing, for a process that is to open it for `share`."""
    os.close(_hold(project))
    return project.use_lock


def is_offered(project: Project, descriptor: int) -> bool:
    """Whether a descriptor is still of the lock file that `offer` has made.

    Args:
        project: whose mount.
        descriptor: opened by another process on that file.

    Raises:
        MountError: If it is not open.
    """
    try:
        return locks.is_current(project.use_lock, descriptor)
    except OSError as error:
        raise MountError(f"descriptor {descriptor} cannot hold the mount: {error}") from error


def share(project: Project, descriptor: int) -> bool:
    """Let a descriptor that this process inherited hold a mount as well; the caller holds it.

    The lock belongs to the open file, so whoever passed the descriptor on has it from now on.

    Args:
        project: whose image.
        descriptor: opened by another process on the project's lock file.

    Returns:
        whether it holds the mount now. It does not where another process has unmounted meanwhile,
        and removed the file that was opened.

    Raises:
        MountError: where it is not open.
    """
    if not is_offered(project, descriptor):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        raise MountError(f"descriptor {descriptor} cannot hold the mount: {error}") from error
    return True


def check_image(project: Project) -> Superblock:
    """See that a project has an image, and that it is whole.

    Raises:
        ImageError: where it is not.
    """
    if files.is_absent(project.image):
        raise ImageError(f"there is no image {project.image}", "make one with 'condainer build'")
    return image.read_superblock(project.image)


def pin(project: Project) -> None:
    """Let a mount stay when nobody uses it; the caller holds it."""
    os.close(runtime.open_file(project.pin, os.O_WRONLY | os.O_CREAT))


def unmount(project: Project) -> bool:
    """Unmount a project's image, unless somebody uses it.

    Returns:
        whether there was anything to unmount.

    Raises:
        MountError: where it is in use, and by whom.
    """
    from condainer.system import users

    situation = target.look(project)
    if situation.mount is None:
        sweep(project)
        return False
    if situation.state is State.DEAD:
        try:
            descriptor = locks.acquire(project.mount_lock, timeout=DEADLINE)
        except locks.BusyError:
            raise live.too_late(project.places) from None
        try:
            has_died = target.mend(project)  # or else another has repaired it in between
        finally:
            locks.discard(project.mount_lock, descriptor)
        return unmount(project) or has_died
    problem = _unmount_idle(project, situation)
    if problem:
        raise _in_use(project, users.users_of(project.prefix, project.use_lock), problem)
    return True


def sweep(project: Project) -> None:
    """Remove what killed processes have noted of a mount that is not there."""
    from condainer.mounting import extract

    unpacking = runtime.exists(project.places.unpacking)
    if not any((unpacking, runtime.exists(project.mount_lock), target.traces(project))):
        return
    with contextlib.suppress(locks.BusyError):
        turn = locks.Turn(project.mount_lock)
        try:
            if target.look(project).mount is None and not locks.is_held(project.keeper_lock):
                if unpacking:
                    extract.remove_part(project)
                target.clear(project)
        finally:
            turn.end()


def _unmount_idle(project: Project, situation: Situation) -> str:
    """Unmount what nobody uses; gives an empty text, or why it cannot be done."""
    if situation.mount is None:
        return ""
    try:
        descriptor = locks.acquire(project.use_lock, timeout=_A_MOMENT)
    except locks.BusyError:
        return "a process of another user"
    problem = target.take_away(project, situation.mount.kind)
    if problem:
        os.close(descriptor)
        return problem
    target.tidy(project)
    locks.discard(project.use_lock, descriptor)
    return ""


def end_private_mounts(project: Project) -> int:
    """Let those that are in namespaces of their own go at once, not after the idle time.

    Returns:
        how many there are.

    Raises:
        MountError: where one is in use, and by whom.
    """
    from condainer.system.users import users_of

    mounts = private_mounts(project)
    for private in mounts:
        who = users_of(private.prefix, private.use_lock)
        if who:
            raise _in_use(private, who)
        record = live.read(private.places)
        if record is not None and record.namespace is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(record.namespace[0], signal.SIGTERM)
    deadline = time.monotonic() + _TAKE_OVER
    while private_mounts(project) and time.monotonic() < deadline:
        time.sleep(_POLL)
    return len(mounts)


def unmount_if_idle(project: Project) -> None:
    """Unmount what an `exec` mounted, where nobody uses it any more and nobody pinned it."""
    if not runtime.exists(project.pin):
        with contextlib.suppress(CondainerError):
            if unmount(project):
                wait_until_gone(project)
    with contextlib.suppress(CondainerError):
        end_private_mounts(project)


def is_idle(project: Project) -> bool:
    """Whether there is a mount that `unmount_if_idle` would take away; changes nothing."""
    from condainer.system import users

    with contextlib.suppress(CondainerError):
        state = target.look(project).state
        if state is State.ABSENT or runtime.exists(project.pin):
            return False
        if state is State.LIVE:
            os.close(locks.acquire(project.use_lock, timeout=_A_MOMENT))
        return state is State.DEAD or not users.users_of(project.prefix, project.use_lock)
    return False


def _hold(project: Project) -> int:
    try:
        return locks.acquire(project.use_lock, shared=True, timeout=DEADLINE)
    except locks.BusyError:
        raise MountError(
            f"{project.prefix} has been being unmounted for {DEADLINE:.0f} s", "try again"
        ) from None


def _let_go(project: Project, descriptor: int) -> None:
    """Drop the hold on a mount that did not come, and remove the lock file after the last one."""
    if _is_ours(project):
        os.close(descriptor)
    else:
        runtime.remove(project.mount_log)
        locks.release(project.use_lock, descriptor)


def _is_ours(project: Project) -> bool:
    """Whether this user has a mount there, dead or alive."""
    try:
        return target.look(project).mount is not None
    except MountError:
        return False


def _mount(project: Project, situation: Situation, wishes: _Wishes) -> None:
    """Mount, where nothing lives; the caller holds the mount lock and the mount."""
    candidates = backends.candidates(wishes.backend, wishes.on_note)
    deadline = time.monotonic() + _PATIENCE
    while situation.state is State.ABSENT and locks.is_held(project.keeper_lock):
        if runtime.exists(project.places.unpacking):  # for a command that was killed
            deadline = time.monotonic() + _PATIENCE  # it is noted only after it was renamed
        elif time.monotonic() > deadline:  # it is not just going
            raise MountError(f"{project.prefix} is mounted in another mount namespace")
        time.sleep(_POLL)
        if target.look(project).state is not State.ABSENT:
            return
    if situation.state is State.DEAD:
        wishes.on_note(f"the daemon behind {project.prefix} has died: mounting anew")
        target.mend(project)
    if locks.is_held(project.build_lock):
        raise _being_built(project)
    _start_first(project, candidates, wishes)


def _start_first(project: Project, candidates: list[Backend], wishes: _Wishes) -> None:
    """Mount with the first backend that can: one may be there and know no zstd, for example."""
    from condainer.mounting import keeper

    deadline = time.monotonic() + DEADLINE
    problems: list[str] = []
    for backend in candidates:
        if project.instance:
            target.prepare_private(project)
        else:
            target.prepare(project)
        if backend.name == backends.EXTRACT:
            wishes.on_warning(f"unpacking {project.image}, once for this node")
        try:
            keeper.start(project, backend)
        except MountError as error:
            target.remove(project)
            wishes.on_note(error.message)
            problems.append(error.message)
            if backend is candidates[-1] or time.monotonic() > deadline:
                raise MountError("; ".join(problems), error.hint) from error
        except BaseException:
            target.remove(project)
            raise
        else:
            wishes.on_note(f"mounted with {backend.name}")
            return


def wait_until_gone(project: Project, seconds: float = 5.0) -> None:
    """Wait until the keeper of an unmounted image has tidied up."""
    deadline = time.monotonic() + seconds
    while target.is_there(project) and time.monotonic() < deadline:
        time.sleep(_POLL)
    runtime.tidy(project.runtime_directory)


def _being_built(project: Project) -> RefusedError:
    from condainer.system.users import describe, users_of

    who = describe(users_of(project.prefix, project.build_lock)) or "another process"
    return RefusedError(
        f"the image of {project.directory} is being built by {who}", "wait until that has ended"
    )


def _in_use(project: Project, users: list[User], problem: str = "") -> MountError:
    from condainer.system.users import describe

    who = describe(users) or problem or "a process of another user"
    return MountError(f"{project.prefix} is in use by {who}", "end these first, then try again")
