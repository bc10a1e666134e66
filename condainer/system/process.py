"""Starts programs: argv in, lines out, and whole process groups ended.

The only place that starts a program. Each runs in a session and process group of its own, so
that a Ctrl-C meant for condainer does not reach it by itself and so that it can be ended with all
it started. What the output means is the caller's business.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import struct
import subprocess
import sys
import termios
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from condainer.errors import InterruptedBySignalError, ToolError

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup  # comes with anyio

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterable,
        AsyncIterator,
        Callable,
        Iterable,
        Iterator,
        Mapping,
        Sequence,
    )

    from anyio import Event
    from anyio.abc import ByteReceiveStream, Process, TaskGroup

TAIL_LINES = 40
"""How many of the last lines a finished program is remembered by."""

_GRACE = 3.0
"""Seconds between SIGTERM and SIGKILL."""
_STRAGGLERS = 1.0
"""Seconds for which what a finished program left running may still write."""
_LAST_WORDS = 2.0
"""Seconds for reading what is left in the pipes: a daemon that escaped may hold them for ever."""
_POLL = 0.02
_NICENESS, _TRIES = 10, 20
_LOOK = 0.2
"""Seconds between two looks at the table of all processes, which takes longer."""
_calls: set[int] = set()
_KEEPER = "condainer-keep"
_PROGRAM = os.path.abspath(Path(__file__).with_name("program.py"))  # noqa: PTH100
_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
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
        try:
            return f"killed by {signal.Signals(-self.returncode).name}"
        except ValueError:  # one of the real-time signals
            return f"killed by signal {-self.returncode}"


def own_program(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of condainer's as a program, by this same Python.

    It imports nothing from the working directory, nor what the caller's variables name.
    """
    # Not with -I: condainer itself may be among the packages of this user alone.
    user = ["-s"] if sys.flags.no_user_site else []
    return [sys.executable, "-E", *user, _PROGRAM, module, *arguments]


async def run(  # noqa: PLR0913  (each is what a process has)
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
    r"""Run a program to its end; cancelling ends its whole process group.

    Args:
        argv: the command and its arguments.
        on_line: called with each line (ended by \n or \r) of standard error and output.
        cwd: its working directory.
        env: its environment; this process's own by default.
        stdin: what it reads; nothing by default. A descriptor is closed once the program has it.
        capture: keep standard output for `Finished.stdout` instead of passing it to `on_line`.
        terminal: let standard output be a terminal: some programs tell how far they are only to
            one, or keep it back until a buffer is full.
        pass_fds: descriptors it inherits.
        aside: until this is set, it stands back where others want the same processors.

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

    primary, secondary = _open_terminal() if terminal else (-1, subprocess.PIPE)
    try:
        process = await _open(
            argv,
            cwd=cwd,
            env=env,
            stdin=_source(stdin),
            stdout=secondary,
            pass_fds=pass_fds,
        )
    except BaseException:
        _close(primary)
        raise
    finally:
        _close(secondary)
        if isinstance(stdin, int):
            os.close(stdin)  # or whoever writes there would never hear that the program has ended
    try:
        async with task_group() as group:
            assert process.stderr is not None  # noqa: S101  (asked for as a pipe)
            if aside is not None:
                group.start_soon(_stand_aside, process.pid, aside)
            if isinstance(stdin, bytes):
                group.start_soon(_feed, process, stdin)
            if process.stdout is None:
                group.start_soon(_read_lines, _read_terminal(primary), take)
            elif capture:
                group.start_soon(_collect, process.stdout, output)
            else:
                group.start_soon(_read_lines, process.stdout, take)
            group.start_soon(_read_lines, process.stderr, take)
            returncode = await process.wait()
            if not await _ended(process.pid, _STRAGGLERS):
                await _end_group(process.pid)
            group.cancel_scope.deadline = anyio.current_time() + _LAST_WORDS
    finally:
        with anyio.CancelScope(shield=True):
            await _end_group(process.pid)
            await process.aclose()
            _close(primary)
    return Finished(tuple(argv), returncode, tuple(lines), bytes(output))


def _source(stdin: bytes | int | None) -> int:
    if isinstance(stdin, int):
        return stdin
    return subprocess.DEVNULL if stdin is None else subprocess.PIPE


def without_python(variables: Mapping[str, str]) -> dict[str, str]:
    """Variables without those that tell a Python what to import, and how to run."""
    return {name: value for name, value in variables.items() if not name.startswith("PYTHON")}


@dataclass(frozen=True)
class Completed:
    """A short program that has ended: exit status (-N for signal N), standard output and error."""

    returncode: int
    stdout: str
    stderr: str


def call(
    argv: Sequence[str],
    *,
    timeout: float = 30.0,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    silent: bool = False,
) -> Completed:
    """Run a short program and wait for it, without an event loop.

    Args:
        argv: the command and its arguments.
        timeout: seconds that it may take.
        env: its environment; by default this process's own, without what reaches into a Python.
        pass_fds: descriptors it inherits.
        silent: drop its output, so that nothing it leaves running is waited for.

    Raises:
        ToolError: where it cannot be started or does not end within `timeout` seconds.
    """
    output = subprocess.DEVNULL if silent else subprocess.PIPE
    try:
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
    except OSError as error:
        raise ToolError(f"cannot run {argv[0]}: {error.strerror}") from error
    _calls.add(process.pid)
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
        finally:
            _calls.discard(process.pid)
    return Completed(process.returncode, stdout or "", stderr or "")


def pass_through(argv: Sequence[str]) -> int:
    """Run a program with this one's streams and terminal, and give its exit status as a shell does.

    A Ctrl-C reaches it as well, and is its business; SIGTERM and SIGHUP are passed on to it.

    Raises:
        ToolError: where it cannot be started.
    """
    started: list[subprocess.Popen[bytes]] = []
    early: list[int] = []

    def pass_on(signum: int, _: object) -> None:
        if started:
            started[0].send_signal(signum)
        else:
            early.append(signum)

    def leave(*_: object) -> None:
        """Not ignored: it would be for the program, too."""

    with _handling({signal.SIGINT: leave, signal.SIGTERM: pass_on, signal.SIGHUP: pass_on}):
        try:
            with subprocess.Popen(argv) as process:
                started.append(process)
                for signum in early:
                    process.send_signal(signum)
                status = process.wait()
        except OSError as error:
            raise ToolError(f"cannot run {argv[0]}: {error.strerror}") from error
    return status if status >= 0 else 128 - status


@contextlib.contextmanager
def ending_in_order() -> Iterator[None]:
    """Let what is begun be cleaned up when SIGTERM or SIGHUP comes, the first of them.

    Raises:
        InterruptedBySignalError: when it does.
    """
    has_come = False

    def interrupt(signum: int, _: object) -> None:
        nonlocal has_come
        if not has_come:
            has_come = True
            raise InterruptedBySignalError(signum)

    with _handling({signal.SIGTERM: interrupt, signal.SIGHUP: interrupt}):
        yield


@contextlib.contextmanager
def _handling(handlers: Mapping[int, Callable[[int, object], None]]) -> Iterator[None]:
    """Handle signals for a while; not those that are ignored, as with nohup."""
    heeded = [signum for signum in handlers if signal.getsignal(signum) is not signal.SIG_IGN]
    before = [signal.signal(signum, handlers[signum]) for signum in heeded]
    try:
        yield
    finally:
        for signum, handler in zip(heeded, before, strict=True):
            signal.signal(signum, handler)


def end_calls() -> None:
    """End the programs that `call` waits for in other threads, which nobody can cancel."""
    for group in list(_calls):
        _signal_group(group, signal.SIGKILL)


@contextlib.asynccontextmanager
async def adopting() -> AsyncIterator[None]:
    """End what programs have left running in sessions of their own, when all is done.

    Whatever is orphaned below this process becomes its child meanwhile. A process that has other
    children already, or is the first of a container, could not tell these from theirs: there all
    stays as it is.
    """
    import anyio

    if os.getpid() == 1 or _children():
        yield
        return
    _be_subreaper(on=True)
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await _end_children()
        _be_subreaper(on=False)


def name_keeper() -> None:
    """Give this process the name by which `adopting` tells that it is to stay."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(_KEEPER, encoding="ascii")


def running(commands: Sequence[Sequence[str]]) -> list[int]:
    """This user's processes that run one of some commands: proc(5), cmdline."""
    wanted = {b"\0".join(map(os.fsencode, command)) + b"\0" for command in commands}
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                ours = entry.stat().st_uid == os.getuid()
                if ours and (entry / "cmdline").read_bytes() in wanted:
                    found.append(int(entry.name))
    return found


def running_on(word: str) -> list[int]:
    """This user's processes that have a word in their command line, and have not ended."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                ours = entry.stat().st_uid == os.getuid()
                if ours and os.fsencode(word) in (entry / "cmdline").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def show_as(text: str) -> None:
    """Let `ps` show a text as this process's command line, as much of it as there is room for.

    Where that is, is told in /proc/self/stat: proc(5), arg_start and arg_end.
    """
    import ctypes

    with contextlib.suppress(OSError, ValueError):
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        start, end = int(fields[45]), int(fields[46])
        room = end - start - 1
        if start > 0 and room > 0:
            ctypes.memmove(start, os.fsencode(text)[:room].ljust(room + 1, b"\0"), room + 1)


def spawn(
    argv: Sequence[str], *, log: int, env: Mapping[str, str], descriptors: tuple[int, ...] = ()
) -> subprocess.Popen[bytes]:
    """Start a daemon that stays in the foreground of its own session.

    Args:
        argv: the command.
        log: descriptor that takes its output.
        env: its environment.
        descriptors: further ones that it is given.

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
            pass_fds=descriptors,
        )
    except OSError as error:
        raise ToolError(f"cannot run {argv[0]}: {error.strerror}") from error


def end(daemon: subprocess.Popen[bytes]) -> None:
    """End what `spawn` has started, and all of its process group: SIGTERM, then SIGKILL."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        _signal_group(daemon.pid, signum)
        with contextlib.suppress(subprocess.TimeoutExpired):
            daemon.wait(_GRACE)


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
    stdin: int,
    stdout: int,
    pass_fds: Sequence[int],
) -> Process:
    import anyio

    try:
        # Cancelled in here, the event loop would end the program alone, and not its children.
        with anyio.CancelScope(shield=True):
            process = await anyio.open_process(
                list(argv),
                cwd=cwd,
                env=env,
                stdin=stdin,
                stdout=stdout,
                start_new_session=True,
                pass_fds=pass_fds,
            )
    except OSError as error:
        raise ToolError(f"cannot run {argv[0]}: {error.strerror}") from error
    return process


async def _stand_aside(session: int, until: Event) -> None:
    """Let the session that a program leads stand back for a while: sched(7), autogroup.

    Not with nice(2), which an ordinary user cannot take back: on a busy machine such a program gets
    next to nothing, also when nobody else of the same build wants a processor any more. Where the
    kernel has no groups of sessions, it does not stand back.
    """
    import anyio

    group = Path(f"/proc/{session}/autogroup")
    for niceness in (_NICENESS, 0):
        for _ in range(_TRIES):  # the kernel takes no more than ten such changes a second
            try:
                group.write_text(str(niceness), encoding="ascii")
            except BlockingIOError:
                await anyio.sleep(_LOOK)
            except OSError:
                return  # it has ended, or there are none
            else:
                break
        if niceness:
            await until.wait()


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


def _open_terminal() -> tuple[int, int]:
    """Both sides of a terminal that is as large as most: in one of no size nothing is drawn."""
    primary, secondary = os.openpty()
    fcntl.ioctl(primary, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    return primary, secondary


async def _read_terminal(primary: int) -> AsyncIterator[bytes]:
    """What a program writes to a terminal, until it has closed it."""
    import anyio

    while True:
        await anyio.wait_readable(primary)
        try:
            chunk = os.read(primary, _LINE_MAX)
        except OSError:  # EIO: nobody has the other side open any more
            return
        yield chunk


def _close(descriptor: int) -> None:
    if descriptor >= 0:  # not one of subprocess's own constants
        os.close(descriptor)


async def _read_lines(stream: AsyncIterable[bytes], take: Callable[[str], None]) -> None:
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


async def _end_group(group: int) -> None:
    """SIGTERM to a whole process group, then SIGKILL to what is left of it."""
    if not _runs(group):
        return
    for signum in (signal.SIGTERM, signal.SIGKILL):
        _signal_group(group, signum)
        if await _ended(group, _GRACE):
            return


async def _ended(group: int, seconds: float) -> bool:
    """Wait some seconds for a process group to end; tells whether it has."""
    import anyio

    deadline = anyio.current_time() + seconds
    look = anyio.current_time() + _LOOK
    while _group_exists(group):
        now = anyio.current_time()
        if now > look or now > deadline:
            if not _runs(group):
                return True
            look = now + _LOOK
        if now > deadline:
            return False
        await anyio.sleep(_POLL)
    return True


def _signal_group(group: int, signum: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # all of it has ended
        os.killpg(group, signum)


def _group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _runs(group: int) -> bool:
    """Whether a process group has more than processes that have ended and that nobody waits for.

    In a container whose first process waits for nobody these stay for ever.
    """
    return _group_exists(group) and any(
        entry.group == group and entry.state not in {"Z", "X"} for entry in _process_table()
    )


def _be_subreaper(*, on: bool) -> None:
    """Have orphans below this process become its children, where the kernel lets it."""
    import ctypes

    zero = ctypes.c_ulong(0)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(on), zero, zero, zero)


async def _end_children() -> None:
    """SIGTERM to all children, and to those of theirs that come to us then; then SIGKILL."""
    import anyio

    for signum in (signal.SIGTERM, signal.SIGKILL):
        told: set[int] = set()
        deadline = anyio.current_time() + _GRACE
        while (children := _children()) and anyio.current_time() < deadline:
            for pid in children - told:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signum)
            told |= children
            await anyio.sleep(_POLL)
            _collect_ended(children)


def _collect_ended(children: Iterable[int]) -> None:
    for pid in children:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def _children() -> set[int]:
    """The children of this process but the keepers of mounts, which other programs started."""
    own = os.getpid()
    return {e.pid for e in _process_table() if e.parent == own and e.name != _KEEPER}


@dataclass(frozen=True)
class _Entry:
    """What proc(5) says of a process in /proc/PID/stat."""

    pid: int
    name: str
    state: str
    parent: int
    group: int


def _process_table() -> Iterator[_Entry]:
    for number in os.listdir("/proc"):  # noqa: PTH208
        if number.isdigit():
            with contextlib.suppress(OSError, ValueError):  # it has ended meanwhile
                text = Path("/proc", number, "stat").read_text(encoding="utf-8", errors="replace")
                before, _, after = text.rpartition(") ")
                state, parent, group = after.split()[:3]
                name = before.partition("(")[2]
                yield _Entry(int(number), name, state, int(parent), int(group))
