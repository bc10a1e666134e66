"""The exceptions that condainer names, each with the exit status it ends a command with.

How they are printed is `cli`'s business; nothing here prints.
"""

from __future__ import annotations


class CondainerError(Exception):
    """Something that went wrong and that a user can act on.

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
    """A file the user wrote cannot be read as what it should be."""


class ImageError(CondainerError):
    """A file is not the image it should be."""


class MountError(CondainerError):
    """An image cannot be mounted or unmounted."""


class TooLateError(CondainerError):
    """A mount that another process makes does not come in time."""


class ToolError(CondainerError):
    """A program is missing, too old, or failed."""


class BuildError(CondainerError):
    """A stage of a build failed."""


class NotExecutableError(CondainerError):
    """The command of `exec` is there but cannot be executed."""

    exit_status = 126


class CommandNotFoundError(CondainerError):
    """The command of `exec` is nowhere."""

    exit_status = 127


class InterruptedBySignalError(CondainerError):
    """A signal asked the command to end, and what it had begun is cleaned up.

    Args:
        signum: the number of the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by signal {signum}; what was unfinished is removed")
        self.exit_status = 128 + signum
