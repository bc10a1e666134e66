"""`gc`: takes away what killed processes of this user have left on this node.

Dead mounts, mounts that nobody keeps, staging directories of killed builds, lock files and empty
mountpoints. What is in use, being mounted or being built stays, and so does what is not empty.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from condainer import locks, mounttable
from condainer.config import Config
from condainer.errors import CondainerError, MountError
from condainer.mounting import extract, keeper, lifetime, mountpoint
from condainer.pipeline import staging
from condainer.places import DEFAULT_BASE
from condainer.project import Project

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_FILE = re.compile(
    rf"({_UUID})(\.[0-9a-f]+-[0-9a-f]+-[0-9a-f]+)?\.(?:build|mounting|use|keeper|mount|mount\.part|pin|log|reads|unpacking|results(?:\.[0-9a-f]{{16}})?)"
)
_MOUNTPOINT = re.compile(rf"condainer-({_UUID})")


def collect(base: Path | None, on_action: Callable[[str], None], *, dry_run: bool) -> None:
    """Look for what is left, and take it away.

    Args:
        base: a mount base directory to look in, besides the usual one and those that something is
            mounted in.
        on_action: takes a line about each thing that is done, or would be.
        dry_run: change nothing.
    """
    for each in _bases(base):
        for project in _projects(each):
            try:
                for text, act in _actions(project):
                    on_action(text)
                    if not dry_run:
                        act()
            except CondainerError as error:
                on_action(f"{project.prefix} is left as it is: {error.message}")
        if not dry_run:
            locks.tidy(each / f".condainer-{os.getuid()}")


def _bases(base: Path | None) -> list[Path]:
    found = {Path(DEFAULT_BASE), *([base] if base else [])}
    for mount in mounttable.mounts_at_or_below(Path("/")):
        if mount.owner == os.getuid() and _MOUNTPOINT.fullmatch(mount.mountpoint.name):
            found.add(mount.mountpoint.parent)
    return sorted(path for path in found if path.is_dir())


def _projects(base: Path) -> list[Project]:
    """The mounts of which there is any trace in a base directory."""
    runtime = base / f".condainer-{os.getuid()}"
    found = set()
    if os.path.lexists(runtime):
        locks.ensure_directory(runtime)
        for name in os.listdir(runtime):  # noqa: PTH208
            match = _FILE.fullmatch(name)
            if match is not None:
                found.add((match[1], match[2] or ""))
    for path in base.iterdir():
        match = _MOUNTPOINT.fullmatch(path.name)
        if match is not None and not path.is_symlink() and path.lstat().st_uid == os.getuid():
            found.add((match[1], ""))
    return [
        Project(base, Config(uuid=uuid, mount_base_directory=base), instance=instance)
        for uuid, instance in sorted(found, key=lambda pair: (pair[0], not pair[1]))
    ]


def _actions(project: Project) -> Iterator[tuple[str, Callable[[], object]]]:
    """What there is to do, in words, and how."""
    if locks.is_held(project.build_lock):
        return
    if project.build_lock.exists():
        yield f"remove what a killed build left at {project.prefix}", lambda: _unbuild(project)
    try:
        turn = locks.Turn(project.mount_lock)
    except locks.BusyError:
        return
    try:
        if project.instance:
            yield from _of_a_private_mount(project)
        else:
            yield from _of_a_mount(project)
    finally:
        turn.end()


def _unbuild(project: Project) -> None:
    with staging.claim(project):
        pass


def _of_a_private_mount(project: Project) -> Iterator[tuple[str, Callable[[], object]]]:
    if not _is_in_use(project):
        yield f"remove the lock files of a mount at {project.prefix}", lambda: _clear(project)


def _of_a_mount(project: Project) -> Iterator[tuple[str, Callable[[], object]]]:
    if os.path.lexists(project.places.unpacking) and not _is_in_use(project):
        text = f"remove what a killed unpacking left for {project.prefix}"
        yield text, lambda: extract.remove_part(project)
    situation = mountpoint.look(project)
    if situation.state is mountpoint.State.DEAD:
        yield f"unmount {project.prefix}, whose daemon has died", lambda: _mend(project)
    elif situation.state is mountpoint.State.LIVE:
        if locks.is_held(project.keeper_lock):
            return
        if locks.is_held(project.use_lock):
            yield f"keep {project.prefix} until its last use ends", lambda: keeper.adopt(project)
        else:
            yield f"unmount {project.prefix}, which nobody uses", lambda: _unmount(project)
        return
    left = mountpoint.traces(project)
    if left and not _is_in_use(project):
        yield f"remove the lock files of {project.prefix}", lambda: _clear(project)
    elif not left and _is_empty(project.prefix):
        text = f"remove the empty directory {project.prefix}"
        yield text, lambda: mountpoint.remove(project)


def _is_in_use(project: Project) -> bool:
    return locks.is_held(project.use_lock) or locks.is_held(project.keeper_lock)


def _unmount(project: Project) -> None:
    if not lifetime.unmount(project):
        raise MountError("it has gone by itself")


def _mend(project: Project) -> None:
    mountpoint.mend(project)
    _clear(project)


def _clear(project: Project) -> None:
    with contextlib.suppress(locks.BusyError):
        mountpoint.clear(project)


def _is_empty(directory: Path) -> bool:
    try:
        return not any(directory.iterdir())
    except OSError:
        return False
