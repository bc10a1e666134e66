"""`gc`: what killed processes have left goes, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests import support
from tests.keepers import kill_keepers, stop_unpacking, unpackers_of, use
from tests.support import daemons_of, wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import Workshop


def test_nothing_is_left(ready: Workshop) -> None:
    assert "nothing of yours is left" in ready.run("gc").stderr
    assert not ready.left_over()


def test_a_live_mount_stays(ready: Workshop) -> None:
    ready.run("mount")
    assert str(ready.prefix) not in ready.run("gc").stderr
    assert ready.is_mounted()
    ready.run("umount")


def test_a_mount_that_nobody_keeps_or_uses_goes(ready: Workshop) -> None:
    ready.run("mount")
    kill_keepers(ready)
    assert f"would unmount {ready.prefix}" in ready.run("-n", "gc").stderr
    assert ready.is_mounted()
    assert f"unmount {ready.prefix}, which nobody uses" in ready.run("gc").stderr
    ready.wait_until_clean()


def test_a_mount_that_nobody_keeps_is_kept_while_it_is_used(ready: Workshop) -> None:
    user = use(ready)
    kill_keepers(ready)
    assert f"keep {ready.prefix}" in ready.run("gc").stderr
    assert ready.is_mounted()
    user.communicate()
    ready.wait_until_clean()


def test_a_dead_mount_goes(ready: Workshop) -> None:
    """As after the end of a job step, which kills all that it has started."""
    ready.run("mount")
    (daemon,) = daemons_of(ready)
    kill_keepers(ready)
    os.kill(daemon, signal.SIGKILL)
    wait_for(lambda: not daemons_of(ready))
    assert "whose daemon has died" in ready.run("gc").stderr
    ready.wait_until_clean()


def test_umount_sweeps_as_well(ready: Workshop) -> None:
    ready.run("mount")
    (daemon,) = daemons_of(ready)
    kill_keepers(ready)
    os.kill(daemon, signal.SIGKILL)
    wait_for(lambda: not daemons_of(ready))
    assert "unmounted" in ready.run("umount").stderr
    assert not ready.left_over()
    ready.runtime.mkdir(mode=0o700)
    (ready.runtime / f"{ready.uuid}.use").touch(0o600)  # of an exec that was killed early
    assert "is not mounted" in ready.run("umount").stderr
    assert not ready.left_over()


@pytest.mark.parametrize(
    "suffix",
    [
        *("mounting", "log", "keeper", "mount", "use", "reads"),
        *("results", "results.0123456789abcdef"),
    ],
)
@pytest.mark.parametrize("command", ["umount", "gc"])
def test_whatever_an_early_kill_left_goes(ready: Workshop, command: str, suffix: str) -> None:
    """An `exec` that is killed with its whole job may have made no more than one of the files."""
    ready.runtime.mkdir(mode=0o700)
    (ready.runtime / f"{ready.uuid}.{suffix}").touch(0o600)
    ready.run(command)
    assert not ready.left_over()


def test_a_record_that_was_not_written_to_its_end_goes(ready: Workshop) -> None:
    ready.runtime.mkdir(mode=0o700)
    script = (
        "import resource, signal, sys; from condainer.mounting import live; "
        "signal.signal(signal.SIGXFSZ, signal.SIG_DFL); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10)); "
        "live.write(sys.argv[1], live.Record(*[None] * len(live.Record.__slots__)))"
    )
    record = ready.runtime / f"{ready.uuid}.mount"
    command = [sys.executable, "-c", script, str(record)]
    done = subprocess.run(command, env=ready.variables, check=False)
    assert done.returncode == -signal.SIGXFSZ
    assert list(ready.runtime.iterdir())
    ready.run("exec", "--", "true")
    ready.wait_until_clean()


def kill_while_unpacking(workshop: Workshop) -> None:
    started = workshop.start("mount", "--backend", "extract")
    for pid in (started.pid, *reversed(stop_unpacking(workshop))):
        os.kill(pid, signal.SIGKILL)
    started.communicate()
    wait_for(lambda: not unpackers_of(workshop))
    tree = workshop.runtime / f"{workshop.uuid}.unpacking"
    tree.mkdir(exist_ok=True)  # which it had maybe not come to
    (tree / "file").touch()


@pytest.mark.parametrize("command", ["umount", "gc"])
def test_what_a_killed_unpacking_left_goes(ready: Workshop, command: str) -> None:
    kill_while_unpacking(ready)
    if command == "gc":
        assert "would remove what a killed unpacking left" in ready.run("-n", "gc").stderr
        assert list(ready.runtime.glob("*.unpacking"))
    ready.run(command)
    assert not ready.left_over()


def test_what_is_being_unpacked_stays(ready: Workshop) -> None:
    """Also where only the process is left that unpacks."""
    started = ready.start("mount", "--backend", "extract")
    unpacker, _ = stop_unpacking(ready)
    ready.run("gc")
    started.kill()
    started.communicate()
    assert "unpacking" not in ready.run("gc").stderr
    ready.run("umount")
    os.kill(unpacker, signal.SIGCONT)
    wait_for(lambda: not unpackers_of(ready))
    assert ready.run("exec", "--", "hard-activated").stdout == "activated\n"
    ready.wait_until_clean()


def test_lock_files_and_empty_directories_go(ready: Workshop) -> None:
    ready.run("mount")
    (daemon,) = daemons_of(ready)
    kill_keepers(ready)
    os.kill(daemon, signal.SIGKILL)
    wait_for(lambda: not daemons_of(ready))
    subprocess.run(["umount", "-l", str(ready.prefix)], check=True)
    assert ready.left_over()
    ready.run("gc")
    ready.wait_until_clean()
    ready.prefix.mkdir()
    assert f"the empty directory {ready.prefix}" in ready.run("gc").stderr
    assert not ready.left_over()


def test_what_is_not_empty_stays(ready: Workshop) -> None:
    ready.prefix.mkdir()
    (ready.prefix / "precious").write_text("mine")
    assert str(ready.prefix) not in ready.run("gc").stderr
    assert (ready.prefix / "precious").read_text() == "mine"
    (ready.prefix / "precious").unlink()
    ready.prefix.rmdir()


def test_what_a_killed_build_left_goes(workshop: Workshop, hard_channel: Path) -> None:
    workshop.environment("python", "hard-text", channel=hard_channel)
    build = workshop.start("build")
    wait_for(lambda: workshop.prefix.exists() and any(workshop.prefix.iterdir()))
    build.kill()
    build.communicate()
    assert "what a killed build left" in workshop.run("gc").stderr
    assert not workshop.prefix.exists()
    support.wait_for(lambda: not list(workshop.base.iterdir()))
