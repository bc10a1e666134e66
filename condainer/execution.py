"""`exec`: mounts if need be, then becomes the command.

No process stays in between, so that signals, job control, streams and the exit status are the
command's own. Nothing here writes to standard output, and nothing heavy is imported.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from condainer import activation
from condainer.errors import CommandNotFoundError, ImageError, NotExecutableError
from condainer.mounting import lifetime

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from condainer.activation import Snapshot
    from condainer.mounting.lifetime import OnNote
    from condainer.project import Project

_SHELL = "/bin/sh"
_OUT_OF_THE_WAY = (200, 64, 24, 10)
"""Numbers for the descriptor that holds the mount, by preference: scripts use those below 10,
shells keep their own from 10 on and at 255, and a limit may be low."""


def become(project: Project, command: Sequence[str], on_note: OnNote | None = None) -> NoReturn:
    """Replace this process by a command that runs in a project's environment.

    Args:
        project: whose environment.
        command: program and arguments; a name without a slash is looked up on its PATH.
        on_note: takes lines about mounting, where that has still to be done.

    Raises:
        ImageError: where the image is not whole.
        MountError: where it cannot be mounted.
        CommandNotFoundError: where there is no such command.
        NotExecutableError: where it cannot be executed.
    """
    held, snapshot = _acquire(project, on_note)
    descriptor = _out_of_the_way(held)
    variables = activation.apply(
        snapshot,
        _given_variables(),
        user_site=project.config.user_site_packages,
        keep_python_path=project.config.keep_python_path,
    )
    os.set_inheritable(descriptor, True)  # noqa: FBT003
    # Python ignores these two, and what is ignored stays so in the program that comes after.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    _execute(find_command(command[0], variables), command, variables)


def _acquire(project: Project, on_note: OnNote | None) -> tuple[int, Snapshot]:
    """Hold the mount, and read its snapshot; both once more where its daemon dies in between."""
    descriptor = lifetime.use(project, on_note=on_note)
    try:
        return descriptor, activation.load(project.prefix)
    except ImageError:
        if lifetime.look(project).state is lifetime.State.LIVE:
            raise
    os.close(descriptor)
    return lifetime.use(project, on_note=on_note), activation.load(project.prefix)


def _out_of_the_way(descriptor: int) -> int:
    """The same lock under a number that the command will not take for one of its own.

    Where standard input is closed, the lock would otherwise become it.
    """
    for number in _OUT_OF_THE_WAY:
        try:
            moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, number)
        except OSError:
            continue  # above the limit of this process
        os.close(descriptor)
        return moved
    return descriptor


def find_command(name: str, variables: Mapping[str, str]) -> str:
    """The file behind the name of a command, found as `execvp` finds it.

    Raises:
        CommandNotFoundError: where there is none.
        NotExecutableError: where there is one that is not executable.
    """
    if "/" in name:
        return name
    seen = ""
    for directory in variables.get("PATH", os.defpath).split(":"):
        path = os.path.join(directory or ".", name)  # noqa: PTH118
        if os.path.isfile(path):  # noqa: PTH113
            if os.access(path, os.X_OK):
                return path
            seen = seen or path
    if seen:
        raise NotExecutableError(f"cannot execute {seen}: Permission denied")
    raise CommandNotFoundError(
        f"command not found: {name}", "it is neither in the environment nor on PATH"
    )


def _execute(path: str, command: Sequence[str], variables: Mapping[str, str]) -> NoReturn:
    try:
        os.execve(path, list(command), variables)  # noqa: S606  (what `exec` is for)
    except OSError as error:
        if error.errno == errno.ENOEXEC:  # a script without a first line, as shells allow
            os.execve(_SHELL, [_SHELL, path, *command[1:]], variables)  # noqa: S606
        reason = error.strerror
        if error.errno in {errno.ENOENT, errno.ENOTDIR}:
            if not os.path.exists(path):  # noqa: PTH110
                raise CommandNotFoundError(f"command not found: {path}") from error
            reason = "its interpreter is missing"
        raise NotExecutableError(f"cannot execute {path}: {reason}") from error


def _given_variables() -> dict[str, str]:
    """This process's variables as they were given to it.

    In the C locale Python sets LC_CTYPE for itself (PEP 538); the command did not ask for that.
    """
    variables = dict(os.environ)
    if variables.pop("LC_CTYPE", None) is not None:
        for item in Path("/proc/self/environ").read_bytes().split(b"\0"):
            name, _, value = item.partition(b"=")
            if name == b"LC_CTYPE":
                variables["LC_CTYPE"] = os.fsdecode(value)
    return variables
