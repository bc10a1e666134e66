"""Writes what commands say: results to standard output, everything else to standard error.

Control characters in a text are spelled out, because names come from images, channels and other
users. A build draws its own progress; `progress` does that.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO, cast

from condainer.errors import CondainerError
from condainer.units import foreign, indented, printable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from pathlib import Path


class ReaderGoneError(Exception):
    """The reader of standard output has gone, as `head` does. Other pipes do not raise this."""


class _Unfailing:
    """Standard error that never fails: a text that cannot be written is lost.

    A build goes on when the reader of its progress has gone, or when the disk of its log is full.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._stream, name)


def prepare() -> None:
    """Make both streams writable, whatever the caller has done to them.

    Python has None for a stream that is closed. What is written to it is dropped. It must not be
    opened: a program that `exec` runs must find it closed, too.
    """
    sys.stdout = sys.stdout or io.StringIO()
    sys.stderr = cast("TextIO", _Unfailing(sys.stderr or io.StringIO()))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # paths go out as the bytes they are


def write(text: str = "") -> None:
    """Write a result to standard output, and flush it.

    Args:
        text: the result; empty to flush what is written already.

    Raises:
        ReaderGoneError: If the reader has gone.
        CondainerError: If it cannot be written for another reason.
    """
    _write(printable(text))


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise ReaderGoneError from None
    except OSError as error:
        raise CondainerError(f"cannot write: {error.strerror}") from error


def write_path(path: Path) -> None:
    """Write a path to standard output: its bytes to a program, its text to a terminal.

    Args:
        path: the path.
    """
    if sys.stdout.isatty():
        write(f"{path}\n")
    else:
        _write(f"{path}\n")


def write_found(
    found: dict[str, Any], render: Callable[[dict[str, Any]], str], *, as_json: bool
) -> None:
    """Write what a command found out to standard output.

    Args:
        found: what JSON can hold.
        render: makes a text for people of it.
        as_json: write JSON instead of that text.
    """
    write(f"{json.dumps(found, indent=2) if as_json else render(found)}\n")


def drop_output() -> None:
    """Send all further standard output nowhere, so that the interpreter's last flush succeeds."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(text: str) -> None:
    """Write to standard error.

    Args:
        text: whole lines.
    """
    sys.stderr.write(printable(text))


def inform(arguments: argparse.Namespace, text: str) -> None:
    """Write a line to standard error, unless --quiet is given.

    Args:
        arguments: the parsed command line.
        text: the line, without its end.
    """
    if not arguments.quiet:
        say(f"{foreign(text)}\n")


def warn(text: str) -> None:
    """Write a warning: something that a user should know, although nothing failed.

    Args:
        text: one line, without its end.
    """
    say(f"condainer: warning: {foreign(text)}\n")


def warnings(arguments: argparse.Namespace) -> Callable[[str], None] | None:
    """The function that takes warnings, or None if --quiet is given.

    Args:
        arguments: the parsed command line.
    """
    return None if arguments.quiet else warn


def notes(arguments: argparse.Namespace) -> Callable[[str], None] | None:
    """The function that takes the lines that only --verbose shows, or None without --verbose.

    Args:
        arguments: the parsed command line.
    """
    return (lambda text: inform(arguments, f"condainer: {text}")) if arguments.verbose else None


def redraw(text: str) -> None:
    """Write a text over the current line of a terminal.

    Args:
        text: what the line is to show; empty to go back to its beginning.
    """
    sys.stderr.write(f"\r{text}")


def is_live(arguments: argparse.Namespace) -> bool:
    """Whether to show progress: standard error is a terminal, and --quiet is not given.

    Args:
        arguments: the parsed command line.
    """
    return sys.stderr.isatty() and not arguments.quiet


def show_error(error: CondainerError, *, verbose: bool) -> None:
    """Write an error: what happened, and what to do next.

    Args:
        error: the error.
        verbose: write its traceback first.
    """
    if verbose:
        import traceback

        say("".join(traceback.format_exception(error)))
    sys.stderr.write(f"condainer: {_coloured('error:')} ")
    say(f"{indented(error.message)}\n")
    if error.hint:
        say(f"condainer: {indented(error.hint)}\n")


def _coloured(word: str) -> str:
    """A word in red, if standard error is a terminal that has colours: https://no-color.org."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb"
    return word if plain or not sys.stderr.isatty() else f"\033[1;31m{word}\033[0m"
