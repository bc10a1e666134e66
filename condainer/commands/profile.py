"""`profile`: notes which files of an environment a command reads, and in what order.

The next build puts these next to each other in the image. The image is mounted by the file system
in Python meanwhile, which sees what is read; the list lies beside the image. Laying out is the
business of `pipeline`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from condainer.errors import MountError
from condainer.mounting import target, use
from condainer.pipeline import parts
from condainer.startup import listing
from condainer.system import process, runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from condainer.project.project import Project

_RECORD = "CONDAINER_FUSE_RECORD"

_DID_NOT_RUN = {125, 126, 127}
"""Exit statuses of `exec` where there is no such command; a shell's, where there is none in it."""

_HEAD = """\
# What programs read when they start, in that order; 'condainer profile' wrote it.
# 'condainer build --force' and 'condainer build --repack' put these files next to each other.
"""


@dataclass(frozen=True)
class Profile:
    """What came of it.

    Attributes:
        status: the command's exit status.
        files: how many it read.
        listed: how many the list has now.
        problem: why that was not written down, and a list that was there stays; else empty.
    """

    status: int
    files: int
    listed: int
    problem: str


def record(
    project: Project,
    command: Sequence[str],
    on_note: Callable[[str], None],
    on_warning: Callable[[str], None],
    *,
    new: bool = False,
) -> Profile:
    """Run a command, and add what it reads of the environment to the list.

    Args:
        project: whose environment.
        command: program and arguments.
        on_note: takes lines about mounting.
        on_warning: is told who else uses the mount in the end.
        new: leave out what other commands have read before.

    Raises:
        CondainerError: where the image cannot be mounted for this alone.
    """
    use.unmount_if_idle(project)
    if target.look(project).state is not target.State.ABSENT:
        raise MountError(
            f"{project.prefix} is mounted already, so nobody can see what one program reads",
            "end what uses it, run 'condainer umount', then try again",
        )
    before = listing.read(project.startup_file)
    status, names = _watch(project, command, on_note, on_warning)
    problem = _problem(status, len(names), len(before))
    listed: Sequence[str] = before
    if not problem:
        listed = listing.joined(() if new else before, names)
        _write(project, listed)
    return Profile(status, len(names), len(listed), problem)


def _watch(
    project: Project,
    command: Sequence[str],
    on_note: Callable[[str], None],
    on_warning: Callable[[str], None],
) -> tuple[int, list[str]]:
    """Run the command; gives its exit status, and what it has read."""
    runtime.check(project.places.runtime_directory)
    noted = Path(project.places.reads)
    noted.unlink(missing_ok=True)  # of one that was killed
    execute = process.own_program("condainer", "-d", str(project.directory), "exec", "--")
    with process.ending_in_order():
        os.environ[_RECORD] = str(noted)
        try:
            held = use.use(project, "python", on_note=on_note, may_be_private=True)
        finally:
            del os.environ[_RECORD]
        try:
            before = project.image.stat()
            status = process.pass_through([*execute, *command])
            names = _names(noted, project.image)
            if not _is_still(project.image, before):
                raise MountError(f"{project.image} is another by now", "try again")
            return status, names
        finally:
            noted.unlink(missing_ok=True)
            os.close(held.descriptor)
            _unmount(project, on_warning)


def _is_still(path: Path, before: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.stat(), before)
    except OSError:
        return False


def _unmount(project: Project, on_warning: Callable[[str], None]) -> None:
    """Unmount, unless the command has left something behind or somebody else has come."""
    try:
        use.unmount(project)
        use.end_private_mounts(project)
    except MountError as error:
        on_warning(
            f"{error.message}: what that has read is noted as well, and the mount stays until it "
            "ends"
        )


def _names(noted: Path, image: Path) -> list[str]:
    """The paths of what was read that a list can hold."""
    command = process.own_program("condainer.startup.record", str(noted), str(image))
    answer = process.call(command)
    if answer.returncode != 0:
        raise MountError(f"nobody can tell what was read: {answer.stderr.strip()}", "try again")
    return [name for name in answer.stdout.split("\0") if name and name.isprintable()]


def _problem(status: int, count: int, before: int) -> str:
    if status in _DID_NOT_RUN:
        return f"it did not run (exit status {status}): nothing is noted"
    if status and count < before:
        read = f"it failed (exit status {status}) and read {count:,} files"
        return f"{read}: the list of {before:,} that is there stays"
    return ""


def _write(project: Project, names: Sequence[str]) -> None:
    text = "".join(f"{name}\n" for name in names)
    umask = os.umask(0o022)
    os.umask(umask)
    parts.publish({project.startup_file: _HEAD + text}, 0o644 & ~umask)
