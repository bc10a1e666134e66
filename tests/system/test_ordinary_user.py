"""The whole way as an ordinary user, with the setuid helper of FUSE; and two users side by side."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import support, users
from tests.users import ANN, BOB

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from tests.users import Place

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can become other users")


@pytest.fixture(scope="module")
def place(hard_channel: Path) -> Iterator[Place]:
    with users.shared_project(hard_channel) as made:
        yield made


@pytest.fixture(scope="module")
def anns(place: Place) -> Path:
    """A project that one user has built."""
    return place.anns


@pytest.fixture(scope="module")
def bobs(place: Place, anns: Path) -> Path:
    """The same project, image and all, copied by another user."""
    directory = place.project(BOB)
    shutil.copytree(anns, directory, dirs_exist_ok=True)
    return directory


def state(place: Place, user: int, directory: Path) -> str:
    found = json.loads(place.run(user, "status", "--json", cwd=directory).stdout)
    return str(found["mount"]["state"])


@pytest.mark.parametrize("user", [ANN, BOB])
def test_init(place: Place, user: int) -> None:
    directory = place.project(user, "new")
    place.run(user, "init", cwd=directory)
    assert {path.name for path in directory.iterdir()} == {"condainer.yml", "environment.yml"}
    assert {path.stat().st_uid for path in directory.iterdir()} == {user}


def test_build_and_exec(place: Place, anns: Path) -> None:
    done = place.run(ANN, "exec", "hard-hello", cwd=anns)
    assert done.stdout.startswith(f"hello from {place.directory}/base/condainer-")
    assert done.stderr == ""
    place.run(ANN, "exec", "--", "sh", "-c", "exit 7", cwd=anns, status=7)


@pytest.mark.parametrize("backend", ["squashfuse_ll", "squashfuse", "python", "fusepy"])
def test_mount_and_umount(place: Place, bobs: Path, backend: str) -> None:
    support.wait_for(lambda: not mountpoint(place, bobs).exists())
    place.run(BOB, "mount", "--backend", backend, cwd=bobs)
    assert state(place, BOB, bobs) == "mounted"
    place.run(BOB, "umount", cwd=bobs)
    assert state(place, BOB, bobs) == "not mounted"


def test_the_kernel_backend_is_not_theirs(place: Place, anns: Path) -> None:
    place.run(ANN, "umount", cwd=anns)
    done = place.run(ANN, "mount", "--backend", "kernel", cwd=anns, status=1)
    assert "'kernel' is for root only" in done.stderr


@pytest.mark.parametrize("umask", [0o777, 0o177])
def test_an_odd_umask(place: Place, anns: Path, umask: int) -> None:
    for _ in range(2):  # the second finds what the first has made
        place.run(ANN, "exec", "hard-hello", cwd=anns, umask=umask)
    place.run(ANN, "mount", cwd=anns, umask=umask)
    place.run(ANN, "umount", cwd=anns, umask=umask)


def test_a_dead_daemon_is_repaired(place: Place, anns: Path) -> None:
    place.run(ANN, "mount", cwd=anns)
    (daemon,) = support.running("squashfuse_ll", f"{mountpoint(place, anns)}")
    os.kill(daemon, 9)
    place.run(ANN, "exec", "hard-hello", cwd=anns)
    place.run(ANN, "umount", cwd=anns)


def mountpoint(place: Place, directory: Path) -> Path:
    (image,) = directory.glob("*.squashfs")
    return place.base / f"condainer-{image.stem}"


def test_prereq(place: Place, anns: Path) -> None:
    found = json.loads(place.run(ANN, "prereq", "--json", cwd=anns).stdout)
    failed = [check for check in found["checks"] if not check["ok"]]
    assert failed == []
    assert found["can_build"]
    assert found["can_mount"]


def fusermount_of(found: dict[str, Any]) -> dict[str, Any]:
    (check,) = [check for check in found["checks"] if check["name"] == "fusermount"]
    return dict(check)


def test_a_fusermount_that_is_not_setuid_is_passed_over(place: Place, anns: Path) -> None:
    """An active conda environment may have one, first on PATH."""
    programs = place.directory / "conda"
    programs.mkdir()
    shutil.copyfile("/usr/bin/fusermount3", programs / "fusermount3")
    (programs / "fusermount3").chmod(0o755)
    path = f"{programs}:/usr/bin:/bin"
    found = json.loads(place.run(ANN, "prereq", "--json", cwd=anns, PATH=path).stdout)
    assert fusermount_of(found)["detail"] == "/usr/bin/fusermount3"
    support.wait_for(lambda: not mountpoint(place, anns).exists())
    place.run(ANN, "mount", "--backend", "python", cwd=anns, PATH=path)
    place.run(ANN, "umount", cwd=anns, PATH=path)
    assert state(place, ANN, anns) == "not mounted"


_NOSUID = "mount --bind $0 $0; mount -o remount,bind,nosuid $0; "
_HIDDEN = "mount --bind /dev/null $0; "


@pytest.mark.parametrize(
    ("hide", "more", "words"),
    [
        (_HIDDEN, (), "not found"),
        (_NOSUID, (), "/usr/bin/fusermount3 is on a file system that is mounted nosuid"),
        ("", ("--no-new-privs",), "/usr/bin/fusermount3 gains no privileges here (no_new_privs)"),
    ],
    ids=["hidden", "nosuid", "no_new_privs"],
)
def test_a_fusermount_that_cannot_help_is_named(
    place: Place, anns: Path, hide: str, more: tuple[str, ...], words: str
) -> None:
    support.wait_for(lambda: not mountpoint(place, anns).exists())
    become = ("setpriv", f"--reuid={ANN}", f"--regid={ANN}", "--clear-groups", *more, "--")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        program = (*become, users.PYTHON, "-m", "condainer", *arguments)
        script = ("sh", "-c", hide + 'exec "$@"', "/usr/bin/fusermount3", *program)
        return place.enter(0, "unshare", "-m", *script, cwd=anns)

    done = run("prereq", "--json")
    check = fusermount_of(json.loads(done.stdout))
    assert (done.returncode, check["ok"], check["detail"]) == (0, False, words)
    assert "an administrator can" in check["hint"]
    done = run("-v", "exec", "hard-hello")
    assert done.stdout.startswith("hello from")
    assert "in a namespace of its own" in done.stderr
    done = run("mount", "--backend", "python")
    assert (done.returncode, done.stdout) == (1, "")
    assert "with python: " in done.stderr
    assert "'condainer prereq' tells what this machine can do" in done.stderr
    support.wait_for(lambda: not mountpoint(place, anns).exists())


def test_a_second_user_is_told_of_the_first(place: Place, anns: Path, bobs: Path) -> None:
    """Both have the same image, and so the same mountpoint."""
    place.run(ANN, "mount", cwd=anns)
    done = place.run(BOB, "exec", "hard-hello", cwd=bobs, status=125)
    assert done.stdout == ""
    assert f"is mounted by user {ANN} (nobody)" in done.stderr
    assert f"is mounted by user {ANN}" in place.run(BOB, "umount", cwd=bobs, status=1).stderr
    assert state(place, BOB, bobs) == "not mounted"
    assert state(place, ANN, anns) == "mounted"
    place.run(ANN, "umount", cwd=anns)
    place.run(BOB, "exec", "hard-hello", cwd=bobs)
    place.run(BOB, "umount", cwd=bobs)


def test_root_is_told_as_well(place: Place, anns: Path) -> None:
    place.run(ANN, "mount", cwd=anns)
    done = place.run(0, "mount", cwd=anns, status=1)
    assert f"is mounted by user {ANN}" in done.stderr
    assert place.run(0, "exec", "hard-hello", cwd=anns).stdout.startswith("hello from")
    place.run(ANN, "umount", cwd=anns)


def test_two_users_of_two_images_do_not_meet(place: Place, anns: Path, bobs: Path) -> None:
    other = place.project(BOB, "other")
    identity = str(uuid.uuid4())
    place.configure(other, identity)
    (image,) = bobs.glob("*.squashfs")
    shutil.copy(image, other / f"{identity}.squashfs")
    place.run(ANN, "mount", cwd=anns)
    place.run(BOB, "mount", cwd=other)
    assert state(place, BOB, other) == "mounted"
    place.run(BOB, "umount", cwd=other)
    assert state(place, ANN, anns) == "mounted"
    place.run(ANN, "umount", cwd=anns)


def test_a_project_of_somebody_else_can_be_used(place: Place, anns: Path) -> None:
    """Nothing is written beside the image."""
    before = sorted(anns.iterdir())
    place.run(ANN, "umount", cwd=anns)
    assert place.run(BOB, "exec", "hard-hello", cwd=anns).stdout.startswith("hello from ")
    place.run(BOB, "umount", cwd=anns)
    assert sorted(anns.iterdir()) == before


def test_a_squatted_mountpoint(place: Place, anns: Path) -> None:
    target = mountpoint(place, anns)
    support.wait_for(lambda: not target.exists())
    target.mkdir()
    (target / "something").touch()  # or else a keeper of theirs that is going takes it away
    os.chown(target, BOB, BOB)
    try:
        done = place.run(ANN, "exec", "true", cwd=anns, status=125)
        assert f"the mountpoint {target} belongs to user {BOB}" in done.stderr
        for command in ("status", "prereq"):
            told = place.run(ANN, command, cwd=anns, status=None).stdout
            assert f"the mountpoint {target} belongs to user {BOB}" in told
    finally:
        shutil.rmtree(target)


def test_a_squatted_runtime_directory(place: Place, anns: Path) -> None:
    target = place.base / f".condainer-{ANN}"
    support.wait_for(lambda: not target.exists())
    target.mkdir(mode=0o777)
    os.chown(target, BOB, BOB)
    try:
        done = place.run(ANN, "exec", "true", cwd=anns, status=125)
        assert f"{target} belongs to user {BOB} (daemon), since 2" in done.stderr
        assert "mkdir -m 700 /var/tmp/NAME" in done.stderr
        found = json.loads(place.run(ANN, "status", "--json", cwd=anns).stdout)
        assert str(target) in found["mount"]["problem"]
        found = json.loads(place.run(ANN, "prereq", "--json", cwd=anns, status=None).stdout)
        assert f"{target} belongs to user {BOB}" in json.dumps(found["checks"])
    finally:
        target.rmdir()


@pytest.mark.parametrize("command", [("status",), ("exec", "true"), ("init",)])
def test_a_project_that_cannot_be_read(place: Place, command: tuple[str, ...]) -> None:
    secret = place.project(BOB, f"secret-{command[0]}")
    secret.chmod(0o700)
    inside = secret / "project"
    inside.mkdir()
    status = 125 if command[0] == "exec" else 1
    done = place.run(ANN, "-d", str(inside), *command, cwd=Path("/"), status=status)
    assert done.stderr.startswith("condainer: error: cannot ")
    assert "Permission denied" in done.stderr
    assert "bug" not in done.stderr


def test_an_image_that_cannot_be_read(place: Place, bobs: Path) -> None:
    (image,) = bobs.glob("*.squashfs")
    image.chmod(0)
    try:
        done = place.run(BOB, "exec", "true", cwd=bobs, status=125)
        assert f"cannot read the image {image}: Permission denied" in done.stderr
    finally:
        image.chmod(0o644)


def test_a_closed_device_is_named(place: Place, anns: Path) -> None:
    device = place.directory / "fuse"
    device.chmod(0o600)
    try:
        support.wait_for(lambda: state(place, ANN, anns) == "not mounted")
        done = place.run(ANN, "-v", "exec", "hard-hello", cwd=anns)
        assert done.stdout.startswith("hello from")
        assert "cannot mount" in done.stderr
        assert "/dev/fuse" in done.stderr
        assert "mounted with extract" in done.stderr
        found = json.loads(place.run(ANN, "prereq", "--json", cwd=anns).stdout)
        assert (found["can_mount"], found["exec"]) == (False, "extract")
        hints = [check["hint"] for check in found["checks"] if check["name"] == "FUSE"]
        assert "chmod 666 /dev/fuse" in hints[0]
    finally:
        device.chmod(0o666)
