"""The end of a job's step kills all that it started, and with it what serves others as well.

A batch system does that with a control group, or with all processes that it can tell are the
step's; `tests/slurm.py` does it with a real one. What others run goes on, and what they begin
afterwards is mounted anew.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import support

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support import Workshop

GROUPS = (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup"))


class Step:
    """Marks what it starts, and can kill all of it."""

    def __init__(self) -> None:
        self.mark = str(uuid.uuid4())

    def start(self, built: Workshop, *command: str) -> subprocess.Popen[str]:
        variables = {**built.variables, "STEP": self.mark}
        return built.start("exec", "--", *command, env=variables, stdin=subprocess.PIPE)

    def kill(self) -> None:
        """As what tracks processes by what they have inherited."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        support.wait_for(lambda: not self.processes(), "killed processes live on")

    def processes(self) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if self.mark.encode() in (entry / "environ").read_bytes():
                        found.append(int(entry.name))
        return found


class Grouped(Step):
    """Starts everything in a control group."""

    def __init__(self, top: Path) -> None:
        super().__init__()
        self.group = top / f"condainer-{self.mark}"
        self.group.mkdir()

    def start(self, built: Workshop, *command: str) -> subprocess.Popen[str]:
        into = f'echo $$ >"{self.group}/cgroup.procs" && exec "$@"'
        inside = [*support.CONDAINER, "exec", "--", *command]
        return subprocess.Popen(
            ["/bin/sh", "-c", into, "sh", *inside],
            cwd=built.directory,
            env=built.variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def kill(self) -> None:
        (self.group / "cgroup.kill").write_text("1")
        support.wait_for(
            lambda: "populated 0" in (self.group / "cgroup.events").read_text(),
            "killed processes live on",
        )

    def processes(self) -> list[int]:
        return [int(line) for line in (self.group / "cgroup.procs").read_text().split()]


def group_top() -> Path | None:
    """Where control groups can be made that can be killed."""
    for top in GROUPS:
        with contextlib.suppress(OSError):
            trial = top / f"condainer-{uuid.uuid4()}"
            trial.mkdir()
            able = (trial / "cgroup.kill").exists()
            trial.rmdir()
            if able:
                return top
    return None


@pytest.fixture(params=["marked", "control group"])
def step(request: pytest.FixtureRequest) -> Iterator[Step]:
    if request.param == "marked":
        yield Step()
        return
    top = group_top()
    if top is None:
        pytest.skip("no control groups can be made here")
    made = Grouped(top)
    try:
        yield made
    finally:
        made.kill()
        made.group.rmdir()


def ready_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


WAIT = ("/bin/sh", "-c", "echo ready; read line; exit 3")
READS = """
import sys
print('ready', flush=True)
input()
try: open(sys.argv[1]).read()
except OSError: sys.exit(4)
"""
READ = (sys.executable, "-I", "-S", "-c", READS)


def test_others_go_on_after_the_step_that_mounted(ready: Workshop, step: Step) -> None:
    first = step.start(ready, *WAIT)
    assert ready_line(first) == "ready\n"
    with ready.start("exec", "--", *WAIT, stdin=subprocess.PIPE) as other:
        assert ready_line(other) == "ready\n"
        step.kill()
        first.communicate()
        assert first.returncode == -signal.SIGKILL
        # What begins is healed, also beside what still holds the mount that has died.
        for _ in range(3):
            done = ready.run("exec", "--", "hard-hello")
            assert done.stdout == f"hello from {ready.prefix}\n"
            assert done.stderr == ""
        assert other.poll() is None
        other.communicate("go on\n", timeout=support.PATIENCE)
        assert other.returncode == 3


def test_many_begin_right_after_the_end_of_a_step(ready: Workshop, step: Step) -> None:
    first = step.start(ready, *WAIT)
    assert ready_line(first) == "ready\n"
    step.kill()
    started = [ready.start("exec", "--", "hard-hello") for _ in range(12)]
    said = [process.communicate(timeout=support.PATIENCE) for process in started]
    assert set(said) == {(f"hello from {ready.prefix}\n", "")}
    assert {process.returncode for process in started} == {0}
    first.communicate()


def test_a_step_that_only_used_the_mount_ends(ready: Workshop, step: Step) -> None:
    with ready.start(
        "exec", "--", *READ, f"{ready.prefix}/bin/hard-hello", stdin=subprocess.PIPE
    ) as owner:
        assert ready_line(owner) == "ready\n"
        user = step.start(ready, *WAIT)
        assert ready_line(user) == "ready\n"
        step.kill()
        user.communicate()
        owner.communicate("go on\n", timeout=support.PATIENCE)
        assert owner.returncode == 0


def test_nothing_is_left_after_an_umount(ready: Workshop, step: Step) -> None:
    """A step ended with all that could have noticed that nobody uses the mount."""
    first = step.start(ready, *WAIT)
    assert ready_line(first) == "ready\n"
    step.kill()
    first.communicate()
    ready.run("-q", "umount")
    left = ready.left_over()
    ready.run("exec", "--", "/bin/true")  # whose keeper takes away whatever there is
    assert left == []
