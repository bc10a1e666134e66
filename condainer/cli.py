"""Parses the command line, runs one command, and turns errors into messages.

Each command is a module of `commands` with its name: `EXAMPLES`, `add_arguments` and `run`. That
module is imported only if its command is asked for: many processes start at the same time.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import condainer
from condainer.commands import console
from condainer.errors import CondainerError, InterruptedBySignalError, named

if TYPE_CHECKING:
    from collections.abc import Sequence

_WRONG_USAGE = 2
_EXEC_FAILED = 125

_DESCRIPTION = """\
Turns a conda environment into one compressed file, the image, and runs programs from it.
Condainer mounts the image when a program needs it, and unmounts it after the last program."""

_EPILOG = """\
examples:
  condainer init                      start a project here; then edit environment.yml
  condainer build                     make the image from environment.yml
  condainer exec -- python script.py  run a program from the image
  source ./activate                   work in the environment, as with conda activate

Help for one command: condainer COMMAND --help
"""

COMMANDS = {
    "init": "start a project: write condainer.yml and an example environment.yml",
    "build": "install the packages of environment.yml and compress them into one image",
    "exec": "run a program from the image; mounting and unmounting happen automatically",
    "profile": "run a program once and note which files it reads, to speed up later starts",
    "mount": "mount the image and keep it mounted until 'condainer umount'",
    "umount": "unmount the image, unless a program still uses it",
    "status": "show the project, its image, its mount, and who uses it",
    "prereq": "test what this machine can do, and say how to get what is missing",
    "cache": "read the image into memory, so that the next start is faster",
    "gc": "clean up on this node: dead mounts, locks and empty directories of killed jobs",
    "version": "print the version",
}
"""The commands, in the order of the help, and what each does."""


def entry(failure: BaseException | None = None) -> NoReturn:
    """Run the command of this process, then end the process.

    The interpreter does not shut down as usual. The installer that comes with condainer has
    threads that may still run then, and it has crashed in the shutdown.

    Args:
        failure: an error that `exec` has already met; None if there is none.
    """
    status = main(failure=failure)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main(argv: Sequence[str] | None = None, failure: BaseException | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments; None means those of the process.
        failure: an error that the command has already met: report it, and run nothing.

    Returns:
        The exit status.
    """
    console.prepare()
    arguments = argparse.Namespace(command="", verbose=False)
    try:
        arguments = _parse(argv)
        if failure is not None:
            raise failure  # noqa: TRY301  (errors are reported below)
        status: int = arguments.run(arguments)
        console.write()
    except KeyboardInterrupt:
        error: CondainerError = InterruptedBySignalError(signal.SIGINT)
    except console.ReaderGoneError:
        console.drop_output()
        return 1
    except Exception as problem:  # noqa: BLE001  (no user sees a traceback without -v)
        error = named(problem)
    else:
        return status
    console.show_error(error, verbose=arguments.verbose)
    if arguments.command == "exec" and error.exit_status < _EXEC_FAILED:
        return _EXEC_FAILED
    return error.exit_status


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser, commands = _parsers()
    try:
        arguments, unknown = parser.parse_known_args(argv)
    except SystemExit:  # argparse has printed the help or the version
        console.write()
        raise
    if unknown and arguments.command == "exec":
        commands["exec"].error(
            f"exec has no option {unknown[0]}: write condainer's options before 'exec', and '--' "
            "before a command that begins with a dash"
        )
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if not arguments.command:
        parser.print_help(sys.stderr)
        parser.exit(_WRONG_USAGE)
    return arguments


class _CommandParser(argparse.ArgumentParser):
    """The parser of one command. It imports the command when it has to parse its arguments."""

    command = ""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # noqa: ANN401
        """Parse the arguments, as `argparse` does."""
        module = importlib.import_module(f"condainer.commands.{self.command}")
        self.epilog = f"examples:\n{module.EXAMPLES}"
        self.set_defaults(run=module.run)
        if self.command != "exec":  # what follows it belongs to the program
            _add_general(self)
        module.add_arguments(self)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Report wrong usage; `exec` has a status for it that a program does not have."""
        if self.command != "exec":
            super().error(message)
        self.print_usage(sys.stderr)
        self.exit(_EXEC_FAILED, f"condainer: error: {message}\n")


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of the whole command line, and those of the commands."""
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="condainer", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=style
    )
    version = f"condainer {condainer.__version__}"
    parser.add_argument(
        "-V", "--version", action="version", version=version, help="print the version and exit"
    )
    _add_general(parser)
    parser.set_defaults(quiet=False, verbose=False, directory=Path(), dry_run=False)
    commands: Any = parser.add_subparsers(
        dest="command", metavar="COMMAND", title="commands", parser_class=_CommandParser
    )
    for name, text in COMMANDS.items():
        description = f"{text[0].upper()}{text[1:]}."
        made = commands.add_parser(name, help=text, description=description, formatter_class=style)
        made.command = name
    return parser, commands.choices


def _add_general(parser: argparse.ArgumentParser) -> None:
    """Add the options that every command has. They may stand before the command or after it."""
    unset: Any = argparse.SUPPRESS
    general = parser.add_argument_group("general options")
    words = general.add_mutually_exclusive_group()
    words.add_argument(
        "-q", "--quiet", action="store_true", default=unset, help="print nothing but errors"
    )
    words.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        default=unset,
        help="print more, and a traceback if an error occurs",
    )
    general.add_argument(
        "-d",
        "--directory",
        type=Path,
        default=unset,
        metavar="DIR",
        help="the project directory (default: the current directory)",
    )
    general.add_argument(
        "-n",
        "--dry-run",
        action="store_true",
        default=unset,
        help="say what would happen, but change nothing",
    )
