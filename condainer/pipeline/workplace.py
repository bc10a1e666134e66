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

_LONG_WORD = 300
"""Of longer arguments, such as a few lines of Python, the log shows the beginning."""


class Final(NamedTuple):
    """A file of a package that will stay as it is, unless something interferes.

    Attributes:
        name: its path below the prefix.
        path: where it is in a package cache.
        sha256: of its content; empty where nobody said.
        is_copied: whether the one in the prefix will be a copy, instead of the same file.
    """

    name: str
    path: str
    sha256: str
    is_copied: bool = False


Listing: TypeAlias = "Callable[[], Iterable[Final]]"
"""Gives the files of a package that are final, where it has such."""

OnReady: TypeAlias = "Callable[[str, Listing], None]"
"""Takes the name of a package whose files are there, and what lists them; from any thread."""


class OnProgress(Protocol):
    """Takes how far a stage is, from any thread."""

    def __call__(
        self, done: int, total: int | None, text: str, *, bytes_done: int = 0, bytes_total: int = 0
    ) -> None:
        """Take it.

        Args:
            done: packages, files or blocks, as the stage counts.
            total: how many there are; None where nobody knows.
            text: what is being done right now, a few words.
            bytes_done: what has been fetched so far.
            bytes_total: what is to be fetched, as far as that is known.
        """


@dataclass(frozen=True)
class Workplace:
    """What a stage is given to work with.

    Attributes:
        processors: how many it may keep busy.
        on_line: takes each line that a program prints.
        on_progress: takes how far it is.
        environment: the variables programs run with.
        temporary: where temporary files go; None means where all programs put theirs.
        pass_fds: descriptors programs inherit.
        on_ready: is told of packages whose files are there while others are not yet.
        check: called before a program is run; raises an error where nothing may be run any more.
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
        """Run a program here; its command and its output go to the log.

        The arguments and errors are those of `process.run`.
        """
        self.check()
        words = [word if len(word) < _LONG_WORD else f"{word[:_LONG_WORD]}…" for word in argv]
        self.on_line("$ " + shlex.join(words).replace("\n", " "))
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
        if b"\0" not in finished.stdout:
            for line in finished.stdout.decode("utf-8", "replace").splitlines():
                self.on_line(line)
        return finished
