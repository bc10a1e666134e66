"""Starts programs. No other module does.

Each program runs in a session and a process group of its own. So a Ctrl-C for condainer does not
reach it directly, and it can be ended together with everything that it has started. `streams`
reads what it writes, and `groups` ends it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from condainer.errors import ToolError
from condainer.system import groups, signals, streams

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup  # comes with anyio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

    from anyio import Event
    from anyio.abc import Process, TaskGroup

TAIL_LINES = 40
"""Number of last lines that a finished program is remembered by."""

_STRAGGLERS = 1.0
"""Seconds for which the processes that a finished program left running may still write."""
_LAST_WORDS = 2.0
"""Seconds for reading the rest of the pipes: a daemon that escaped may hold them open for ever."""
_calls: set[int] = set()
"""Process groups of the programs that `call` waits for."""
_PROGRAM = os.path.abspath(Path(__file__).with_name("program.py"))  # noqa: PTH100


@dataclass(frozen=True)
class Finished:
    """A program that has ended.

    Attributes:
        argv: the command.
        returncode: its exit status, or -N if signal N ended it.
        tail: its last lines, from standard error and standard output in the order they came.
        stdout: standard output as bytes, if that was asked for.
    """

    argv: tuple[str, ...]
    returncode: int
    tail: tuple[str, ...]
    stdout: bytes = b""

    @property
    def verdict(self) -> str:
        """How it ended, in words."""
        if self.returncode >= 0:
            return f"exit status {self.returncode}"
        try:
            return f"killed by {signal.Signals(-self.returncode).name}"
        except ValueError:  # one of the real-time signals
            return f"killed by signal {-self.returncode}"


def own_program(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of condainer as a program, with this same Python.

    It imports nothing from the working directory, and nothing that PYTHON* variables name.

    Args:
        module: dotted name.
        arguments: for the program.
    """
    # Not with -I: condainer itself may be installed for this user only.
    user = ["-s"] if sys.flags.no_user_site else []
    return [sys.executable, "-E", *user, _PROGRAM, module, *arguments]


def without_python(variables: Mapping[str, str]) -> dict[str, str]:
    """Leave out the variables that tell a Python what to import and how to run.

    Args:
        variables: the environment of a process.
    """
    return {name: value for name, value in variables.items() if not name.startswith("PYTHON")}


async def run(  # noqa: PLR0913  (each is a property of a process)
    argv: Sequence[str],
    *,
    on_line: Callable[[str], None],
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | int | None = None,
    capture: bool = False,
    terminal: bool = False,
    pass_fds: Sequence[int] = (),
    aside: Event | None = None,
) -> Finished:
    r"""Run a program to its end; if cancelled, end its whole process group.

    Args:
        argv: the command and its arguments.
        on_line: called with each line (ended by \n or \r) of standard error and output.
        cwd: its working directory; None means that of this process.
        env: its environment; None means that of this process.
        stdin: what it reads; None means nothing. A descriptor is closed once the program has it.
        capture: keep standard output for `Finished.stdout` instead of passing it to `on_line`.
        terminal: let standard output be a terminal. Some programs report progress only to one, or
            hold output back until a buffer is full.
        pass_fds: descriptors it inherits.
        aside: until this is set, the program yields the processors to others.

    Raises:
        ToolError: If it cannot be started.
    """
    process, primary = await _start(
        argv, cwd=cwd, env=env, stdin=stdin, terminal=terminal, pass_fds=pass_fds
    )
    running = _Running(process, primary, on_line)
    try:
        returncode = await running.attend(stdin, aside, capture=capture)
    finally:
        await running.end()
    return Finished(tuple(argv), returncode, tuple(running.lines), bytes(running.output))


class _Running:
    """A program that runs, and what it wrote: its last `lines`, and `output` if captured."""

    def __init__(self, process: Process, primary: int, on_line: Callable[[str], None]) -> None:
        self._process = process
        self._primary = primary
        self._on_line = on_line
        self.lines: deque[str] = deque(maxlen=TAIL_LINES)
        self.output = bytearray()

    async def attend(self, stdin: bytes | int | None, aside: Event | None, *, capture: bool) -> int:
        """Serve the program until it ends; gives its exit status."""
        import anyio

        process, stdout = self._process, self._process.stdout
        assert process.stderr is not None  # noqa: S101  (asked for as a pipe)
        async with task_group() as group:
            if aside is not None:
                group.start_soon(groups.stand_aside, process.pid, aside)
            if isinstance(stdin, bytes):
                group.start_soon(streams.feed, process, stdin)
            if capture and stdout is not None:
                group.start_soon(streams.collect, stdout, self.output)
            else:
                chunks = stdout or streams.read_terminal(self._primary)
                group.start_soon(streams.read_lines, chunks, self._take)
            group.start_soon(streams.read_lines, process.stderr, self._take)
            returncode = await process.wait()
            if not await groups.has_ended(process.pid, _STRAGGLERS):
                await groups.end(process.pid)
            group.cancel_scope.deadline = anyio.current_time() + _LAST_WORDS
        return returncode

    def _take(self, line: str) -> None:
        if line.strip():
            self.lines.append(line)
        self._on_line(line)

    async def end(self) -> None:
        """End what is left of the program, even if this task is cancelled."""
        import anyio

        with anyio.CancelScope(shield=True):
            await groups.end(self._process.pid)
            await self._process.aclose()
            _close(self._primary)


async def _start(
    argv: Sequence[str],
    *,
    cwd: Path | None,
    env: Mapping[str, str] | None,
    stdin: bytes | int | None,
    terminal: bool,
    pass_fds: Sequence[int],
) -> tuple[Process, int]:
    """Start a program; returns it, and our side of its terminal (-1 if it has none)."""
    import anyio

    primary, secondary = streams.open_terminal() if terminal else (-1, subprocess.PIPE)
    source = subprocess.PIPE if isinstance(stdin, bytes) else stdin
    try:
        # If this were cancelled, the event loop would end the program, but not its children.
        with _naming(argv), anyio.CancelScope(shield=True):
            process = await anyio.open_process(
                list(argv),
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL if source is None else source,
                stdout=secondary,
                start_new_session=True,
                pass_fds=pass_fds,
            )
    except BaseException:
        _close(primary)
        raise
    finally:
        _close(secondary)
        if isinstance(stdin, int):
            os.close(stdin)  # or its writer would never learn that the program has ended
    return process, primary


def _close(descriptor: int) -> None:
    if descriptor >= 0:  # the constants of subprocess are negative
        os.close(descriptor)


@contextlib.contextmanager
def _naming(argv: Sequence[str]) -> Iterator[None]:
    """Name the program in an error."""
    try:
        yield
    except OSError as error:
        raise ToolError(f"cannot run {argv[0]}: {error.strerror}") from error


@contextlib.asynccontextmanager
async def task_group() -> AsyncIterator[TaskGroup]:
    """A task group that raises the first error of its tasks as it is, not in a group."""
    import anyio

    try:
        async with anyio.create_task_group() as group:
            yield group
    except BaseExceptionGroup as error:
        first: BaseException = error
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from first.__cause__


@dataclass(frozen=True)
class Completed:
    """A program that has ended.

    Attributes:
        returncode: its exit status, or -N if signal N ended it.
        stdout: its standard output; empty if that was not kept.
        stderr: its standard error; empty if that was not kept.
    """

    returncode: int
    stdout: str
    stderr: str


def call(
    argv: Sequence[str],
    *,
    timeout: float | None = 30.0,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    silent: bool = False,
    inherit: bool = False,
) -> Completed:
    """Run a program and wait for it, without an event loop.

    Args:
        argv: the command and its arguments.
        timeout: seconds that it may take; None means any number.
        env: its environment; None means that of this process without PYTHON* variables.
        pass_fds: descriptors it inherits.
        silent: drop its output, and do not wait for processes that it leaves running.
        inherit: let it write to the standard output and error of this process.

    Raises:
        ToolError: If it cannot be started, or does not end in time.
    """
    output = subprocess.DEVNULL if silent else None if inherit else subprocess.PIPE
    with _naming(argv):
        process = subprocess.Popen(
            argv,
            env=without_python(os.environ) if env is None else env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=pass_fds,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    stdout, stderr = _outputs(process, argv[0], timeout)
    return Completed(process.returncode, stdout or "", stderr or "")


def _outputs(
    process: subprocess.Popen[str], name: str, timeout: float | None
) -> tuple[str | None, str | None]:
    """Wait for a program; gives its standard output and error."""
    _calls.add(process.pid)
    with process:
        try:
            return process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            groups.send(process.pid, signal.SIGKILL)
            process.communicate()
            raise ToolError(f"{name} did not answer within {timeout:.0f} s") from None
        except BaseException:
            end(process)
            raise
        finally:
            _calls.discard(process.pid)


def end_calls() -> None:
    """End the programs that `call` waits for in other threads, which nobody can cancel."""
    for group in list(_calls):
        groups.send(group, signal.SIGKILL)


def pass_through(argv: Sequence[str]) -> int:
    """Run a program with the streams and the terminal of this process.

    A Ctrl-C reaches the program, too, which decides what to do. SIGTERM and SIGHUP are passed on.

    Args:
        argv: the command and its arguments.

    Returns:
        Its exit status, as a shell gives it: 128+N if signal N ended it.

    Raises:
        ToolError: If it cannot be started.
    """
    started: list[subprocess.Popen[bytes]] = []
    early: list[int] = []

    def pass_on(signum: int, _: object) -> None:
        if started:
            started[0].send_signal(signum)
        else:
            early.append(signum)

    def leave(*_: object) -> None:
        """Do nothing. If the signal were ignored, the program would ignore it, too."""

    handlers: dict[int, Callable[[int, object], None]]
    handlers = {signal.SIGINT: leave, signal.SIGTERM: pass_on, signal.SIGHUP: pass_on}
    with signals.handling(handlers), _naming(argv), subprocess.Popen(argv) as process:
        started.append(process)
        for signum in early:
            process.send_signal(signum)
        status = process.wait()
    return status if status >= 0 else 128 - status


def spawn(
    argv: Sequence[str], *, log: int, env: Mapping[str, str], descriptors: tuple[int, ...] = ()
) -> subprocess.Popen[bytes]:
    """Start a daemon that stays in the foreground of its own session.

    Args:
        argv: the command and its arguments.
        log: descriptor that takes its output.
        env: its environment.
        descriptors: further descriptors that it inherits.

    Raises:
        ToolError: If it cannot be started.
    """
    with _naming(argv):
        return subprocess.Popen(
            argv,
            env=env,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=descriptors,
        )


def end(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    """End a program and all of its process group: SIGTERM, then SIGKILL.

    Args:
        process: what `spawn` has started.
    """
    for signum in (signal.SIGTERM, signal.SIGKILL):
        groups.send(process.pid, signum)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(groups.GRACE)
