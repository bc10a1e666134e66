"""Defines what a stage of a build works with: processors, variables, and where its output goes."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from condainer.system import process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from anyio import Event

    from condainer.system.process import Finished

_LAST_LINES = 8
_LONG_WORD = 300
"""Characters of an argument that the log shows; some are whole Python programs."""


class Final(NamedTuple):
    """A file of a package that the installer puts into the prefix unchanged.

    Attributes:
        name: its path, relative to the prefix.
        path: where it is in the package cache.
        sha256: of its content; empty if not known.
        is_copied: whether the file in the prefix will be a copy, instead of a hard link.
    """

    name: str
    path: str
    sha256: str
    is_copied: bool = False


Listing: TypeAlias = "Callable[[], Iterable[Final]]"
"""Lists the final files of a package."""

OnReady: TypeAlias = "Callable[[str, Listing], None]"
"""Takes the name of a package that is unpacked, and what lists its final files; from any thread."""


class OnProgress(Protocol):
    """Takes the progress of a stage, from any thread."""

    def __call__(
        self, done: int, total: int | None, text: str, *, bytes_done: int = 0, bytes_total: int = 0
    ) -> None:
        """Take the progress.

        Args:
            done: packages, files or blocks, as the stage counts.
            total: how many there are; None if not known.
            text: what is being done right now, a few words.
            bytes_done: bytes that have been fetched.
            bytes_total: bytes to fetch, as far as known.
        """


@dataclass(frozen=True)
class Workplace:
    """What one stage works with: processors, the variables of its programs, and where output goes.

    Attributes:
        processors: how many it may keep busy.
        on_line: takes each line that a program prints.
        on_progress: takes the progress.
        environment: the variables of programs.
        temporary: the directory for temporary files; None means the usual one.
        pass_fds: descriptors that programs inherit.
        on_ready: takes packages that are unpacked while others are not yet.
        check: called before a program runs; raises an error if none may run any more.
    """

    processors: int
    on_line: Callable[[str], None]
    on_progress: OnProgress
    environment: Mapping[str, str]
    temporary: Path | None = None
    pass_fds: Sequence[int] = ()
    on_ready: OnReady = lambda _name, _listing: None
    check: Callable[[], None] = lambda: None

    async def run(  # noqa: PLR0913  (as of `process.run`)
        self,
        argv: Sequence[str],
        *,
        on_line: Callable[[str], None] | None = None,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: bytes | int | None = None,
        capture: bool = False,
        terminal: bool = False,
        aside: Event | None = None,
    ) -> Finished:
        """Run a program; its command line and its output go to the log.

        Args:
            argv: the program and its arguments.
            on_line: takes the lines that it prints; None means the log.
            environment: its variables; None means those of the workplace.
            cwd: its working directory; None means this process's own.
            stdin: bytes that it reads, or a descriptor, which is closed here; None means nothing.
            capture: whether to return its standard output.
            terminal: whether its standard output is a terminal, so that it shows its progress.
            aside: until this is set, it has the lowest priority; None means the usual one.

        Raises:
            CondainerError: If the program cannot be run; see `process.run`.
        """
        self.check()
        self.on_line(_shown(argv))
        finished = await process.run(
            argv,
            on_line=on_line or self.on_line,
            cwd=cwd,
            env=self.environment if environment is None else environment,
            stdin=stdin,
            capture=capture,
            terminal=terminal,
            pass_fds=self.pass_fds,
            aside=aside,
        )
        is_text = b"\0" not in finished.stdout
        for line in finished.stdout.decode("utf-8", "replace").splitlines() if is_text else ():
            self.on_line(line)
        return finished


def last_lines(lines: Sequence[str]) -> str:
    """Indent the last lines of a program's output, for an error message.

    Args:
        lines: of the output.
    """
    return "\n".join(f"  {line}" for line in lines[-_LAST_LINES:])


def _shown(argv: Sequence[str]) -> str:
    """A command line for the log, on one line."""
    words = [word if len(word) < _LONG_WORD else f"{word[:_LONG_WORD]}…" for word in argv]
    return "$ " + shlex.join(words).replace("\n", " ")
