"""Mounts in a namespace of their own: without a setuid fusermount, and beside other users."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import support, users
from tests.chaos import lives
from tests.users import ANN, BOB

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.users import Place

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can become other users")

PROGRAMS = ("/usr/bin/fusermount3", "/usr/bin/fusermount")
SLOW = 'echo runs; cat >/dev/null; ls "$CONDA_PREFIX/bin/hard-hello"'
"""A command that uses the environment again when its standard input ends."""


@pytest.fixture(scope="module")
def place(hard_channel: Path) -> Iterator[Place]:
    """A project that two users share."""
    with users.shared_project(hard_channel) as made:
        yield made


@pytest.fixture(autouse=True)
def left(place: Place) -> Iterator[None]:
    """Nothing is left behind."""
    yield
    base = place.base
    support.wait_for(lambda: not list(base.iterdir()), f"left: {list(base.iterdir())}")


@pytest.fixture
def bare(place: Place) -> Iterator[Place]:
    """The same where there is no `fusermount`."""
    programs = [path for path in PROGRAMS if Path(path).exists()]
    hide = "".join(f"mount --bind /dev/null {path}; " for path in programs)
    assert place.enter(0, "sh", "-c", hide).returncode == 0
    yield place
    assert place.enter(0, "umount", *programs).returncode == 0


def prefix_of(place: Place) -> Path:
    identity = (place.anns / "condainer.yml").read_text().split()[1]
    return place.base / f"condainer-{identity}"


def start(place: Place, user: int, *argv: str) -> subprocess.Popen[str]:
    """Start a command and wait until it runs."""
    program = (users.PYTHON, "-m", "condainer", "exec", "--", *argv)
    process = place.start(user, *program, cwd=place.anns, stdin=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "runs\n", process.communicate()
    return process


def namespace_of(place: Place, user: int = ANN) -> str:
    command = ("exec", "--", "readlink", "/proc/self/ns/mnt")
    return place.run(user, *command, cwd=place.anns).stdout


def test_exec_without_fusermount(bare: Place) -> None:
    done = bare.run(ANN, "-v", "exec", "hard-hello", cwd=bare.anns)
    assert done.stdout.startswith(f"hello from {prefix_of(bare)}")
    assert "in a namespace of its own" in done.stderr


@pytest.mark.parametrize("backend", ["squashfuse_ll", "squashfuse", "python"])
def test_backends_without_fusermount(bare: Place, backend: str) -> None:
    others = [name for name in ("squashfuse_ll", "squashfuse") if name != backend]
    hide = "".join(f'mount --bind /dev/null "$(type -P {name})"; ' for name in others)
    show = "".join(f'umount "$(type -P {name})"; ' for name in others)
    try:
        assert bare.enter(0, "bash", "-c", hide).returncode == 0
        done = bare.run(ANN, "-v", "exec", "hard-hello", cwd=bare.anns)
        assert done.stdout.startswith(f"hello from {prefix_of(bare)}")
        assert f"mounted with {backend}" in done.stderr
    finally:
        bare.enter(0, "bash", "-c", show)


def test_the_portable_backend_without_fusermount(bare: Place) -> None:
    """It serves a mount that was made for it, if none of the others works."""
    own = f"{bare.directory}/checkout/condainer/fuse/__main__.py"
    hidden = ['"$(type -P squashfuse_ll)"', '"$(type -P squashfuse)"', own]
    hide = "".join(f"mount --bind /dev/null {path}; " for path in hidden)
    show = "".join(f"umount {path}; " for path in hidden)
    try:
        assert bare.enter(0, "bash", "-c", hide).returncode == 0
        done = bare.run(ANN, "-v", "exec", "hard-hello", cwd=bare.anns)
        assert done.stdout.startswith(f"hello from {prefix_of(bare)}")
        assert "mounted with fusepy" in done.stderr
    finally:
        bare.enter(0, "bash", "-c", show)


def test_all_of_a_user_share_one_namespace(bare: Place) -> None:
    first = start(bare, ANN, "sh", "-c", f"{SLOW}; readlink /proc/self/ns/mnt")
    seen = {namespace_of(bare) for _ in range(3)}
    out, _ = first.communicate()
    assert seen == {out.splitlines()[-1] + "\n"}
    assert first.returncode == 0


def test_many_at_once_share_one_namespace(bare: Place) -> None:
    program = (users.PYTHON, "-m", "condainer", "exec", "--", "readlink", "/proc/self/ns/mnt")
    started = [bare.start(ANN, *program, cwd=bare.anns) for _ in range(16)]
    answers = [process.communicate() for process in started]
    assert {process.returncode for process in started} == {0}, answers
    assert len({out for out, _ in answers}) == 1


def test_a_killed_keeper_does_not_take_the_namespace_with_it(bare: Place) -> None:
    user = start(bare, ANN, "sh", "-c", f"{SLOW}; readlink /proc/self/ns/mnt")
    first = namespace_of(bare)
    for _ in range(2):
        os.kill(keepers_of(bare)[0], signal.SIGKILL)
        assert namespace_of(bare) == first
    out, _ = user.communicate()
    assert out.splitlines()[-1] + "\n" == first


def keepers_of(place: Place) -> list[int]:
    lines = place.enter(ANN, "pgrep", "-fa", "^condainer-keep").stdout.splitlines()
    return sorted(int(line.split()[0]) for line in lines if str(place.directory) in line)


def daemons_of(place: Place) -> list[int]:
    lines = place.enter(ANN, "pgrep", "-fa", "^[^ ]*squashfuse_ll").stdout.splitlines()
    return [int(line.split()[0]) for line in lines if str(place.anns) in line]


def runtime_of(place: Place) -> Path:
    return place.base / f".condainer-{ANN}"


def test_where_the_daemon_has_died_nobody_enters_its_namespace(bare: Place) -> None:
    """What was mounted from inside would be found by nobody else, and again by nobody."""
    user = start(bare, ANN, "sh", "-c", "echo runs; cat >/dev/null")
    support.wait_for(lambda: len(keepers_of(bare)) == 2)
    stopped, daemons = keepers_of(bare), daemons_of(bare)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    for pid in daemons:
        os.kill(pid, signal.SIGKILL)
    support.wait_for(lambda: all(not lives(pid) for pid in daemons))
    program = (users.PYTHON, "-m", "condainer", "exec", "--", "ls", str(runtime_of(bare)))
    other = bare.start(ANN, *program, cwd=bare.anns)
    lock = runtime_of(bare) / f"{prefix_of(bare).name.removeprefix('condainer-')}.mounting"
    support.wait_for(lambda: lock.exists() or other.poll() is not None)
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    out, errors = other.communicate()
    assert (other.returncode, errors) == (0, "")
    assert len([name for name in out.splitlines() if name.endswith(".keeper")]) == 1, out
    user.communicate()


def test_a_keeper_whose_daemon_has_died_leaves_the_next_mount_alone(bare: Place) -> None:
    user = start(bare, ANN, "sh", "-c", "echo runs; cat >/dev/null")
    support.wait_for(lambda: len(keepers_of(bare)) == 2)
    (daemon,) = daemons_of(bare)
    os.kill(daemon, signal.SIGKILL)
    support.wait_for(lambda: not list(runtime_of(bare).glob("*.keeper")))
    (first,) = keepers_of(bare)
    text = (bare.anns / "condainer.yml").read_text()
    try:
        (bare.anns / "condainer.yml").write_text(text.replace(": 0.5", ": 60"))
        seen = namespace_of(bare)
        user.communicate()
        support.wait_for(lambda: not lives(first))
        assert namespace_of(bare) == seen
        bare.run(ANN, "umount", cwd=bare.anns)
    finally:
        (bare.anns / "condainer.yml").write_text(text)


def test_what_is_noted_of_namespaces_that_are_gone_goes_with_the_next_mount(bare: Place) -> None:
    """Their names come never again: they are of an image, and of where it was mounted."""
    runtime = runtime_of(bare)
    runtime.mkdir(mode=0o700)
    stem = prefix_of(bare).name.removeprefix("condainer-") + ".1f-2f-3f"
    for suffix in (".use", ".keeper", ".mount", ".log"):
        (runtime / f"{stem}{suffix}").touch(0o600)
    for path in (runtime, *runtime.iterdir()):
        os.chown(path, ANN, ANN)
    bare.run(ANN, "exec", "true", cwd=bare.anns)


def test_the_working_directory_stays(bare: Place) -> None:
    where = bare.anns
    assert bare.run(ANN, "exec", "pwd", cwd=where).stdout == f"{where}\n"
    gone = where.parent / "gone"
    gone.mkdir(mode=0o755)
    os.chown(gone, ANN, ANN)
    command = f'rmdir "$PWD"; {users.PYTHON} -m condainer -d {where} exec -- hard-hello'
    done = bare.enter(ANN, "sh", "-c", command, cwd=gone)
    assert done.stdout.startswith("hello"), done.stderr


def test_an_exec_within_an_exec(bare: Place) -> None:
    inner = f"{users.PYTHON} -I -c 'import os; print(os.readlink(\"/proc/self/ns/mnt\"))'"
    program = f"{users.PYTHON} -m condainer exec -- sh -c"
    command = f"readlink /proc/self/ns/mnt; {program} {shlex.quote(inner)}"
    path = f"{bare.directory}/library"
    done = bare.run(
        *(ANN, "exec", "--", "env", f"PYTHONPATH={path}", "sh", "-c", command),
        cwd=bare.anns,
    )
    first, second = done.stdout.split()
    assert first == second


def test_mount_unpacks_since_all_are_to_see_it(bare: Place) -> None:
    done = bare.run(ANN, "mount", cwd=bare.anns)
    assert "unpacking" in done.stderr
    program = prefix_of(bare) / "bin/hard-hello"
    assert bare.enter(ANN, str(program)).stdout.startswith("hello from")
    bare.run(ANN, "umount", cwd=bare.anns)


def test_umount_ends_a_mount_in_a_namespace(bare: Place) -> None:
    user = start(bare, ANN, "sh", "-c", SLOW)
    answer = bare.run(ANN, "umount", cwd=bare.anns, status=1)
    assert f"({user.pid})" in answer.stderr
    user.communicate()
    support.wait_for(lambda: not list(bare.base.iterdir()))
    file = bare.anns / "condainer.yml"
    text = file.read_text()
    file.write_text(text.replace("unmount_after: 0.5", "unmount_after: 600"))
    try:
        bare.run(ANN, "exec", "true", cwd=bare.anns)
        assert "unmounted" in bare.run(ANN, "umount", cwd=bare.anns).stderr
    finally:
        file.write_text(text)
    assert not prefix_of(bare).exists()


def test_a_build_leaves_the_mount_of_a_running_program_alone(bare: Place) -> None:
    """It installs at the mountpoint, and removes the directory: mounts would go with it."""
    ann = start(bare, ANN, "sh", "-c", SLOW)
    bob = start(bare, BOB, "sh", "-c", SLOW)
    for running in (ann, bob):
        answer = bare.run(ANN, "build", "--force", "-q", cwd=bare.anns, status=None)
        out, errors = running.communicate()
        assert (running.returncode, errors) == (0, ""), out
        assert answer.returncode != 0
        assert f"{prefix_of(bare)} is in use" in answer.stderr
    bare.run(ANN, "exec", "true", cwd=bare.anns)

    def can_build() -> bool:  # when the other's keeper has seen that nobody uses it any more
        again = bare.run(ANN, "build", "--force", "-q", cwd=bare.anns, status=None)
        return again.returncode == 0

    support.wait_for(can_build)


def test_nobody_mounts_while_a_build_runs(bare: Place) -> None:
    lock = runtime_of(bare) / f"{prefix_of(bare).name.removeprefix('condainer-')}.build"
    lock.parent.mkdir(mode=0o700)
    os.chown(lock.parent, ANN, ANN)
    with bare.start(ANN, "flock", str(lock), "sh", "-c", "echo held; read x", stdin=-1) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        answer = bare.run(ANN, "exec", "true", cwd=bare.anns, status=None)
        holder.communicate("\n")
    lock.unlink(missing_ok=True)
    support.wait_for(lambda: not list(runtime_of(bare).glob("*")))
    runtime_of(bare).rmdir() if runtime_of(bare).exists() else None
    assert answer.returncode == 125
    assert "is being built" in answer.stderr


def test_what_a_killed_keeper_had_claimed_goes_with_the_next_mount(bare: Place) -> None:
    """The file by which users tell each other that they need the directory."""
    claim = prefix_of(bare).with_name(f"{prefix_of(bare).name}.{ANN}")
    claim.touch(0o644)
    os.chown(claim, ANN, ANN)
    bare.run(ANN, "exec", "true", cwd=bare.anns)


def test_the_older_of_two_mounts_keeps_the_claim_for_the_newer(bare: Place) -> None:
    """Bob's mounts of two states of the image are over one directory, which is Ann's."""
    image = next(bare.anns.glob("*.squashfs"))
    ann = start(bare, ANN, "sh", "-c", SLOW)
    older = start(bare, BOB, "sh", "-c", SLOW)
    os.utime(image)
    newer = start(bare, BOB, "sh", "-c", SLOW)
    claim = prefix_of(bare).with_name(f"{prefix_of(bare).name}.{BOB}")
    assert claim.exists()
    older.communicate()
    support.wait_for(lambda: len(list(claim.parent.glob(f".condainer-{BOB}/*.keeper"))) == 1)
    assert claim.exists()
    ann.communicate()
    out, errors = newer.communicate()
    assert (newer.returncode, errors) == (0, ""), out


def test_prereq_tells_of_namespaces(bare: Place) -> None:
    done = bare.run(ANN, "prereq", "--json", cwd=bare.anns)
    found = json.loads(done.stdout)
    assert (found["exec"], found["can_mount"]) == ("namespace", False)


def test_status_tells_of_a_mount_in_a_namespace(bare: Place) -> None:
    user = start(bare, ANN, "sh", "-c", SLOW)
    found = json.loads(bare.run(ANN, "status", "--json", cwd=bare.anns).stdout)
    (private,) = found["mount"]["private"]
    assert user.pid in [each["pid"] for each in private["users"]]
    assert private["backend"] == "squashfuse_ll"
    told = bare.run(ANN, "status", cwd=bare.anns).stdout
    assert "in a namespace" in told
    user.communicate()


def test_two_users_of_one_project_do_not_meet(place: Place) -> None:
    """The first mounts for all to see; the directory is theirs, and goes after the second."""
    ann = start(place, ANN, "sh", "-c", SLOW)
    bob = start(place, BOB, "sh", "-c", SLOW)
    assert namespace_of(place, ANN) != namespace_of(place, BOB)
    out, errors = ann.communicate()
    assert (ann.returncode, errors) == (0, ""), out
    support.wait_for(lambda: f" {prefix_of(place)} " not in mounts(place))
    out, errors = bob.communicate()
    assert (bob.returncode, errors) == (0, ""), out
    assert out.strip() == f"{prefix_of(place)}/bin/hard-hello"


def test_nothing_is_mounted_over_a_directory_of_somebody_who_is_not_trusted(place: Place) -> None:
    """The project is Ann's, so that Bob trusts her anyway, but not the other way round."""
    bob = start(place, BOB, "sh", "-c", SLOW)
    done = place.run(ANN, "-q", "exec", "hard-hello", cwd=place.anns, status=125)
    assert done.stdout == ""
    assert f"is mounted by user {BOB} (daemon)" in done.stderr
    assert "trusted_users" in done.stderr
    file = place.anns / "condainer.yml"
    text = file.read_text()
    file.write_text(f"{text}trusted_users: nobody, {BOB}\n")
    try:
        done = place.run(ANN, "exec", "hard-hello", cwd=place.anns)
        assert done.stdout.startswith("hello from")
    finally:
        file.write_text(text)
    bob.communicate()


def test_two_users_without_fusermount(bare: Place) -> None:
    ann, bob = (start(bare, user, "sh", "-c", SLOW) for user in (ANN, BOB))
    for process in (ann, bob):
        out, errors = process.communicate()
        assert (process.returncode, errors) == (0, ""), out


def mounts(place: Place) -> str:
    return place.enter(0, "cat", "/proc/self/mountinfo").stdout


def test_without_namespaces_the_image_is_unpacked(bare: Place) -> None:
    """A user namespace may forbid further ones."""
    drop = "setpriv --ambient-caps=-all --inh-caps=-all"
    command = f"{drop} {users.PYTHON} -m condainer -v exec hard-hello"
    done = bare.enter(
        *(ANN, "unshare", "-U", "--map-current-user", "--keep-caps", "sh", "-c"),
        f"echo 0 > /proc/sys/user/max_user_namespaces; {command}",
        cwd=bare.anns,
    )
    assert done.stdout.startswith("hello from"), done.stderr
    assert "a namespace of its own: No space left on device" in done.stderr
