"""`gc`: cleans up on this node what killed processes of a user have left.

These are dead mounts, mounts that nobody keeps, unpacked images that nobody uses, staging
directories of killed builds, lock files and empty mountpoints. Everything stays that is in use, is
being mounted or built, or is not empty.

Root can clean up for other users. That happens in a process that has become the user: whatever the
user has planted, it makes the process do nothing that the user could not do anyway.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from condainer.commands import console
from condainer.errors import CondainerError, MountError
from condainer.mounting import extract, keeper, target, use
from condainer.pipeline import staging
from condainer.project.config import CONFIG_NAME, Config
from condainer.project.places import DEFAULT_BASE
from condainer.project.project import Project, open_project
from condainer.system import files, impersonation, locks, mounttable, runtime, trust

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

EXAMPLES = """\
  condainer gc
  condainer -n gc                          only say what it would do
  srun --ntasks-per-node=1 condainer gc    clean up on each node of a job
  condainer -q gc --user $SLURM_JOB_USER   in the epilogue of a batch system, as root
"""

_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_FILE = re.compile(
    rf"({_UUID})(\.[0-9a-f]+-[0-9a-f]+-[0-9a-f]+)?"
    r"\.(?:build|mounting|use|keeper|pin|log|reads|unpacking|(?:mount|results)(?:\.[0-9a-f]{16})?)"
)
_MOUNTPOINT = re.compile(rf"condainer-({_UUID})")
_NOBODY = 65534
_RUNTIME = re.compile(r"\.condainer-([0-9]+)")


@dataclass(frozen=True)
class _Teller:
    """Takes what there is to say.

    Attributes:
        action: takes a line about each thing that is done, or would be.
        note: takes a line about each thing that is left alone.
    """

    action: Callable[[str], None]
    note: Callable[[str], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `gc`.

    Args:
        parser: takes them.
    """
    whose = parser.add_mutually_exclusive_group()
    whose.add_argument("--user", metavar="USER", help="clean up after this user; needs root")
    whose.add_argument("--all", action="store_true", help="clean up after all users; needs root")


def run(arguments: argparse.Namespace) -> int:
    """Clean up.

    Args:
        arguments: the parsed command line.

    Returns:
        The exit status: the largest one if several users' remains cannot be cleaned up.
    """
    is_project = not files.is_missing(arguments.directory / CONFIG_NAME)
    base = open_project(arguments.directory).config.mount_base_directory if is_project else None
    done = []

    def act(text: str) -> None:
        done.append(text)
        console.inform(arguments, f"would {text}" if arguments.dry_run else text)

    teller = _Teller(act, console.notes(arguments) or (lambda _: None))
    failures = []
    for uid in _whose(arguments, base):
        try:
            _collect_of(uid, base, teller, dry_run=arguments.dry_run)
        except CondainerError as error:
            failures.append(error)
    for failure in failures:
        console.show_error(failure, verbose=arguments.verbose)
    if not done and not failures:
        others = arguments.user is not None or arguments.all
        text = f"nothing {'' if others else 'of yours '}is left behind on this node"
        console.inform(arguments, text)
    return max((failure.exit_status for failure in failures), default=0)


def _whose(arguments: argparse.Namespace, base: Path | None) -> list[int]:
    """The users to clean up after, by number."""
    if arguments.user is not None:
        return [trust.user_id(arguments.user)]
    return _owners(base) if arguments.all else [os.getuid()]


def _collect(base: Path | None, teller: _Teller, *, dry_run: bool) -> None:
    """Find what this user's processes have left, and remove it.

    Args:
        base: a further mount base directory to look in, besides the default one and those that
            contain mounts; None for none.
        teller: takes what there is to say.
        dry_run: change nothing.
    """
    for each in _bases(base):
        try:
            projects = _projects(each, teller)
        except (CondainerError, OSError) as error:
            teller.action(f"leave {each} as it is: {_words(error)}")
            continue
        for project in projects:
            try:
                _collect_one(project, teller, dry_run=dry_run)
            except (CondainerError, OSError) as error:
                teller.action(f"leave {project.prefix} as it is: {_words(error)}")
        if not dry_run:
            runtime.tidy(each / f".condainer-{os.getuid()}")


def _collect_one(project: Project, teller: _Teller, *, dry_run: bool) -> None:
    trust.check_base(project)
    for text, act in _actions(project):
        teller.action(text)
        if not dry_run:
            act()


def _words(error: CondainerError | OSError) -> str:
    if isinstance(error, CondainerError):
        return error.message
    return f"{error.filename or 'something'}: {error.strerror}"


def _owners(base: Path | None) -> list[int]:
    """Find the users of whom there is any trace on this node.

    A process of user nobody looks into directories, because what is mounted there may never answer.

    Args:
        base: as for `_collect`.
    """
    found = set()
    for mount in mounttable.mounts_at_or_below(Path("/")):
        if mount.owner is not None and _MOUNTPOINT.fullmatch(mount.mountpoint.name):
            found.add(mount.owner)

    def look(say: Callable[[str], None]) -> None:
        for each in {Path(DEFAULT_BASE), *([base] if base else [])}:
            with contextlib.suppress(OSError):
                for uid in _owners_in(each):
                    say(str(uid))

    return sorted(found | set(map(int, impersonation.run_as(_NOBODY, look))))


def _owners_in(base: Path) -> set[int]:
    found = set()
    mounted = {str(mount.mountpoint) for mount in mounttable.mounts_at_or_below(base)}
    top = base.resolve()
    for path in base.iterdir():
        is_ours = _MOUNTPOINT.fullmatch(path.name) or _RUNTIME.fullmatch(path.name)
        if is_ours and str(top / path.name) not in mounted:
            with contextlib.suppress(OSError):
                found.add(path.lstat().st_uid)
    return found


def _collect_of(uid: int, base: Path | None, teller: _Teller, *, dry_run: bool) -> None:
    """Do for another user what `_collect` does; needs root.

    Args:
        uid: number of the user.
        base: as for `_collect`.
        teller: takes what there is to say.
        dry_run: change nothing.

    Raises:
        CondainerError: If it does not finish.
    """
    if uid == os.getuid():
        _collect(base, teller, dry_run=dry_run)
        return
    who = trust.user_name(uid)

    def work(say: Callable[[str], None]) -> None:
        told = _Teller(lambda text: say(f"+{text}"), lambda text: say(f"-{text}"))
        _collect(base, told, dry_run=dry_run)

    for line in impersonation.run_as(uid, work):
        tell = teller.action if line[:1] == "+" else teller.note
        tell(f"{who}: {line[1:]}")


def _bases(base: Path | None) -> list[Path]:
    found = {Path(DEFAULT_BASE), *([base] if base else [])}
    for mount in mounttable.mounts_at_or_below(Path("/")):
        if mount.owner == os.getuid() and _MOUNTPOINT.fullmatch(mount.mountpoint.name):
            found.add(mount.mountpoint.parent)
    return sorted(path for path in found if path.is_dir())


def _projects(base: Path, teller: _Teller) -> list[Project]:
    """The mounts that this user has left any trace of in a base directory."""
    found = set()
    for name in runtime.names(base / f".condainer-{os.getuid()}"):
        match = _FILE.fullmatch(name)
        if match is not None:
            found.add((match[1], match[2] or ""))
    top = base.resolve()
    mounts = {str(mount.mountpoint): mount for mount in mounttable.mounts_at_or_below(base)}
    for path in base.iterdir():
        match = _MOUNTPOINT.fullmatch(path.name)
        if match is None:
            continue
        mount = mounts.get(str(top / path.name))
        try:  # not of a mount: it may never answer
            owner = path.lstat().st_uid if mount is None else mount.owner or 0
        except OSError as error:
            teller.note(f"{path} is ignored: {error.strerror}")
            continue
        if owner != os.getuid():
            teller.note(f"{path} is ignored: it belongs to {trust.user_name(owner)}")
        else:
            found.add((match[1], ""))
    return [
        Project(base, Config(uuid=uuid, mount_base_directory=base), instance=instance)
        for uuid, instance in sorted(found, key=lambda pair: (pair[0], not pair[1]))
    ]


def _actions(project: Project) -> Iterator[tuple[str, Callable[[], object]]]:
    """What to do: a line about it, and a function that does it."""
    if locks.is_held(project.build_lock):
        return
    if runtime.exists(project.build_lock):
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
    if runtime.exists(project.places.unpacking) and not _is_in_use(project):
        text = f"remove what a killed unpacking left for {project.prefix}"
        yield text, lambda: extract.remove_part(project)
    situation = target.look(project)
    if situation.state is target.State.DEAD:
        yield f"unmount {project.prefix}, whose daemon has died", lambda: _mend(project)
    elif situation.state is target.State.LIVE:
        if locks.is_held(project.keeper_lock):
            return
        if locks.is_held(project.use_lock):
            yield f"keep {project.prefix} until its last use ends", lambda: keeper.adopt(project)
        else:
            yield f"unmount {project.prefix}, which nobody uses", lambda: _unmount(project)
        return
    left = target.traces(project)
    if left and not _is_in_use(project):
        yield f"remove the lock files of {project.prefix}", lambda: _clear(project)
    elif not left and _is_empty(project.prefix) and not target.is_needed_by_others(project):
        text = f"remove the empty directory {project.prefix}"
        yield text, lambda: target.remove(project)


def _is_in_use(project: Project) -> bool:
    return locks.is_held(project.use_lock) or locks.is_held(project.keeper_lock)


def _unmount(project: Project) -> None:
    if not use.unmount(project):
        raise MountError("it is unmounted already")


def _mend(project: Project) -> None:
    target.mend(project)
    _clear(project)


def _clear(project: Project) -> None:
    with contextlib.suppress(locks.BusyError):
        target.clear(project)


def _is_empty(directory: Path) -> bool:
    try:
        return not any(directory.iterdir())
    except OSError:
        return False
