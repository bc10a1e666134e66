"""`exec`: becomes a program that runs from the image.

Most `exec` never come here: `start` takes a shorter way, without a parser.
"""

from __future__ import annotations

import argparse

from condainer.commands import console
from condainer.errors import CondainerError
from condainer.project import project as project_module
from condainer.running import execute

EXAMPLES = """\
  condainer exec -- python script.py --option
  srun -n 128 condainer -d /project/env exec -- python rank.py

The exit status is that of the program. It is 125 if condainer itself failed, 126 if
the program cannot be executed, and 127 if there is no such program.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `exec`.

    Args:
        parser: takes them.
    """
    parser.usage = "condainer [options] exec [-h] [--] CMD [ARG ...]"
    parser.add_argument(
        "argv",
        nargs=argparse.REMAINDER,
        metavar="CMD",
        help="the program to run, and its arguments",
    )


def program(arguments: argparse.Namespace) -> list[str]:
    """The program that a command line names, with its arguments.

    Args:
        arguments: the parsed command line of `exec` or `profile`.

    Raises:
        CondainerError: If it names none.
    """
    given: list[str] = arguments.argv[1:] if arguments.argv[:1] == ["--"] else arguments.argv
    if not given:
        name = arguments.command
        raise CondainerError(
            f"{name} needs a command to run", f"for example: condainer {name} -- python -V"
        )
    return given


def run(arguments: argparse.Namespace) -> int:
    """Become the program; returns only with --dry-run.

    Args:
        arguments: the parsed command line.

    Returns:
        The exit status.
    """
    command = program(arguments)
    project = project_module.open_project(arguments.directory)
    if arguments.dry_run:
        console.inform(arguments, f"would run {' '.join(command)} from {project.prefix}")
    else:
        execute.become(
            *(project, command),
            on_note=console.notes(arguments),
            on_warning=console.warnings(arguments),
        )
    return 0
