"""The errors that condainer reports, each with the exit status of the command.

`commands/console.py` prints them.
"""

from __future__ import annotations

import errno


class CondainerError(Exception):
    """Something went wrong that a user can act on.

    Args:
        message: what happened, and to which file or command.
        hint: what to do next; may be empty.
    """

    exit_status = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(CondainerError):
    """A file that the user wrote is missing or wrong."""


class ImageError(CondainerError):
    """An image is missing or damaged."""


class MountError(CondainerError):
    """An image cannot be mounted or unmounted."""


class TooLateError(CondainerError):
    """Another process does not finish a mount in time."""


class ToolError(CondainerError):
    """A program is missing, is too old, or has failed."""


class BuildError(CondainerError):
    """A stage of a build has failed."""


class NotExecutableError(CondainerError):
    """The program of `exec` exists but cannot be executed."""

    exit_status = 126


class CommandNotFoundError(CondainerError):
    """There is no such program as `exec` is to run."""

    exit_status = 127


class InterruptedBySignalError(CondainerError):
    """A signal has ended the command, and its unfinished work is cleaned up.

    Args:
        signum: number of the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by signal {signum}; what was unfinished is removed")
        self.exit_status = 128 + signum


NEEDS_PROC = "condainer needs /proc to be mounted, and to be that of its own processes"
"""What to do where a file of /proc cannot be read."""

_HINTS = {
    errno.EAGAIN: "no more processes or threads may be started: see 'ulimit -u', and the limits of "
    "this job or container",
    errno.ENOMEM: "there is too little memory: see 'ulimit -v', and the limits of this job",
    errno.EMFILE: "too many files are open: see 'ulimit -n'",
    errno.ENFILE: "too many files are open on this machine: ask an administrator",
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there: a quota is reached",
    errno.ESTALE: "the file server has lost or replaced it: try again",
    errno.EIO: "the disk or the file server behind it fails: ask an administrator",
}


def named(error: BaseException) -> CondainerError:
    """Turn any exception into an error that can be reported.

    Args:
        error: one of condainer's own, which is returned as it is; one of the operating system,
            which names a file; or an unexpected one, which is reported as a bug.
    """
    if isinstance(error, CondainerError):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        files = [_name_of(name) for name in (error.filename, error.filename2) if name is not None]
        is_of_proc = any(f"{name}/".startswith("/proc/") for name in files)
        hint = NEEDS_PROC if is_of_proc else ""
        told = CondainerError(
            ": ".join([*files, error.strerror or str(error)]), _HINTS.get(error.errno, hint)
        )
    elif isinstance(error, MemoryError):
        told = CondainerError("out of memory", _HINTS[errno.ENOMEM])
    elif isinstance(error, RuntimeError) and "start new thread" in str(error):
        told = CondainerError("no thread can be started", _HINTS[errno.EAGAIN])
    else:
        what = f"{type(error).__name__}: {error}"
        hint = "this is a bug in condainer; run again with -v for a traceback to report"
        told = CondainerError(what, hint)
    told.__cause__ = error
    return told


def _name_of(name: object) -> str:
    """The name of a file as the operating system has it: a string, bytes, or a descriptor."""
    return name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else str(name)
