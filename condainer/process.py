"""Starts programs: argv in, lines out, and whole process groups ended.

The only place that starts a program. Each runs in a session and process group of its own, so
that a Ctrl-C meant for condainer does not reach it by itself and so that it can be ended with all
it started. What the output means is the caller's business.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from condainer.errors import ToolError

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup  # comes with anyio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from pathlib import Path

    from anyio.abc import ByteReceiveStream, Process, TaskGroup

TAIL_LINES = 40
"""How many of the last lines a finished program is remembered by."""

_GRACE = 3.0
"""Seconds between SIGTERM and SIGKILL."""
_STRAGGLERS = 1.0
"""Seconds for which what a finished program left running may still write."""
_POLL = 0.02
_LINE_END = re.compile(rb"[\r\n]+")
_LINE_MAX = 65536


@dataclass(frozen=True)
class Finished:
    """A program that has ended.

    Attributes:
        argv: the command.
        returncode: its exit status, or -N where signal N ended it.
        tail: its last lines, standard error and output as they came.
        stdout: standard output as bytes, where it was asked for.
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
        return f"killed by {signal.Signals(-self.returncode).name}"


async def run(
    argv: Sequence[str],
    *,
    on_line: Callable[[str], None],
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    capture: bool = False,
    pass_fds: Sequence[int] = (),
) -> Finished:
    r"""Run a program to its end; cancelling ends its whole process group.

    Args:
        argv: the command and its arguments.
        on_line: called with each line (ended by \n or \r) of standard error and output.
        cwd: its working directory.
        env: its environment; this process's own by default.
        stdin: what it reads; nothing by default.
        capture: keep standard output for `Finished.stdout` instead of passing it to `on_line`.
        pass_fds: descriptors it inherits.

    Raises:
        ToolError: where it cannot be started.
    """
    import anyio

    lines: deque[str] = deque(maxlen=TAIL_LINES)
    output = bytearray()

    def take(line: str) -> None:
        if line.strip():
            lines.append(line)
        on_line(line)

    process = await _open(argv, cwd=cwd, env=env, stdin=stdin is not None, pass_fds=pass_fds)
    try:
        async with task_group() as group:
            assert process.stdout is not None  # noqa: S101  (asked for as pipes)
            assert process.stderr is not None  # noqa: S101
            if stdin is not None:
                group.start_soon(_feed, process, stdin)
            if capture:
                group.start_soon(_collect, process.stdout, output)
            else:
                group.start_soon(_read_lines, process.stdout, take)
            group.start_soon(_read_lines, process.stderr, take)
            returncode = await process.wait()
            group.start_soon(_end_stragglers, process)
    finally:
        with anyio.CancelScope(shield=True):
            await _end_group(process)
            await process.aclose()
    return Finished(tuple(argv), returncode, tuple(lines), bytes(output))


@dataclass(frozen=True)
class Completed:
    """A short program that has ended: exit status (-N for signal N), standard output and error."""

    returncode: int
    stdout: str
    stderr: str


def call(
    argv: Sequence[str], *, timeout: float = 30.0, env: Mapping[str, str] | None = None
) -> Completed:
    """Run a short program and wait for it, without an event loop.

    Raises:
        ToolError: where it cannot be started or does not end within `timeout` seconds.
    """
    try:
        process = subprocess.Popen(
            argv,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise ToolError(f"cannot run {argv[0]}: {error.strerror}") from error
    with process:
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            _signal_group(process.pid, signal.SIGKILL)
            process.communicate()
            message = f"{argv[0]} did not answer within {timeout:.0f} s"
            raise ToolError(message) from None
        except BaseException:
            _signal_group(process.pid, signal.SIGKILL)
            raise
    return Completed(process.returncode, stdout, stderr)


def spawn(argv: Sequence[str], *, log: int, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a daemon that stays in the foreground of its own session.

    Args:
        argv: the command.
        log: descriptor that takes its output.
        env: its environment.

    Raises:
        ToolError: where it cannot be started.
    """
    try:
        return subprocess.Popen(
            argv,
            env=env,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
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


async def _open(
    argv: Sequence[str],
    *,
    cwd: Path | None,
    env: Mapping[str, str] | None,
    stdin: bool,
    pass_fds: Sequence[int],
) -> Process:
    import anyio

    try:
        return await anyio.open_process(
            list(argv),
            cwd=cwd,
            env=env,
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=pass_fds,
        )
    except OSError as error:
        raise ToolError(f"cannot run {argv[0]}: {error.strerror}") from error


async def _feed(process: Process, data: bytes) -> None:
    import anyio

    assert process.stdin is not None  # noqa: S101
    try:
        await process.stdin.send(data)
        await process.stdin.aclose()
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        pass  # it ended before it had read everything: its exit status tells


async def _collect(stream: ByteReceiveStream, output: bytearray) -> None:
    async for chunk in stream:
        output += chunk


async def _read_lines(stream: ByteReceiveStream, take: Callable[[str], None]) -> None:
    rest = b""
    async for chunk in stream:
        *whole, rest = _LINE_END.split(rest + chunk)
        if len(rest) > _LINE_MAX:
            whole.append(rest)
            rest = b""
        for line in whole:
            take(line.decode("utf-8", "replace"))
    if rest:
        take(rest.decode("utf-8", "replace"))


async def _end_stragglers(process: Process) -> None:
    """End what a finished program left behind, which would hold our pipes open."""
    import anyio

    deadline = anyio.current_time() + _STRAGGLERS
    while _group_exists(process.pid) and anyio.current_time() < deadline:
        await anyio.sleep(_POLL)
    await _end_group(process)


async def _end_group(process: Process) -> None:
    """SIGTERM to the whole group, then SIGKILL to what is left of it."""
    import anyio

    _signal_group(process.pid, signal.SIGTERM)
    deadline = anyio.current_time() + _GRACE
    while _group_exists(process.pid):
        if anyio.current_time() > deadline:
            _signal_group(process.pid, signal.SIGKILL)
        await anyio.sleep(_POLL)


def _signal_group(group: int, signum: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # all of it has ended
        os.killpg(group, signum)


def _group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True
