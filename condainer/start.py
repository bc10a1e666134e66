"""Where the program begins: `exec` as directly as can be, everything else by `cli`.

Thousands of ranks call `exec`, and parsing a command line in full takes longer than to run it.
What is not as simple as it mostly is, is left to `cli` as well.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # importing `typing` takes as long as all of this does
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn


_SIGINT = 2


def entry() -> NoReturn:
    """Run the command of this process, and end it."""
    from condainer.errors import CondainerError, InterruptedBySignalError, MountError

    turn, failure = None, None
    asked = simple_exec(sys.argv[1:])
    if asked is not None:
        from condainer import execution

        try:
            turn = execution.at_once(*asked)
        except MountError:
            pass  # its daemon has died just now: mending that is the ordinary way's business
        except CondainerError as error:
            failure = error
        except KeyboardInterrupt:
            failure = InterruptedBySignalError(_SIGINT)
    from condainer import cli

    cli.entry(turn, failure)


def simple_exec(arguments: Sequence[str]) -> tuple[str, list[str]] | None:
    """The project directory and the command of `[-q] [-d DIR] exec [--] CMD ...`.

    Returns:
        them, or None where the command line is another one.
    """
    directory = "."
    rest = iter(arguments)
    for word in rest:
        if word == "exec":
            command = list(rest)
            if command[:1] == ["--"]:
                return (directory, command[1:]) if command[1:] else None
            return (directory, command) if command and command[0][:1] != "-" else None
        if word in {"-d", "--directory"}:
            directory = next(rest, "")
        elif word not in {"-q", "--quiet"}:
            return None
    return None
