"""`profile`: notes which files of an environment a command reads, and in what order.

The next build puts these next to each other in the image. The image is mounted by the file system
in Python meanwhile, which sees what is read; the list lies beside the image. Laying out is the
business of `pipeline`.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from condainer import process
from condainer.errors import MountError
from condainer.mounting import lifetime, mountpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from condainer.project import Project

_RECORD = "CONDAINER_FUSE_RECORD"
_PATIENCE, _POLL = 30.0, 0.02
"""Seconds for the file system to end and write down what it saw, and between two looks."""

_DID_NOT_RUN = {125, 126, 127}
"""Exit statuses of `exec` where there is no such command; a shell's, where there is none in it."""

_HEAD = """\
# What a program reads when it starts, in that order; 'condainer profile' wrote it.
# 'condainer build --force' and 'condainer build --repack' put these files next to each other.
"""


def record(
    project: Project, command: Sequence[str], on_note: Callable[[str], None]
) -> tuple[int, int | None]:
    """Run a command, and note what it reads of the environment.

    Args:
        project: whose environment.
        command: program and arguments.
        on_note: takes lines about mounting.

    Returns:
        the command's exit status, and how many files it read; None where it did not run, and the
        list that is there stays.

    Raises:
        CondainerError: where the image cannot be mounted for this alone.
    """
    lifetime.unmount_if_idle(project)
    if mountpoint.look(project).state is not mountpoint.State.ABSENT:
        raise MountError(
            f"{project.prefix} is mounted already, so nobody can see what one program reads",
            "end what uses it, run 'condainer umount', then try again",
        )
    with process.ending_in_order(), tempfile.TemporaryDirectory(prefix="condainer-") as name:
        written = Path(name, "record")
        os.environ[_RECORD] = str(written)
        try:
            held = lifetime.use(project, "python", on_note=on_note, may_be_private=True)
        finally:
            del os.environ[_RECORD]
        execute = [sys.executable, "-m", "condainer", "-d", str(project.directory), "exec", "--"]
        try:
            status = process.pass_through([*execute, *command])
        finally:
            os.close(held.descriptor)
            lifetime.unmount(project)
            lifetime.end_private_mounts(project)
        names = _read(written)
    if status in _DID_NOT_RUN:
        return status, None
    text = "".join(f"{name}\n" for name in names)
    part = project.startup_file.with_name(f".{project.startup_file.name}.{os.getpid()}.part")
    try:
        part.write_text(_HEAD + text, encoding="utf-8")
        part.replace(project.startup_file)
    finally:
        part.unlink(missing_ok=True)
    return status, len(names)


def _read(path: Path) -> list[str]:
    """The paths that the file system has noted, once it has."""
    deadline = time.monotonic() + _PATIENCE
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(_POLL)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MountError("the file system has not said what was read", "try again") from error
    names = (name.decode("utf-8", "replace") for name in data.split(b"\0") if name)
    return [name for name in names if name.isprintable()]
