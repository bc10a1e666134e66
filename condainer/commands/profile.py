"""`profile`: runs a program once and notes which files of the environment it reads, in what order.

The file system in Python mounts the image for that run, and sees what is read. The list is written
beside the image. The next build puts the files of the list next to each other in the image;
`pipeline` does that.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from condainer.commands import console
from condainer.commands.exec import program
from condainer.errors import MountError
from condainer.mounting import target, use
from condainer.pipeline import parts
from condainer.project import project as project_module
from condainer.startup import listing
from condainer.system import process, runtime, signals

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from condainer.project.project import Project

EXAMPLES = """\
  condainer profile -- python -c 'import numpy, pandas'
  condainer profile -- python train.py    add what another program reads
  condainer profile --new -- python -V    start a new list
  condainer build --repack                use the list, without installing again
"""

_RECORD = "CONDAINER_FUSE_RECORD"

_DID_NOT_RUN = {125, 126, 127}
"""Exit statuses of `exec` if the program cannot run; a shell has the last two as well."""

_HEAD = """\
# What programs read when they start, in that order; 'condainer profile' wrote it.
# 'condainer build --force' and 'condainer build --repack' put these files next to each other.
"""


@dataclass(frozen=True)
class _Profile:
    """The result of a profile.

    Attributes:
        status: the program's exit status.
        files: number of files that it read.
        listed: number of files in the list now.
        problem: why the list was not changed; empty if it was.
    """

    status: int
    files: int
    listed: int
    problem: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `profile`.

    Args:
        parser: takes them.
    """
    parser.usage = "condainer [options] profile [-h] [--new] [--] CMD [ARG ...]"
    parser.add_argument(
        "--new", action="store_true", help="drop what earlier runs have found, and start a new list"
    )
    parser.add_argument(
        "argv",
        nargs=argparse.REMAINDER,
        metavar="CMD",
        help="the program to run, and its arguments",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run a program, and add the files that it reads to the list.

    Args:
        arguments: the parsed command line.

    Returns:
        The exit status of the program.
    """
    command = program(arguments)
    project = project_module.open_project(arguments.directory)
    if arguments.dry_run:
        text = f"would run {' '.join(command)} and write {project.startup_file}"
        console.inform(arguments, text)
        return 0
    done = _record(project, command, console.notes(arguments), new=arguments.new)
    if done.problem:
        console.warn(done.problem)
    else:
        text = (
            f"{project.startup_file}: {done.files:,} files read, {done.listed:,} listed; "
            "'condainer build --repack' puts them first"
        )
        console.inform(arguments, text)
    return done.status


def _record(
    project: Project, command: Sequence[str], on_note: Callable[[str], None] | None, *, new: bool
) -> _Profile:
    """Run a program, and add what it reads of the environment to the list.

    Args:
        project: whose environment.
        command: the program and its arguments.
        on_note: takes lines about mounting.
        new: drop what earlier runs have found.

    Raises:
        CondainerError: If the image cannot be mounted for this program alone.
    """
    use.unmount_if_idle(project)
    if target.look(project).state is not target.State.ABSENT:
        raise MountError(
            f"{project.prefix} is already mounted, so nobody can tell which program reads a file",
            "end what uses it, run 'condainer umount', then try again",
        )
    before = listing.read(project.startup_file)
    status, names = _watch(project, command, on_note)
    problem = _problem(status, len(names), len(before))
    listed: Sequence[str] = before
    if not problem:
        listed = listing.joined(() if new else before, names)
        _write(project, listed)
    return _Profile(status, len(names), len(listed), problem)


def _watch(
    project: Project,
    command: Sequence[str],
    on_note: Callable[[str], None] | None,
) -> tuple[int, list[str]]:
    """Run the program; gives its exit status, and the paths that it has read."""
    runtime.check(project.places.runtime_directory)
    noted = Path(project.places.reads)
    noted.unlink(missing_ok=True)  # left by a killed command
    execute = process.own_program("condainer", "-d", str(project.directory), "exec", "--")
    with signals.ending_in_order():
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
                raise MountError(f"{project.image} has been replaced meanwhile", "try again")
            return status, names
        finally:
            noted.unlink(missing_ok=True)
            os.close(held.descriptor)
            _unmount(project)


def _is_still(path: Path, before: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.stat(), before)
    except OSError:
        return False


def _unmount(project: Project) -> None:
    """Unmount, unless the program has left processes behind, or others use the mount."""
    try:
        use.unmount(project)
        use.end_private_mounts(project)
    except MountError as error:
        console.warn(
            f"{error.message}: what that has read is noted, too, and the mount stays until it ends"
        )


def _names(noted: Path, image: Path) -> list[str]:
    """The paths that were read, without those that a list cannot hold."""
    command = process.own_program("condainer.startup.record", str(noted), str(image))
    answer = process.call(command)
    if answer.returncode != 0:
        raise MountError(f"cannot tell what was read: {answer.stderr.strip()}", "try again")
    return [name for name in answer.stdout.split("\0") if name and name.isprintable()]


def _problem(status: int, count: int, before: int) -> str:
    if status in _DID_NOT_RUN:
        return f"it did not run (exit status {status}): nothing is noted"
    if status and count < before:
        read = f"it failed (exit status {status}) and read {count:,} files"
        return f"{read}: the list of {before:,} files stays as it is"
    return ""


def _write(project: Project, names: Sequence[str]) -> None:
    text = "".join(f"{name}\n" for name in names)
    umask = os.umask(0o022)
    os.umask(umask)
    parts.publish({project.startup_file: _HEAD + text}, 0o644 & ~umask)
