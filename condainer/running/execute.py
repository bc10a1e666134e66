"""`exec`: mounts if need be, then becomes the command.

No process stays in between, so that signals, job control, streams and the exit status are the
command's own. Nothing here writes to standard output. Where the mount is live, nothing is imported
that takes long: hundreds of ranks come this way at once.
"""

from __future__ import annotations

import _signal  # `signal` makes enumerations of it, which take long
import errno
import fcntl
import os
import stat
import time

from condainer.errors import CommandNotFoundError, ImageError, MountError, NotExecutableError
from condainer.mounting import live
from condainer.project.places import DEFAULT_BASE, Places
from condainer.running import variables
from condainer.system import files, trust
from condainer.system.locks import BusyError, Turn

TYPE_CHECKING = False  # importing `typing` takes as long as all of this does
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import NoReturn

    from condainer.mounting.use import OnNote
    from condainer.project.config import Config
    from condainer.project.project import Project

    Changes = Iterable[tuple[str, str | None]]

_SHELL = "/bin/sh"
_OUT_OF_THE_WAY = (200, 64, 24, 10)
"""Numbers for the descriptor that holds the mount, by preference: scripts use those below 10,
shells keep their own from 10 on and at 255, and a limit may be low."""

_ATTEMPTS = 3
_CONFIG_NAME = "condainer.yml"
_MOST = 1 << 16
"""Bytes of a `condainer.yml` that is read here."""
_HEXADECIMAL = frozenset("0123456789abcdef-")
_UUID = 36
"""Letters of a UUID."""


def at_once(
    directory: str, command: Sequence[str], on_warning: OnNote | None = None
) -> Turn | None:
    """Become a command that runs from a live mount; wait for it where somebody makes it just now.

    `condainer.yml` is only glanced at here: it has to be, letter by letter, what the keeper of the
    mount has read and checked.

    Args:
        directory: of the project.
        command: program and arguments; a name without a slash is looked up on its PATH.
        on_warning: takes a line about each activation script that is left out.

    Returns:
        where there is more to be done: the turn to make the mount, if it falls to this process.

    Raises:
        CommandNotFoundError: where there is no such command.
        NotExecutableError: where it cannot be executed.
        TooLateError: where the mount does not come in time.
    """
    try:
        path = os.path.join(directory, _CONFIG_NAME)
        text = files.read(path, most=_MOST).decode()
        uuid, base = _glance(text)
        image = live.identity(os.path.join(directory, f"{uuid}.squashfs"))
        way = trust.signature(base)
    except (OSError, ValueError):
        return None

    def fits(record: live.Record) -> bool:
        return (
            record.image == image
            and record.config == text
            and record.base == way
            and record.variables is not None
        )

    def look() -> list[Places]:
        return live.choices(base, uuid, image)

    try:
        found = live.enter(look, fits, time.monotonic() + live.DEADLINE)
    except BusyError:
        raise live.too_late(Places(base, uuid)) from None
    if not isinstance(found, Turn):
        descriptor, record = found
        live.step_in(Places(base, uuid).prefix, record)
        scripts = live.Scripts(*record.scripts) if record.scripts else None
        own = _variables(record.variables or (), scripts, record, on_warning)
        _run(command, descriptor, own)
    return found


def _glance(text: str) -> tuple[str, str]:
    """The uuid and the mount base directory, where they stand in a `condainer.yml` as usual.

    Raises:
        ValueError: where they do not.
    """
    found = {"uuid": "", "mount_base_directory": DEFAULT_BASE}
    for line in text.split("\n"):
        name, colon, value = line.partition(":")
        if colon and name in found:
            found[name] = value.partition(" #")[0].strip().strip("\"'")
    uuid, base = found["uuid"].lower(), found["mount_base_directory"].rstrip("/")
    if len(uuid) != _UUID or not set(uuid) <= _HEXADECIMAL or base[:1] != "/" or base[:2] == "//":
        raise ValueError(text)
    return uuid, base


def become(
    project: Project,
    command: Sequence[str],
    *,
    on_note: OnNote | None = None,
    on_warning: OnNote | None = None,
    turn: Turn | None = None,
) -> NoReturn:
    """Replace this process by a command that runs in a project's environment.

    Args:
        project: whose environment.
        command: program and arguments; a name without a slash is looked up on its PATH.
        on_note: takes lines about mounting, where that has still to be done.
        on_warning: takes a line where an older image is used than there is, and about each
            activation script that is left out.
        turn: to make the mount, where `at_once` has given it.

    Raises:
        ImageError: where the image is not whole.
        MountError: where it cannot be mounted.
        CommandNotFoundError: where there is no such command.
        NotExecutableError: where it cannot be executed.
    """
    from condainer.mounting import target, use
    from condainer.running import activation

    for attempt in range(_ATTEMPTS):
        held = use.use(
            project, on_note=on_note, on_warning=on_warning, turn=turn, may_be_private=True
        )
        turn = None
        try:
            held.step_in(project)
            snapshot = activation.load(project.prefix)
            break
        except (ImageError, MountError):
            last = attempt == _ATTEMPTS - 1
            if last or target.look(project).state is target.State.LIVE:
                raise
            os.close(held.descriptor)  # its daemon has died since
    scripts = live.Scripts(*snapshot.to_run, "", "") if snapshot.scripts else None
    if held.record is not None and held.record.scripts:
        scripts = live.Scripts(*held.record.scripts)
    own = _variables(snapshot.variables, scripts, project.config, on_warning)
    _run(command, held.descriptor, own)


def _variables(
    changes: Changes,
    scripts: live.Scripts | None,
    settings: live.Record | Config,
    on_warning: OnNote | None,
) -> dict[str, str]:
    """What the command runs with."""
    own = variables.apply(
        *(changes, _given_variables()),
        user_site=settings.user_site_packages,
        keep_python_path=settings.keep_python_path,
    )
    if scripts is None:
        return own
    from condainer.running import callers

    return callers.source(scripts, own, on_warning)


def _run(command: Sequence[str], held: int, own: Mapping[str, str]) -> NoReturn:
    os.set_inheritable(_out_of_the_way(held), True)  # noqa: FBT003
    # Python ignores these two, and what is ignored stays so in the program that comes after.
    _signal.signal(_signal.SIGPIPE, _signal.SIG_DFL)
    _signal.signal(_signal.SIGXFSZ, _signal.SIG_DFL)
    _execute(find_command(command[0], own), command, own)


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
        MountError: where a directory that may have it cannot be asked any more.
        NotExecutableError: where there is one that is not executable.
    """
    if "/" in name:
        return name
    seen = ""
    for directory in variables.get("PATH", os.defpath).split(":"):
        path = os.path.join(directory or ".", name)
        try:
            is_file = stat.S_ISREG(os.stat(path).st_mode)
        except OSError as error:
            if (
                error.errno == errno.ENOTCONN
            ):  # else a program of the same name further on would run
                raise MountError(f"the daemon behind {directory} has died", "try again") from error
            continue
        if is_file:
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
            if not os.path.exists(path):
                raise CommandNotFoundError(f"command not found: {path}") from error
            reason = "its interpreter is missing"
        raise NotExecutableError(f"cannot execute {path}: {reason}") from error


def _given_variables() -> dict[str, str]:
    """This process's variables as they were given to it.

    In the C locale Python sets LC_CTYPE for itself (PEP 538); the command did not ask for that.
    """
    variables = dict(os.environ)
    variables.pop("", None)  # which some systems pass on, and `execve` does not take
    if variables.pop("LC_CTYPE", None) is not None:
        with open("/proc/self/environ", "rb") as file:
            items = file.read().split(b"\0")
        for item in items:
            name, _, value = item.partition(b"=")
            if name == b"LC_CTYPE":
                variables["LC_CTYPE"] = os.fsdecode(value)
    return variables
