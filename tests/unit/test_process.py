"""Programs that `process` starts: their lines, their end, and the end of all they have started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest

from condainer.errors import ToolError
from condainer.system import process
from tests.support import REPOSITORY, wait_for

if TYPE_CHECKING:
    from condainer.system.process import Finished


def run(
    *argv: str,
    stdin: bytes | None = None,
    capture: bool = False,
    terminal: bool = False,
) -> tuple[Finished, list[str]]:
    """Run a program to its end; gives how it ended, and its lines."""
    lines: list[str] = []

    async def main() -> Finished:
        return await process.run(
            argv,
            on_line=lines.append,
            stdin=stdin,
            capture=capture,
            terminal=terminal,
        )

    return anyio.run(main), lines


def python(code: str) -> tuple[Finished, list[str]]:
    return run(sys.executable, "-c", code)


def cancel_when(path: Path, *argv: str) -> None:
    """Run a program, and cancel it when it has written a file."""

    async def main() -> None:
        async with process.task_group() as group:

            async def start() -> None:
                await process.run(argv, on_line=lambda _: None)

            group.start_soon(start)
            while not path.exists() or not path.read_text().endswith("\n"):
                await anyio.sleep(0.01)
            group.cancel_scope.cancel()

    anyio.run(main)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


def test_lines_of_both_streams_arrive() -> None:
    done, lines = run("sh", "-c", "echo out; echo err >&2; exit 3")
    assert done.returncode == 3
    assert sorted(lines) == ["err", "out"]
    assert done.verdict == "exit status 3"


def test_carriage_returns_end_lines() -> None:
    _, lines = run("printf", "10%%\\r20%%\\r\\ndone\\n")
    assert [line for line in lines if line] == ["10%", "20%", "done"]


def test_last_line_needs_no_end() -> None:
    assert run("printf", "no end")[1] == ["no end"]


def test_long_line_arrives_whole_in_pieces() -> None:
    _, lines = python("import sys; sys.stdout.write('x' * 1_000_000)")
    assert "".join(lines) == "x" * 1_000_000
    assert len(lines) > 1


def test_invalid_utf_8_is_replaced() -> None:
    assert run("printf", "a\\377b\\n")[1] == ["a\N{REPLACEMENT CHARACTER}b"]


def test_captured_output_is_kept_apart_from_lines() -> None:
    done, lines = run("sh", "-c", "printf 'a\\0b'; echo said >&2", capture=True)
    assert done.stdout == b"a\0b"
    assert lines == ["said"]


def test_terminal_has_a_size_and_is_read_to_its_end() -> None:
    code = "import os, sys; print(os.get_terminal_size(1)); sys.stdout.write('last'); sys.exit(3)"
    finished, lines = run(sys.executable, "-c", code, terminal=True)
    assert finished.returncode == 3
    assert [line for line in lines if line] == ["os.terminal_size(columns=80, lines=24)", "last"]


def test_all_of_a_large_input_and_output_passes() -> None:
    data = b"0123456789" * 300_000
    done, _ = run("cat", stdin=data, capture=True)
    assert done.stdout == data


_TELL = """\
import sys, time
said = ""
while said != "0":
    now = open("/proc/self/autogroup").read().split()[-1]
    if now != said and now in {"10", "0"} and (said or now == "10"):
        said = now
        print(said, flush=True)
    time.sleep(0.01)
"""


@pytest.mark.skipif(
    not Path("/proc/self/autogroup").exists(), reason="this kernel has no groups of sessions"
)
def test_program_stands_back_for_a_while() -> None:
    lines: list[str] = []

    async def main() -> Finished:
        over = anyio.Event()

        def take(line: str) -> None:
            lines.append(line)
            over.set()

        return await process.run([sys.executable, "-c", _TELL], on_line=take, aside=over)

    assert anyio.run(main).returncode == 0
    assert lines == ["10", "0"]


def test_program_that_does_not_read_its_input_is_no_error() -> None:
    assert run("true", stdin=b"x" * 1_000_000)[0].returncode == 0


def test_program_that_is_not_there_is_named() -> None:
    with pytest.raises(ToolError, match="cannot run /nowhere/program: No such file"):
        run("/nowhere/program")


@pytest.mark.parametrize(
    ("signum", "verdict"),
    [(signal.SIGKILL, "killed by SIGKILL"), (signal.SIGRTMIN + 3, "killed by signal 37")],
)
def test_verdict_names_the_signal(signum: int, verdict: str) -> None:
    done, _ = python(f"import os; os.kill(os.getpid(), {int(signum)})")
    assert done.verdict == verdict


def test_tail_remembers_the_last_lines() -> None:
    done, _ = run("seq", "100")
    assert done.tail == tuple(str(n) for n in range(61, 101))


_STUBBORN = """\
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "600"], preexec_fn=lambda: None)
with open(sys.argv[1], "w") as file:
    file.write(f"{os.getpid()} {child.pid}\\n")
time.sleep(600)
"""


def test_cancelling_ends_children_that_ignore_sigterm(tmp_path: Path) -> None:
    noted = tmp_path / "pids"
    cancel_when(noted, sys.executable, "-c", _STUBBORN, str(noted))
    assert [pid for pid in map(int, noted.read_text().split()) if is_alive(pid)] == []


def test_cancelling_while_a_program_starts_ends_its_children(tmp_path: Path) -> None:
    """The program runs already when the event loop has not yet finished starting it."""
    noted = tmp_path / "pids"
    script = f"sleep 600 & echo $$ $! > '{noted}.part'; mv '{noted}.part' '{noted}'; wait"

    async def main() -> None:
        async with process.task_group() as group:

            async def start() -> None:
                await process.run(["sh", "-c", script], on_line=lambda _: None)

            group.start_soon(start)
            while not noted.exists():
                await anyio.lowlevel.checkpoint()
                time.sleep(0.1)  # noqa: ASYNC251  (the loop is to be slower than the program)
            group.cancel_scope.cancel()

    anyio.run(main)
    assert [pid for pid in map(int, noted.read_text().split()) if is_alive(pid)] == []


def test_what_a_program_leaves_running_is_ended(tmp_path: Path) -> None:
    noted = tmp_path / "pid"
    done, lines = run("sh", "-c", f"sleep 600 & echo $! > '{noted}'; echo said")
    assert (done.returncode, lines) == (0, ["said"])
    assert not is_alive(int(noted.read_text()))


def test_what_left_the_group_and_holds_the_pipe_is_not_waited_for(tmp_path: Path) -> None:
    noted = tmp_path / "pid"
    script = f"setsid sh -c 'echo $$ > \"$0\"; exec sleep 600' '{noted}' & echo said"
    try:
        done, lines = run("sh", "-c", script)
        assert (done.returncode, lines) == (0, ["said"])
    finally:
        wait_for(lambda: noted.exists() and noted.read_text().strip())
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(noted.read_text()), signal.SIGKILL)


_AS_FIRST_PROCESS = """\
import anyio, sys
from condainer.system import process
assert __import__("os").getpid() == 1
command = ["sh", "-c", "sleep 600 & echo said"]
done = anyio.run(lambda: process.run(command, on_line=print))
print(done.verdict)
"""


def test_children_that_nobody_waits_for_do_not_hold_a_build_up() -> None:
    """As the first process of a container that starts nothing to collect orphans."""
    if os.getuid() != 0:
        pytest.skip("only root can make a process the first of its name space")
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c"]
    done = subprocess.run(
        [*command, _AS_FIRST_PROCESS],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("said\nexit status 0\n", "")


_ADOPTING = """\
import anyio
from condainer.system import groups, process
async def main():
    async with groups.adopting():
        await process.run(["sh", "-c", "setsid sleep 600 & echo $!"], on_line=print)
anyio.run(main)
"""


@pytest.mark.parametrize("has_children", [False, True])
def test_orphans_are_ended_by_a_process_that_has_no_other_children(*, has_children: bool) -> None:
    script = 'sleep 600 >&2 & echo $!; exec "$@"' if has_children else 'exec "$@"'
    done = subprocess.run(
        ["sh", "-c", script, "sh", sys.executable, "-c", _ADOPTING],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 1 + has_children
    alive = [pid for pid in pids if is_alive(pid)]
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
    assert alive == (pids if has_children else [])


def test_call_ends_what_does_not_answer(tmp_path: Path) -> None:
    noted = tmp_path / "pid"
    script = f"sleep 600 & echo $! > '{noted}'; wait"
    with pytest.raises(ToolError, match="did not answer within 1 s"):
        process.call(["sh", "-c", script], timeout=1.0)
    wait_for(lambda: not is_alive(int(noted.read_text())))
