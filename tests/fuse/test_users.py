"""The file system in the hands of ordinary users, who mount with the help of fusermount3."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import images, support, users
from tests.users import ANN, BOB, PYTHON

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.users import Place

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can become other users")

LONELY = 3  # somebody who runs nothing else, and has a name everywhere
ROOT = 0
FUSERMOUNT = "/usr/bin/fusermount3"


@pytest.fixture(scope="module")
def place(collection: images.Collection) -> Iterator[Place]:
    """Where everybody can read an image."""
    with users.namespace() as made:
        for name, layout in (("small", ("-b", "4096")), ("plain", ())):
            shutil.copy(collection.image(name, *layout), made.directory / f"{name}.squashfs")
        yield made


@pytest.fixture
def mountpoint(place: Place, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory of Ann's; afterwards nothing may be mounted there, and nobody serve it."""
    yield from directory_of(place, ANN, request.node.name)


@pytest.fixture
def lonely_mountpoint(place: Place, request: pytest.FixtureRequest) -> Iterator[Path]:
    """The same of somebody else's."""
    yield from directory_of(place, LONELY, request.node.name)


def directory_of(place: Place, user: int, name: str) -> Iterator[Path]:
    directory = place.project(user, name)
    yield directory
    left = is_mounted(place, directory)
    if left:
        place.enter(ROOT, "umount", "-l", str(directory))
    support.wait_for(lambda: not daemons(directory), "the daemon is still there")
    assert not left


def daemons(mountpoint: Path) -> list[int]:
    return support.running(Path(PYTHON).name, "condainer.fuse", str(mountpoint))


def is_mounted(place: Place, mountpoint: Path) -> bool:
    lines = Path(f"/proc/{place.pid}/mountinfo").read_text().splitlines()
    return any(line.split(" ")[4] == str(mountpoint) for line in lines)


def command(place: Place, mountpoint: Path, *options: str, image: str = "small") -> list[str]:
    return [
        *(PYTHON, "-m", "condainer.fuse", *options),
        *(str(place.directory / f"{image}.squashfs"), str(mountpoint)),
    ]


@contextlib.contextmanager
def served(place: Place, mountpoint: Path, *options: str) -> Iterator[None]:
    """The image as Ann mounts it."""
    done = place.enter(ANN, *command(place, mountpoint, *options))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    yield
    done = place.enter(ANN, "fusermount3", "-u", "--", str(mountpoint))
    assert (done.returncode, done.stderr) == (0, "")


def read(place: Place, user: int, path: Path) -> str:
    """What a user reads from a file, or is told instead."""
    done = place.enter(user, "cat", str(path))
    return done.stdout or done.stderr.rpartition(": ")[2].strip()


def test_it_is_for_who_has_mounted_it(place: Place, mountpoint: Path) -> None:
    with served(place, mountpoint):
        path = mountpoint / "text"
        assert read(place, ANN, path).startswith("text text ")
        assert read(place, BOB, path) == "Permission denied"
        assert read(place, ROOT, path) == "Permission denied"


def test_a_signal_unmounts(place: Place, mountpoint: Path) -> None:
    done = place.enter(ANN, *command(place, mountpoint))
    assert done.returncode == 0
    (daemon,) = daemons(mountpoint)
    os.kill(daemon, signal.SIGTERM)
    support.wait_for(lambda: not is_mounted(place, mountpoint))


def test_it_unmounts_when_nobody_asks_any_more(place: Place, mountpoint: Path) -> None:
    done = place.enter(ANN, *command(place, mountpoint, "-o", "timeout=1"))
    assert done.returncode == 0
    assert is_mounted(place, mountpoint)
    support.wait_for(lambda: not is_mounted(place, mountpoint))


def test_the_mount_table(place: Place, mountpoint: Path) -> None:
    with served(place, mountpoint, "-o", "fsname=a\\,b c,noexec"):
        lines = Path(f"/proc/{place.pid}/mountinfo").read_text().splitlines()
        (line,) = [line for line in lines if line.split(" ")[4] == str(mountpoint)]
        assert {"ro", "nosuid", "nodev", "noexec"} <= set(line.split(" ")[5].split(","))
        assert f" fuse.condainer a,b\\040c ro,user_id={ANN},group_id={ANN}" in line


def test_others_are_let_in_only_where_the_machine_allows_it(place: Place, mountpoint: Path) -> None:
    done = place.enter(ANN, *command(place, mountpoint, "-o", "allow_other"))
    assert done.returncode == 1
    assert "user_allow_other" in done.stderr
    assert f"condainer.fuse: {FUSERMOUNT} cannot mount at {mountpoint}\n" in done.stderr


@pytest.fixture(scope="module")
def allowed(place: Place) -> Iterator[None]:
    """The machine allows everybody to let others in."""
    config = place.directory / "fuse.conf"
    config.write_text("user_allow_other\n")
    done = place.enter(ROOT, "mount", "--bind", str(config), "/etc/fuse.conf")
    assert done.returncode == 0, done.stderr
    yield
    place.enter(ROOT, "umount", "/etc/fuse.conf")


def test_it_is_silent_while_it_waits_for_who_uses_it(place: Place, mountpoint: Path) -> None:
    """However often it tries to unmount."""
    process = place.start(ANN, *command(place, mountpoint, "-f"))
    with process:
        support.wait_for(lambda: is_mounted(place, mountpoint))
        stay = f"cd {mountpoint}/directory && echo there && exec sleep 1000"
        with place.start(ANN, "sh", "-c", stay) as user:
            assert user.stdout is not None
            assert user.stdout.readline() == "there\n"
            process.terminate()
            images.wait_for_turns(process.pid)
            assert is_mounted(place, mountpoint)
            user.kill()
        assert process.communicate(timeout=support.PATIENCE) == ("", "")
        assert process.returncode == 0


@pytest.mark.usefixtures("allowed")
def test_others_are_let_in(place: Place, mountpoint: Path) -> None:
    with served(place, mountpoint, "-o", "allow_other"):
        for user in (ANN, BOB, ROOT):
            assert read(place, user, mountpoint / "text").startswith("text text ")
        assert read(place, BOB, mountpoint / "link").startswith("text text ")


@pytest.mark.usefixtures("allowed")
def test_the_kernel_checks_permissions_where_it_is_asked_to(place: Place, mountpoint: Path) -> None:
    with served(place, mountpoint, "-o", "allow_other"):
        assert can_open(place, BOB, mountpoint / "noise")
    with served(place, mountpoint, "-o", "allow_other,default_permissions"):
        assert not can_open(place, BOB, mountpoint / "noise")
        assert can_open(place, ROOT, mountpoint / "noise")
        assert read(place, BOB, mountpoint / "text").startswith("text text ")
    with served(place, mountpoint, "-o", f"allow_other,default_permissions,uid={BOB}"):
        assert can_open(place, BOB, mountpoint / "noise")


def can_open(place: Place, user: int, path: Path) -> bool:
    return place.enter(user, "cp", str(path), "/dev/null").returncode == 0


@pytest.mark.usefixtures("allowed")
def test_what_is_open_stays_open(place: Place, mountpoint: Path) -> None:
    """For who was let in, and has given up rights since: it may have to read its own program."""
    become = f"setpriv --reuid={BOB} --regid={BOB} --clear-groups"
    with served(place, mountpoint, "-o", "allow_root"):
        file, directory = mountpoint / "text", mountpoint / "directory"
        done = place.enter(ROOT, "sh", "-c", f"exec {become} cat <{file}")
        assert (done.stdout[:10], done.stderr) == ("text text ", "")
        done = place.enter(ROOT, "sh", "-c", f"exec {become} ls /dev/fd/0/ <{directory}")
        assert "Permission denied" in done.stderr  # it is opened anew


@pytest.mark.usefixtures("allowed")
def test_root_is_let_in_and_nobody_else(place: Place, mountpoint: Path) -> None:
    """Not even to what the kernel knows already because somebody else has read it."""
    with served(place, mountpoint, "-o", "allow_root"):
        for user in (ANN, ROOT):
            assert read(place, user, mountpoint / "text").startswith("text text ")
            assert place.enter(user, "ls", str(mountpoint)).stdout.startswith("directory\n")
        assert read(place, BOB, mountpoint / "text") == "Permission denied"
        assert read(place, BOB, mountpoint / "directory/inner/file") == "Permission denied"
        assert "Permission denied" in place.enter(BOB, "ls", str(mountpoint)).stderr


def test_without_fusermount(place: Place, mountpoint: Path) -> None:
    done = place.enter(ANN, "env", "PATH=/nowhere", *command(place, mountpoint))
    assert done.returncode == 1
    assert "there is no fusermount3 and no fusermount" in done.stderr


@pytest.mark.parametrize("name", ["fusermount3", "fusermount"])
def test_a_fusermount_that_is_not_setuid_is_not_the_one(
    place: Place, mountpoint: Path, name: str
) -> None:
    """An active conda environment may have one, first on PATH."""
    programs = powerless(place, name)
    path = f"PATH={programs}:/usr/bin:/bin"
    done = place.enter(ANN, "env", path, *command(place, mountpoint, "-o", "timeout=1"))
    assert (done.returncode, done.stderr) == (0, "")
    support.wait_for(lambda: not is_mounted(place, mountpoint))
    done = place.enter(ANN, "env", f"PATH={programs}", *command(place, mountpoint))
    assert done.returncode == 1
    assert f"{programs}/{name} cannot mount at {mountpoint}" in done.stderr


def powerless(place: Place, name: str) -> Path:
    """A directory with a fusermount that may do nothing."""
    programs = place.directory / f"conda-{name}"
    programs.mkdir(exist_ok=True)
    shutil.copyfile(FUSERMOUNT, programs / name)
    (programs / name).chmod(0o755)
    return programs


def test_only_fusermount(place: Place, mountpoint: Path) -> None:
    """As libfuse 2 calls it."""
    programs = place.directory / "only"
    programs.mkdir()
    (programs / "fusermount").symlink_to(FUSERMOUNT)
    argv = command(place, mountpoint, "-o", "timeout=1")
    done = place.enter(ANN, "env", f"PATH={programs}", *argv)
    assert (done.returncode, done.stderr) == (0, "")
    support.wait_for(lambda: not is_mounted(place, mountpoint))


def test_the_mount_goes_while_it_is_in_use(place: Place, mountpoint: Path) -> None:
    done = place.enter(ANN, *command(place, mountpoint))
    assert done.returncode == 0
    (daemon,) = daemons(mountpoint)
    script = 'cd "$0" && echo inside && exec sleep 60'
    with place.start(ANN, "sh", "-c", script, str(mountpoint)) as user:
        try:
            assert user.stdout is not None
            assert user.stdout.readline() == "inside\n"
            os.kill(daemon, signal.SIGTERM)
            support.wait_for(lambda: not is_mounted(place, mountpoint))
            assert daemons(mountpoint) == [daemon]
        finally:
            user.kill()


def test_a_link_to_a_mountpoint(place: Place, mountpoint: Path) -> None:
    link = place.directory / "link"
    link.symlink_to(mountpoint)
    done = place.enter(ANN, *command(place, link))
    assert (done.returncode, done.stderr) == (0, "")
    assert is_mounted(place, mountpoint)
    assert place.enter(ANN, "fusermount3", "-u", "--", str(mountpoint)).returncode == 0
    support.wait_for(lambda: not daemons(link))


_PASSING_ON = """
import ctypes, os, sys
image, place = sys.argv[1:]
device = os.open("/dev/fuse", os.O_RDWR)
os.set_inheritable(device, True)
data = b"fd=%d,rootmode=40000,user_id=0,group_id=0" % device
ctypes.CDLL(None).mount(b"test", os.fsencode(place), b"fuse", ctypes.c_ulong(1), data)
argv = [sys.executable, "-m", "condainer.fuse", "-f", image, f"/dev/fd/{device}"]
os.execv(sys.executable, argv)
"""


def test_the_device_is_not_taken_for_the_mountpoint(place: Place, mountpoint: Path) -> None:
    """In containers something is mounted at /dev/fuse, too; it is what a descriptor leads to."""
    image = str(place.directory / "small.squashfs")
    with place.start(ROOT, PYTHON, "-c", _PASSING_ON, image, str(mountpoint)) as process:
        support.wait_for(lambda: is_mounted(place, mountpoint))
        assert read(place, ROOT, mountpoint / "text").startswith("text ")  # it is served by now
        process.terminate()
        for _ in range(8):  # in which it would have done even what it does not at once
            images.wait_for_turns(process.pid)
        is_there = is_mounted(place, Path("/dev/fuse"))
        place.enter(ROOT, "umount", str(mountpoint))
        assert process.wait(support.PATIENCE) == 0
        assert is_there


def test_nobody_was_to_wait_for_children(place: Place, mountpoint: Path) -> None:
    """Whoever ignores SIGCHLD passes that on."""
    argv = command(place, mountpoint)
    script = "import os, signal, sys; signal.signal(17, signal.SIG_IGN); os.execv(sys.argv[1], "
    done = place.enter(ANN, PYTHON, "-c", f"{script}sys.argv[1:])", *argv)
    assert (done.returncode, done.stderr) == (0, "")
    (daemon,) = daemons(mountpoint)
    os.kill(daemon, signal.SIGTERM)
    support.wait_for(lambda: not is_mounted(place, mountpoint))


def test_a_mountpoint_of_somebody_else(place: Place) -> None:
    done = place.enter(ANN, *command(place, place.directory / "packages"))
    assert done.returncode == 1
    assert f"{FUSERMOUNT} cannot mount at" in done.stderr.splitlines()[-1]


_SIGNALLING = """#!/bin/sh
PATH=/usr/bin:/bin
case "$1" in -o) kill -TERM $PPID ;; esac
exec fusermount3 "$@"
"""


def test_a_signal_while_it_mounts(place: Place, mountpoint: Path) -> None:
    """It is heeded after the mount is there, so that none is left behind."""
    programs = place.directory / "bin"
    programs.mkdir()
    (programs / "fusermount3").write_text(_SIGNALLING)
    (programs / "fusermount3").chmod(0o755)
    process = place.start(ANN, "env", f"PATH={programs}", *command(place, mountpoint, "-f"))
    with process:
        assert process.wait(support.PATIENCE) == 0
    assert not is_mounted(place, mountpoint)


def test_as_few_processes_as_a_user_may_have(place: Place, lonely_mountpoint: Path) -> None:
    """Where no more threads can be had, those that are there do it all."""
    argv = command(place, lonely_mountpoint, "-f", image="plain")
    process = place.start(LONELY, "prlimit", "--nproc=2", "--", *argv)
    with process:
        support.wait_for(lambda: is_mounted(place, lonely_mountpoint) or process.poll() is not None)
        done = place.enter(LONELY, "cp", "-r", str(lonely_mountpoint / "sparse"), "/dev/null")
        assert done.returncode == 0, done.stderr
        process.terminate()
        images.wait_for_turns(process.pid)  # in which it cannot run what unmounts
        assert is_mounted(place, lonely_mountpoint)
        place.enter(ROOT, "umount", str(lonely_mountpoint))
        assert process.wait(support.PATIENCE) == 0


def test_no_thread_to_tell_who_waits(place: Place, lonely_mountpoint: Path) -> None:
    """It is mounted all the same."""
    pipe = lonely_mountpoint.with_name("pipe")
    os.mkfifo(pipe)
    os.chown(pipe, LONELY, LONELY)
    argv = command(place, lonely_mountpoint, "-f", "-o", f"notify_pipe={pipe}")
    process = place.start(LONELY, "prlimit", "--nproc=2", "--", *argv)
    with process:
        support.wait_for(lambda: is_mounted(place, lonely_mountpoint) or process.poll() is not None)
        done = place.enter(LONELY, "cat", str(lonely_mountpoint / "text"))
        assert done.stdout.startswith("text text ")
        place.enter(ROOT, "umount", str(lonely_mountpoint))
        _, errors = process.communicate(timeout=support.PATIENCE)
    assert errors == f"condainer.fuse: {pipe}: no thread can be started\n"
