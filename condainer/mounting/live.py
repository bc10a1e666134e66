"""The way to a live mount: what it serves, holding it, and who makes one where there is none.

Every `exec` comes through here, hundreds at the same moment, so nothing is imported that takes
long. What has to be done where there is no mount, or something is wrong with it, is the business
of `use`.

The keeper of a mount notes in a record what the mount serves. It lies in the runtime directory. It
counts only while somebody holds the keeper's lock: the directory may have come with a project.
"""

from __future__ import annotations

import os
import time

from condainer.errors import CondainerError, MountError, TooLateError
from condainer.mounting import asking, namespace
from condainer.project.places import Places, private_instance
from condainer.system import locks, notes, runtime, trust

TYPE_CHECKING = False  # importing `typing` takes as long as all of this does
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeGuard

DEADLINE = 30.0
"""Seconds after which a mount that does not come is an error."""

_HEAD = b"condainer mount 6\n"
_FIRST_PAUSE, _LONGEST_PAUSE = 0.004, 0.02


class Scripts:
    """Activation scripts that each caller has to run.

    Attributes:
        paths: of the scripts, in order.
        depends: the variables they can depend on; None where they may look at all.
        is_kept: whether they do the same again for the same caller.
        mount: tells this mount from others.
        results: the file where it is kept what they did; empty where nothing can be kept.
    """

    __slots__ = ("depends", "is_kept", "mount", "paths", "results")

    def __init__(
        self,
        paths: tuple[str, ...],
        depends: tuple[str, ...] | None,
        is_kept: bool,  # noqa: FBT001
        mount: str,
        results: str,
    ) -> None:
        self.paths = paths
        self.depends = depends
        self.is_kept = is_kept
        self.mount = mount
        self.results = results


class Record:
    """What a mount serves.

    Attributes:
        image: `identity` of the image's file.
        fingerprint: tells its content from that of others; empty where it is not known.
        root: device and inode of the root of the mount.
        base: `trust.signature` of the mount base directory, as it was when it was found safe.
        backend: the name of what serves it.
        daemon: the process that serves it, 0 where the kernel does.
        config: the text of the `condainer.yml` that it was mounted for.
        user_site_packages: as in `condainer.yml`.
        keep_python_path: as in `condainer.yml`.
        variables: what activation changes, as in `activation.Snapshot`; None where the image has
            no sound snapshot.
        scripts: what `Scripts` takes, where callers have to run any; else None.
        namespace: of a mount that is not for all to see, as `namespace.Place` has it; else None.
    """

    __slots__ = (
        *("image", "fingerprint", "root", "base", "backend", "daemon"),
        *("config", "user_site_packages", "keep_python_path", "variables", "scripts"),
        "namespace",
    )
    image: tuple[int, int, int, int]
    fingerprint: str
    root: tuple[int, int]
    base: tuple[trust.Step, ...]
    backend: str
    daemon: int
    config: str
    user_site_packages: bool
    keep_python_path: bool
    variables: tuple[tuple[str, str | None], ...] | None
    scripts: tuple[tuple[str, ...], tuple[str, ...] | None, bool, str, str] | None
    namespace: tuple[int, int, int, int, int] | None

    def __init__(self, *values: object) -> None:
        for name, value in zip(self.__slots__, values, strict=True):
            setattr(self, name, value)


def identity(image: str) -> tuple[int, int, int, int]:
    """What tells one file from another, and from what it was before.

    Raises:
        OSError: where there is none.
    """
    status = os.stat(image)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def write(path: str, record: Record) -> None:
    """Note what a mount serves.

    Raises:
        OSError: where it cannot be written; nothing is left of it then.
    """
    values = tuple(getattr(record, name) for name in Record.__slots__)
    runtime.publish(path, _HEAD + notes.dumps(values))


def read(places: Places) -> Record | None:
    """What the mount of a project serves, as was noted; None where nothing is noted.

    Raises:
        CondainerError: where the directory it lies in is not this user's own.
    """
    try:
        data = runtime.read(places.record)
    except OSError:
        return None
    if not data.startswith(_HEAD):
        return None  # of another version
    try:
        values = notes.loads(data[len(_HEAD) :])
    except ValueError:
        return None
    return Record(*values) if _is_sound(values) else None


def _is_sound(values: object) -> TypeGuard[tuple[object, ...]]:
    """Whether what was read has the form of a record."""
    if not isinstance(values, tuple) or len(values) != len(Record.__slots__):
        return False
    image, fingerprint, root, base, backend, daemon, config, *keys, variables, scripts, place = (
        values
    )
    return (
        _are(image, int, 4)
        and all(isinstance(text, str) for text in (fingerprint, backend, config))
        and _are(root, int, 2)
        and _are(base, tuple)
        and isinstance(daemon, int)
        and _are(tuple(keys), bool, 2)
        and (variables is None or are_changes(variables))
        and (scripts is None or _are_scripts(scripts))
        and (place is None or (_are(place, int, 5) and place[0] > 1))
    )


def _are(values: object, kind: type | tuple[type, ...], count: int = -1) -> bool:
    return (
        isinstance(values, tuple)
        and all(isinstance(value, kind) for value in values)
        and count in {-1, len(values)}
    )


def are_changes(values: object) -> TypeGuard[tuple[tuple[str, str | None], ...]]:
    """Whether a value says what becomes of variables: names, each with a value or None."""
    return isinstance(values, tuple) and all(
        _are(pair, (str, type(None)), 2) and pair[0] is not None for pair in values
    )


def _are_scripts(values: object) -> bool:
    if not isinstance(values, tuple) or len(values) != len(Scripts.__slots__):
        return False
    paths, depends, is_kept, *texts = values
    return (
        _are(paths, str)
        and (depends is None or _are(depends, str))
        and isinstance(is_kept, bool)
        and _are(tuple(texts), str)
    )


def is_live(places: Places, record: Record) -> bool:
    """Whether the mount that was noted is there, and is being served and kept.

    Raises:
        StuckError: if it is there and does not answer.
    """
    place = namespace.Place(*record.namespace) if record.namespace is not None else None
    if place is not None and not place.is_here():
        if not asking.runs(record.daemon):  # there is no way back for who finds out inside
            return False
        try:
            place.close(*place.open())
        except MountError:
            return False
    elif not _answers(places.prefix, record):
        return False
    return locks.is_held(places.keeper_lock, shared=True)


def _answers(prefix: str, record: Record) -> bool:
    try:
        return asking.root_of(prefix, record.daemon) == record.root
    except OSError:
        return False


def step_in(prefix: str, record: Record) -> None:
    """See what a mount serves: enter its namespace, where it has one of its own.

    Raises:
        MountError: where it is not there any more.
    """
    if record.namespace is not None:
        namespace.Place(*record.namespace).enter()
        if not _answers(prefix, record):
            raise MountError(f"the daemon behind {prefix} has died", "try again")


def enter(
    look: Callable[[], Sequence[Places]], fits: Callable[[Record], bool], deadline: float
) -> tuple[int, Record] | locks.Turn:
    """Hold a mount that is there, or become the one that makes it, while all others wait.

    Args:
        look: gives the mounts of one project that will do, the best first.
        fits: whether what a mount serves is what is wanted.
        deadline: on the monotonic clock.

    Returns:
        the descriptor that holds the mount, and what it serves; or the turn to make it, which the
        caller has to end.

    Raises:
        BusyError: where it has not come by then.
        CondainerError: where the runtime directory is not this user's own.
    """
    pause = _FIRST_PAUSE
    while True:
        there = look()
        for places in there:
            held = hold(places, fits)
            if held is not None:
                return held
        lock = there[0].mount_lock
        try:
            return locks.Turn(lock)
        except locks.BusyError:
            if time.monotonic() >= deadline:
                # Unpacking takes as long as it takes; whoever does it holds the lock.
                if not runtime.exists(there[0].unpacking) or _is_stopped(there[0]):
                    raise
                deadline += DEADLINE
        while locks.is_held(lock, shared=True) and time.monotonic() < deadline:
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


def _is_stopped(places: Places) -> bool:
    """Whether a process that unpacks an image, or waits for that, is stopped."""
    from pathlib import Path

    from condainer.system import processtable, users

    holders = users.users_of(Path(places.prefix), Path(places.mount_lock))
    pids = [*(user.pid for user in holders), *processtable.running_on(places.unpacking)]
    return any(asking.is_stopped(pid) for pid in pids)


def too_late(places: Places) -> TooLateError:
    """What to say where a mount has not come in time."""
    from pathlib import Path

    from condainer.system import users

    holders = users.users_of(Path(places.prefix), Path(places.mount_lock))
    who = f"process {users.describe(holders)}" if holders else "another process"
    return TooLateError(
        f"{places.prefix} did not get mounted within {DEADLINE:.0f} s: {who} has tried for as long",
        f"see {places.log}; look whether that process is stopped, then try again",
    )


def choices(base: str, uuid: str, image: tuple[int, int, int, int]) -> list[Places]:
    """The mounts that may be there of an image: the one for all to see, and others, if any."""
    found = [Places(base, uuid)]
    start = f"{uuid}{private_instance(image)}"
    names = runtime.names(found[0].runtime_directory)
    return found + [
        Places(base, uuid, name[len(uuid) : -len(".mount")])
        for name in names
        if name.startswith(start) and name.endswith(".mount")
    ]


def hold(places: Places, fits: Callable[[Record], bool]) -> tuple[int, Record] | None:
    """Hold a mount, where it is there and serves what is wanted.

    Raises:
        CondainerError: where the runtime directory is not this user's own.
    """
    record = read(places)
    if record is None or not fits(record):
        return None
    try:
        descriptor = locks.acquire(places.use_lock, shared=True, timeout=1.0)
    except locks.BusyError:
        return None
    try:
        record = read(places)  # it may have gone before it was held
        if record is not None and fits(record) and is_live(places, record):
            return descriptor, record
    except CondainerError:
        os.close(descriptor)
        raise
    locks.release(places.use_lock, descriptor)
    return None
