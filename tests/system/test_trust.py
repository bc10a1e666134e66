"""Other users of the node: what they plant, own or stop leads nobody's program astray."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import support, users
from tests.users import ANN, BOB, make

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.users import Place

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can become other users")


def test_a_file_system_of_another_user_is_not_believed(place: Place) -> None:
    """Its root says it is root's; who has mounted it is what counts."""
    theirs = make(place.directory / "theirs", 0o755, BOB)
    (image,) = place.anns.glob("*.squashfs")
    allowed = place.directory / "fuse.conf"
    allowed.write_text("user_allow_other\n")
    place.enter(0, "mount", "--bind", str(allowed), "/etc/fuse.conf")
    command = ("squashfuse", "-o", "allow_other", str(image), str(theirs))
    assert place.enter(BOB, *command).returncode == 0
    script = (
        "import sys; from condainer.system import trust; "
        "print(trust.find_stranger(sys.argv[1], {0}))"
    )
    try:
        told = place.enter(ANN, users.PYTHON, "-c", script, str(theirs)).stdout
        assert f"{theirs} is on a file system of user {BOB}" in told
    finally:
        place.enter(0, "umount", str(theirs))
        place.enter(0, "umount", "/etc/fuse.conf")


@pytest.fixture(scope="module")
def place(hard_channel: Path) -> Iterator[Place]:
    """A project of Ann's that is built."""
    with users.shared_project(hard_channel) as made:
        yield made


def prefix(place: Place) -> Path:
    (image,) = place.anns.glob("*.squashfs")
    return place.base / f"condainer-{image.stem}"


def at_base(place: Place, base: Path, more: str = "") -> Path:
    """The same image in a project with another mount base directory."""
    directory = place.project(ANN, f"at-{base.name}-{len(more)}")
    (image,) = place.anns.glob("*.squashfs")
    shutil.copy(image, directory)
    place.configure(directory, image.stem, base=base, more=more)
    return directory


@pytest.mark.parametrize("mode", [0o777, 0o775])
def test_nothing_happens_in_a_base_that_others_can_write_to(place: Place, mode: int) -> None:
    base = make(place.directory / f"base-{mode:o}", mode, ANN, BOB)
    directory = at_base(place, base)
    for command in (("exec", "true"), ("-q", "exec", "true")):
        done = place.run(ANN, *command, cwd=directory, status=125)
        assert f"{base} is not safe to run programs from" in done.stderr
        assert "trusted_users" in done.stderr
    for words in ("mount", "mount --backend extract", "build --force"):
        done = place.run(ANN, *words.split(), cwd=directory, status=1)
        assert f"{base} is not safe to run programs from" in done.stderr
    assert list(base.iterdir()) == []


def test_a_record_planted_in_a_base_that_others_can_write_to_names_nothing(place: Place) -> None:
    """An exchange of directories between a check and a removal needs a place like this."""
    base = make(place.directory / "exchange", 0o777, ANN)
    directory = at_base(place, base)
    identity = prefix(place).name.removeprefix("condainer-")
    precious = make(base / f"condainer-{identity}", 0o755, ANN)
    (precious / "work").touch()
    planted = make(base / f".condainer-{ANN}", 0o700, ANN)
    noted = {"process": 1, "temporary": str(precious), "made": "any"}
    (planted / f"{identity}.build").write_text(json.dumps(noted))
    os.chown(planted / f"{identity}.build", ANN, ANN)
    done = place.run(ANN, "gc", cwd=directory)
    assert " as it is: " in done.stderr
    assert (precious / "work").exists()


def test_a_mountpoint_that_another_user_makes_and_mounts_at(place: Place) -> None:
    """Whoever owns it could put other programs there as soon as theirs is unmounted."""
    target = prefix(place)
    support.wait_for(lambda: not target.exists())
    make(target, 0o755, BOB, BOB)
    (image,) = place.anns.glob("*.squashfs")
    assert place.enter(BOB, "squashfuse", str(image), str(target)).returncode == 0
    try:
        for _ in range(2):
            done = place.run(ANN, "-q", "exec", "true", cwd=place.anns, status=125)
            assert f"{target} is mounted by user {BOB} (daemon)" in done.stderr
        done = place.run(ANN, "gc", cwd=place.anns)
        assert done.stderr == "nothing of yours is left behind on this node\n"
        assert place.run(0, "gc", cwd=Path("/")).returncode == 0
        assert f"{target} is ignored" in place.run(ANN, "-v", "gc", cwd=place.anns).stderr
        place.run(ANN, "status", cwd=place.anns)
        place.run(ANN, "umount", cwd=place.anns, status=1)
    finally:
        place.enter(BOB, "fusermount3", "-u", str(target))
        target.rmdir()


def test_a_mountpoint_that_root_has_made_is_for_all(place: Place) -> None:
    target = prefix(place)
    support.wait_for(lambda: not target.exists())
    make(target, 0o755)
    try:
        for user in (BOB, ANN):
            done = place.run(user, "exec", "hard-hello", cwd=place.anns)
            assert done.stdout.startswith("hello from")
            assert done.stderr == ""
        support.wait_for(lambda: not list(target.parent.glob(".condainer-*")))
        target.chmod(0o777)
        done = place.run(ANN, "exec", "true", cwd=place.anns, status=125)
        assert f"{target} is not safe to run programs from" in done.stderr
    finally:
        target.rmdir()


def test_a_file_beside_the_mountpoint_that_another_user_locks(place: Place) -> None:
    target = prefix(place)
    support.wait_for(lambda: not target.exists())
    locked = []
    for suffix in ("anything", str(ANN), "0"):
        path = target.with_name(f"{target.name}.{suffix}")
        path.touch()
        os.chown(path, BOB, BOB)
        locked.append(path.open())
        fcntl.flock(locked[-1], fcntl.LOCK_EX)
    try:
        assert place.run(ANN, "exec", "hard-hello", cwd=place.anns).stdout.startswith("hello")
        place.run(ANN, "umount", cwd=place.anns)
        place.run(ANN, "build", "--force", "-q", cwd=place.anns)
    finally:
        for file in locked:
            file.close()
            Path(file.name).unlink()


def test_a_mount_at_the_runtime_directory_is_not_asked(place: Place) -> None:
    target = place.base / f".condainer-{ANN}"
    support.wait_for(lambda: not target.exists())
    make(target, 0o700, ANN, ANN)
    assert place.enter(0, "mount", "-t", "tmpfs", "-o", "mode=700", "none", str(target))
    place.enter(0, "chown", f"{ANN}:{ANN}", str(target))
    try:
        done = place.run(ANN, "exec", "true", cwd=place.anns, status=125)
        assert f"something is mounted at {target}" in done.stderr
    finally:
        place.enter(0, "umount", str(target))
        target.rmdir()


def test_a_daemon_that_is_stopped_keeps_no_command_waiting(place: Place) -> None:
    """Each says which process to look at; nothing has gone when that goes on."""
    place.run(ANN, "mount", cwd=place.anns)
    (daemon,) = support.running("squashfuse_ll", str(prefix(place)))
    os.kill(daemon, signal.SIGSTOP)
    try:
        commands = {
            name: place.start(ANN, users.PYTHON, "-m", "condainer", *argv, cwd=place.anns)
            for name, argv in {
                "exec": ("exec", "true"),
                "status": ("status",),
                "umount": ("umount",),
                "gc": ("gc",),
                "mount": ("mount",),
            }.items()
        }
        told = {name: command.communicate(timeout=60) for name, command in commands.items()}
        for name, (out, errors) in told.items():
            assert f"process {daemon}, which serves {prefix(place)}, is stopped" in out + errors, (
                name
            )
        assert commands["exec"].returncode == 125
        assert f"kill -CONT {daemon}" in told["exec"][1]
        assert told["exec"][0] == ""
    finally:
        os.kill(daemon, signal.SIGCONT)
    assert place.run(ANN, "exec", "hard-hello", cwd=place.anns).stdout.startswith("hello")
    place.run(ANN, "umount", cwd=place.anns)


_SILENT = """
import stat, sys, time, mfusepy
class Silent(mfusepy.Operations):
    use_ns = True
    def getattr(self, path, fh=None):
        return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
    def statfs(self, path):
        time.sleep(100000)
mfusepy.FUSE(Silent(), sys.argv[1], foreground=True, nothreads=True)
"""
"""A file system that reads a request and never answers: not even SIGKILL ends who has asked."""


@pytest.fixture
def silent(place: Place) -> Iterator[Path]:
    """Such a file system of Ann's."""
    directory = make(place.directory / "silent", 0o755, ANN, ANN)
    with place.start(ANN, users.PYTHON, "-c", _SILENT, str(directory)) as server:
        support.wait_for(
            lambda: f" {directory} " in place.enter(0, "cat", "/proc/self/mountinfo").stdout
        )
        yield directory
        server.kill()
    place.enter(0, "umount", str(directory))
    directory.rmdir()


def test_who_asks_a_silent_mount_comes_to_an_end(place: Place, silent: Path) -> None:
    script = (
        "import sys; from condainer.mounting import asking; asking.PATIENCE = 1\n"
        "try:\n    asking.see_served(sys.argv[1], 0)\n"
        "except asking.StuckError as error:\n    print(error)"
    )
    told = place.enter(ANN, users.PYTHON, "-c", script, str(silent))
    assert told.stdout.startswith(f"what serves {silent} has not answered for 1 s")


def test_root_does_not_wait_for_what_a_user_cannot_end(place: Place, silent: Path) -> None:
    script = (
        "import os, sys; from condainer import errors; from condainer.system import impersonation; "
        "impersonation.PATIENCE = 1\n"
        "try:\n    impersonation.run_as(int(sys.argv[2]), lambda _: os.statvfs(sys.argv[1]))\n"
        "except errors.CondainerError as error:\n    print(error)"
    )
    told = place.enter(0, users.PYTHON, "-c", script, str(silent), str(ANN))
    assert "waits for a mount that does not answer, and cannot be ended" in told.stdout


@pytest.mark.parametrize("number", ["4294967295", "4294967296", "9" * 30, "nosuch", "-1", ""])
def test_only_a_user_can_be_named(place: Place, number: str) -> None:
    done = place.run(0, "gc", f"--user={number}", cwd=Path("/"), status=1)
    assert f"there is no user {number} on this machine" in done.stderr


def test_a_namespace_without_root_shows_root_as_nobody(place: Place) -> None:
    done = place.enter(
        *(BOB, "unshare", "-Ur", users.PYTHON, "-m", "condainer", "-d", str(place.anns)),
        *("exec", "hard-hello"),
    )
    assert "belongs to" not in done.stderr


@pytest.mark.parametrize("dangling", [False, True])
def test_no_link_of_others_says_where_an_image_is_written(place: Place, *, dangling: bool) -> None:
    directory = place.project(ANN, f"linked-{dangling}")
    directory.chmod(0o777)
    identity = str(uuid.uuid4())
    place.configure(directory, identity)
    private = place.directory / f"home-{ANN}" / f"thesis-{dangling}"
    if not dangling:
        private.write_text("mine")
        private.chmod(0o600)
        os.chown(private, ANN, ANN)
    link = directory / f"{identity}.squashfs"
    link.symlink_to(private)
    os.lchown(link, BOB, BOB)
    done = place.run(ANN, "build", "--force", cwd=directory, status=1)
    assert f"{link} is a link that belongs to user {BOB} (daemon)" in done.stderr
    os.lchown(link, ANN, ANN)
    if dangling:
        assert not private.exists()
    else:
        done = place.run(ANN, "build", "--force", cwd=directory, status=1)
        assert "which is not an image" in done.stderr
        assert private.read_text() == "mine"


@pytest.mark.parametrize(
    "content", [b"", b"(9999999999", b"i" + b"9" * 50, b"(1\n" * 50, b"\xe9\xff\xff\xff\x7f"]
)
def test_a_record_that_came_with_a_project_is_not_believed(place: Place, content: bytes) -> None:
    base = make(place.directory / f"brought-{len(content)}-{content[:1].hex()}", 0o755, ANN, ANN)
    directory = at_base(place, base, "#" * len(content))
    private = make(base / f".condainer-{ANN}", 0o700, ANN, ANN)
    identity = prefix(place).name.removeprefix("condainer-")
    for head in (b"condainer mount 6\n", b"condainer mount 5\n"):
        record = private / f"{identity}.mount"
        record.write_bytes(head + content)
        os.chown(record, ANN, ANN)
        place.run(ANN, "status", cwd=directory)
        done = place.run(ANN, "exec", "true", cwd=directory, status=125)
        assert "bug" not in done.stderr
        private.mkdir(mode=0o700, exist_ok=True)
        os.chown(private, ANN, ANN)


def test_a_claim_of_another_user_is_named(place: Place) -> None:
    target = prefix(place)
    support.wait_for(lambda: not target.exists())
    path = target.with_name(f"{target.name}.{BOB}")
    path.touch()
    os.chown(path, BOB, BOB)
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = place.run(ANN, "build", "--force", cwd=place.anns, status=1)
        assert f"is in use by user {BOB} (daemon), since 2" in done.stderr
        assert "mount_base_directory" in done.stderr
        told = place.run(ANN, "status", cwd=place.anns).stdout
        assert f"user {BOB} (daemon), since 2" in told
    path.unlink()


def test_root_takes_away_what_a_users_killed_jobs_have_left(place: Place) -> None:
    """An epilogue does: an unpacked copy, whose keeper and user were killed with the job."""
    place.run(ANN, "mount", "--backend", "extract", cwd=place.anns)
    kill_all_of(place, ANN)
    assert (prefix(place) / "bin").exists()
    assert place.run(BOB, "gc", "--user", str(ANN), cwd=Path("/"), status=1).stderr.count("root")
    there = ("-d", str(place.anns), "gc")
    would = f"would user {ANN} (nobody): unmount {prefix(place)}"
    support.wait_for(  # who is killed drops locks a moment after it is no longer seen
        lambda: would in place.run(0, "-n", *there, "--user", "nobody", cwd=Path("/")).stderr
    )
    assert (prefix(place) / "bin").exists()
    place.run(0, *there, "--all", cwd=Path("/"))
    assert not prefix(place).exists()
    done = place.run(0, *there, "--user", str(ANN), cwd=Path("/"))
    assert done.stderr == "nothing is left behind on this node\n"


def test_root_is_led_nowhere_by_what_a_user_has_planted(place: Place) -> None:
    base = place.base
    identity = str(uuid.uuid4())
    roots = make(place.directory / "roots", 0o700)
    (roots / f"{identity}.build").write_text(
        json.dumps({"process": 1, "temporary": str(roots), "made": "any"})
    )
    planted = base / f".condainer-{ANN}"
    support.wait_for(lambda: not planted.exists())
    planted.symlink_to(roots)
    target = base / f"condainer-{identity}"
    target.symlink_to(roots)
    for path in (planted, target):
        os.lchown(path, ANN, ANN)
    try:
        for whose in (("--user", str(ANN)), ("--all",)):
            done = place.run(0, "-d", str(place.anns), "gc", *whose, cwd=Path("/"), status=None)
            assert "bug" not in done.stderr
        assert [path.name for path in roots.iterdir()] == [f"{identity}.build"]
        assert target.is_symlink()
    finally:
        planted.unlink()
        target.unlink()


_SWAP = """
import os, sys
directory, private = sys.argv[1:]
print("ready", flush=True)
while True:
    for name in os.listdir(directory):
        path = f"{directory}/{name}"
        if name.endswith(".part") and not os.path.islink(path):
            try:
                os.rename(path, f"{path}.away")
                os.symlink(private, path)
            except OSError:
                continue
"""
"""Puts a link in the place of each file that is being written, as soon as it is there."""


@pytest.mark.parametrize("swaps", [False, True])
def test_no_link_in_a_project_directory_is_written_through(place: Place, *, swaps: bool) -> None:
    """Others may write to it: they plant names that could be guessed, or exchange what is new."""
    directory = place.project(ANN, f"shared-{swaps}")
    directory.chmod(0o777)
    identity = str(uuid.uuid4())
    place.configure(directory, identity)
    private = place.directory / f"home-{ANN}" / "private"
    private.write_text("mine")
    private.chmod(0o600)
    os.chown(private, ANN, ANN)
    names = ("activate", "deactivate", f"{identity}.squashfs", f"{identity}.build.log")
    last = int(Path("/proc/loadavg").read_text().split()[-1])
    for name in names:
        for pid in range(last, last + 2000):
            (directory / f".{name}.{os.uname().nodename}.{pid}.part").symlink_to(private)
    with place.start(
        *(BOB, users.PYTHON, "-c", _SWAP, str(directory), str(private)),
        stdin=subprocess.DEVNULL,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        if not swaps:
            other.kill()
        done = place.run(ANN, "build", "-q", cwd=directory, status=None)
        other.kill()
    assert private.read_text() == "mine"
    assert private.stat().st_mode & 0o777 == 0o600
    if swaps:
        assert "has been replaced while it was being written" in done.stderr
    else:
        assert done.returncode == 0


def kill_all_of(place: Place, user: int) -> None:
    """End a job: all that its user runs from this place, and what takes its place meanwhile."""
    support.wait_for(lambda: not _kill(user, str(place.directory).encode()))


def _kill(user: int, words: bytes) -> bool:
    """Kill what a user runs with certain words; gives whether there was any."""
    found = False
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                mine = process.stat().st_uid == user
                if mine and words in (process / "cmdline").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)
                    found = True
            except OSError:
                continue
    return found
