"""Who keeps a mount, and which image it serves: killed keepers, replaced images."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.keepers import keepers_of, kill_keepers, pair_of, use
from tests.support import CONDAINER, daemons_of, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

from tests.support import Workshop


def rebuild(workshop: Workshop, word: str) -> None:
    """Put another image in the place of the one there is, as a build does."""
    tree, image = workshop.temporary / "tree", workshop.temporary / "new.squashfs"
    command = ["unsquashfs", "-quiet", "-no-progress", "-dest", str(tree), str(workshop.image)]
    subprocess.run(command, check=True, capture_output=True)
    (tree / "word").write_text(word)
    command = ["mksquashfs", str(tree), str(image), "-quiet", "-no-progress", "-all-root"]
    subprocess.run(command, check=True, capture_output=True)
    subprocess.run(["rm", "-r", str(tree)], check=True)
    image.replace(workshop.image)


def word_of(workshop: Workshop) -> str:
    return workshop.run("exec", "--", "sh", "-c", 'cat "$CONDA_PREFIX/word"', status=None).stdout


@pytest.fixture
def own(ready: Workshop) -> Iterator[Workshop]:
    """The project, whose image a test may replace: it is put back afterwards."""
    content = ready.image.read_bytes()
    yield ready
    ready.image.write_bytes(content)


def test_ps_shows_what_a_keeper_keeps(ready: Workshop) -> None:
    ready.run("mount")
    wait_for(lambda: len(keepers_of(ready)) == 2)
    ready.run("umount")
    ready.wait_until_clean()


def test_a_shadow_takes_over_where_the_keeper_is_killed(ready: Workshop) -> None:
    user = use(ready)
    keeper, _ = pair_of(ready)
    os.kill(keeper, signal.SIGKILL)
    user.communicate()
    ready.wait_until_clean()


def test_what_confines_the_first_command_confines_nobody_else(ready: Workshop) -> None:
    """The mount is shared: its daemon must not end with one command's processor time."""
    all_of_it = os.sched_getaffinity(0)
    limits = ["prlimit", "--cpu=7:", "--fsize=100000000:", "--nofile=100:"]
    confined = [*limits, "chrt", "--batch", "0", "taskset", "-c", str(min(all_of_it))]
    told = "taskset -p $$; ulimit -St; read _"
    command = [*confined, *CONDAINER, "exec", "--", "bash", "-c", told]
    user = subprocess.Popen(
        command,
        cwd=ready.directory,
        env=ready.variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert user.stdout is not None
    assert user.stdout.readline().rstrip().endswith(f"mask: {1 << min(all_of_it):x}")
    assert user.stdout.readline() == "7\n"
    (daemon,) = daemons_of(ready)
    for pid in (daemon, *keepers_of(ready)):
        assert os.sched_getaffinity(pid) == all_of_it
        assert os.sched_getscheduler(pid) == os.SCHED_OTHER
        for kind in (resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):
            soft, hard = resource.prlimit(pid, kind)
            assert soft == hard
    user.communicate("\n")
    ready.wait_until_clean()


def test_a_keeper_gets_another_shadow(ready: Workshop) -> None:
    user = use(ready)
    for _ in range(3):
        keeper, _ = pair_of(ready)
        os.kill(keeper, signal.SIGKILL)
        _, shadow = pair_of(ready, without=keeper)
        os.kill(shadow, signal.SIGKILL)
        pair_of(ready, without=shadow)
    assert ready.is_mounted()
    user.communicate()
    ready.wait_until_clean()


def test_a_mount_that_nobody_keeps_is_kept_by_the_next_exec(ready: Workshop) -> None:
    user = use(ready)
    daemon = daemons_of(ready)
    kill_keepers(ready)
    answer = ready.run("-v", "exec", "--", "hard-activated")
    assert answer.stdout == "activated\n"
    assert "nobody keeps it" in answer.stderr
    assert daemons_of(ready) == daemon
    user.communicate()
    ready.wait_until_clean()


def test_what_is_noted_of_a_mount_may_be_lost_or_damaged(ready: Workshop) -> None:
    user = use(ready)
    record = ready.runtime / f"{ready.uuid}.mount"
    whole = record.read_bytes()
    for content in (b"", whole[:40], b"condainer mount 0\n", whole[:18] + b"\xff" * 40, None):
        if content is None:
            record.unlink()
        else:
            record.write_bytes(content)
        assert ready.run("exec", "--", "hard-activated").stdout == "activated\n"
    user.communicate()
    ready.wait_until_clean()


def test_a_changed_configuration_counts_at_once(ready: Workshop) -> None:
    user = use(ready)
    command = ("exec", "--", "sh", "-c", "echo ${PYTHONNOUSERSITE-none}")
    assert ready.run(*command).stdout == "1\n"
    ready.configure(user_site_packages="true")
    try:
        assert ready.run(*command).stdout == "none\n"
    finally:
        ready.configure()
    user.communicate()
    ready.wait_until_clean()


def test_a_new_image_is_used_at_once_where_nobody_uses_the_old_one(own: Workshop) -> None:
    own.run("mount")
    rebuild(own, "new")
    assert word_of(own) == "new"
    assert json.loads(own.run("status", "--json").stdout)["mount"]["pinned"]
    own.run("umount")
    own.wait_until_clean()


def test_a_running_program_never_sees_its_files_change(own: Workshop) -> None:
    """Whoever comes after a build has the new image, in a namespace of its own."""
    rebuild(own, "first")
    with own.start(
        *("exec", "--", "sh", "-c", 'echo runs; read x; cat "$CONDA_PREFIX/word"'),
        stdin=subprocess.PIPE,
    ) as user:
        assert user.stdout is not None
        assert user.stdout.readline() == "runs\n"
        rebuild(own, "second")
        answer = own.run("exec", "--", "sh", "-c", 'cat "$CONDA_PREFIX/word"')
        assert (answer.stdout, answer.stderr) == ("second", "")
        assert user.communicate("go\n")[0] == "first"
    own.wait_until_clean()
    assert word_of(own) == "second"
    own.wait_until_clean()


def test_the_same_image_in_another_file_is_the_same(own: Workshop) -> None:
    user = use(own)
    copy = own.temporary / "copy"
    copy.write_bytes(own.image.read_bytes())
    copy.replace(own.image)
    answer = own.run("exec", "--", "true")
    assert answer.stderr == ""
    user.communicate()
    own.wait_until_clean()


@pytest.mark.skipif(os.getuid() != 0, reason="only root may have a mount namespace")
def test_a_mount_in_another_mount_namespace_is_let_alone(ready: Workshop) -> None:
    """A container may share the directory of the mountpoint, and not its mounts."""
    ready.run("mount")
    for _ in range(2):
        script = 'umount "$PREFIX"; "$@" exec -- hard-activated; "$@" exec -- hard-activated'
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", script, "sh", *CONDAINER],
            cwd=ready.directory,
            env={**ready.variables, "PREFIX": str(ready.prefix)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout == "activated\n" * 2, done.stderr
        wait_for(lambda: len(keepers_of(ready)) == 2)
        assert ready.is_mounted()
    ready.run("umount")
    ready.wait_until_clean()


def test_a_mount_that_goes_leaves_a_build_its_directory(ready: Workshop) -> None:
    """The empty one that was made while the last user ended."""
    ready.run("exec", "--", "true")
    lock = ready.runtime / f"{ready.uuid}.build"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        wait_for(lambda: not ready.is_mounted() and not keepers_of(ready))
        assert ready.prefix.is_dir()
    lock.unlink()
    assert "remove the empty directory" in ready.run("gc").stderr
    ready.wait_until_clean()


def test_a_mount_that_does_not_come_is_an_error(ready: Workshop) -> None:
    """Somebody who holds the lock of those who mount, and never does."""
    impatient = (
        "from condainer.mounting import live, use; live.DEADLINE = use.DEADLINE = 1.0; "
        "from condainer.start import entry; entry()"
    )
    command = [sys.executable, "-c", impatient, "exec", "--", "true"]
    ready.runtime.mkdir(mode=0o700)
    lock = ready.runtime / f"{ready.uuid}.mounting"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        answer = subprocess.run(
            command,
            cwd=ready.directory,
            env=ready.variables,
            capture_output=True,
            text=True,
            check=False,
        )
    assert answer.returncode == 125
    assert f"condainer: error: {ready.prefix} did not get mounted within 1 s" in answer.stderr
    lock.unlink()
    ready.runtime.rmdir()
