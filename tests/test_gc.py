"""`gc`: what killed processes have left goes, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING

from tests import support
from tests.support import daemons_of, wait_for
from tests.test_keeping import keepers_of, pair_of, use

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import Workshop


def kill_keepers(workshop: Workshop) -> None:
    for pid in sorted(pair_of(workshop), reverse=True):
        os.kill(pid, signal.SIGSTOP)
    for pid in keepers_of(workshop):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not keepers_of(workshop))


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
