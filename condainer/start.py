"""Where the program begins: a short way for `exec`, and `cli` for everything else.

Thousands of processes may call `exec` at the same time. To parse a command line in full takes
longer than `exec` itself. So `exec` with the usual options is recognised here.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # importing `typing` takes as long as all of this does
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn


def entry() -> NoReturn:
    """Run the command of this process, then end the process."""
    failure = None
    asked = simple_exec(sys.argv[1:])
    if asked is not None:
        try:
            _exec(*asked)
        except BaseException as error:  # noqa: BLE001  (told where all errors are)
            failure = error
    from condainer import cli

    cli.entry(failure)


def _exec(directory: str, command: list[str], warns: bool) -> NoReturn:  # noqa: FBT001
    from condainer.errors import MountError
    from condainer.running import execute

    turn = None
    try:
        try:
            turn = execute.at_once(directory, command, _warn if warns else None)
        except MountError:
            pass  # its daemon has died just now: that is mended below
        from pathlib import Path

        from condainer.project import project

        execute.become(
            *(project.open_project(Path(directory)), command),
            on_warning=_warn if warns else None,
            turn=turn,
        )
    finally:
        if turn is not None:
            turn.end()


def _warn(text: str) -> None:
    from condainer.commands import console

    console.warn(text)


def simple_exec(arguments: Sequence[str]) -> tuple[str, list[str], bool] | None:
    """Recognise `[-q] [-d DIR] exec [--] CMD ...`.

    Args:
        arguments: of this process, without its name.

    Returns:
        The project directory, the program with its arguments, and whether to warn. None if the
        command line looks different.
    """
    directory, warns = ".", True
    rest = iter(arguments)
    for word in rest:
        if word == "exec":
            command = list(rest)
            plain = bool(command) and command[0][:1] != "-"
            if command[:1] == ["--"]:
                command = command[1:]
                plain = bool(command)
            return (directory, command, warns) if plain else None
        if word in {"-d", "--directory"}:
            directory = next(rest, "")
        elif word in {"-q", "--quiet"}:
            warns = False
        else:
            return None
    return None
