"""The life of a mount: who makes it, who shares it, what ends it, and what is refused."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from condainer.running import shell
from condainer.system import mounttable, users
from tests import building, support
from tests.support import CONDAINER, daemons_of, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support import Workshop

pytestmark = pytest.mark.slow

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can do that")


def mount_status(workshop: Workshop) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(workshop.run("status", "--json").stdout)["mount"]
    return found


def wait_for_users(workshop: Workshop) -> None:
    """Wait until a command runs from the mount."""
    own = {"python", "python3", "condainer", Path(sys.executable).resolve().name}

    def commands() -> set[str]:
        return {user["command"] for user in mount_status(workshop).get("users", ())}

    wait_for(lambda: commands() - own, "nobody uses the mount")


# mount and umount


def test_mount_stays_until_umount(ready: Workshop) -> None:
    ready.run("mount")
    ready.run("exec", "--", "true")
    assert ready.is_mounted()
    assert mount_status(ready) == {
        "state": "mounted",
        "backend": "squashfuse_ll",
        "pinned": True,
        "users": [],
    }
    ready.run("umount")
    assert not ready.is_mounted()
    assert not ready.prefix.exists()


def test_mount_outlasts_the_idle_time(ready: Workshop) -> None:
    ready.configure(unmount_after=0)
    try:
        ready.run("mount")
        ready.run("exec", "--", "true")
        # A second mount of another project comes and goes meanwhile, with the same idle time.
        first = daemons_of(ready)
        keeper_turns(ready)
        assert daemons_of(ready) == first
        ready.run("umount")
    finally:
        ready.configure()


def keeper_turns(workshop: Workshop) -> None:
    """Wait until the keeper of a mount has had several looks at it.

    Its look takes the lock for an instant, which updates nothing; what it does update is its own
    count of voluntary context switches.
    """
    (daemon,) = daemons_of(workshop)
    keeper = int(Path(f"/proc/{daemon}/stat").read_text().rpartition(")")[2].split()[1])

    def switches() -> int:
        status = Path(f"/proc/{keeper}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("voluntary"))
        return int(line.split()[1])

    before = switches()
    wait_for(lambda: switches() >= before + 4)


def test_mount_prints_the_mountpoint(mounted: Workshop) -> None:
    assert mounted.run("mount", "--print").stdout == f"{mounted.prefix}\n"
    assert (mounted.prefix / "bin" / "python").exists()


def test_mount_says_where(mounted: Workshop) -> None:
    answer = mounted.run("mount")
    assert answer.stdout == ""
    assert answer.stderr == f"mounted at {mounted.prefix}\n"


def test_mount_quietly(mounted: Workshop) -> None:
    answer = mounted.run("-q", "mount")
    assert answer.stdout + answer.stderr == ""


def test_mount_dry_run_mounts_nothing(ready: Workshop) -> None:
    answer = ready.run("-n", "mount")
    assert "would mount" in answer.stderr
    assert ready.left_over() == []


def test_umount_dry_run_unmounts_nothing(mounted: Workshop) -> None:
    answer = mounted.run("-n", "umount")
    assert "would unmount" in answer.stderr
    assert mounted.is_mounted()


def test_umount_when_not_mounted(ready: Workshop) -> None:
    answer = ready.run("umount")
    assert answer.stderr == f"{ready.prefix} is not mounted\n"
    assert ready.left_over() == []


def test_umount_after_exec_does_not_wait_for_the_idle_time(ready: Workshop) -> None:
    ready.configure(unmount_after=600)
    try:
        ready.run("exec", "--", "true")
        assert ready.is_mounted()
        ready.run("umount")
        assert not ready.is_mounted()
    finally:
        ready.configure()


@pytest.mark.parametrize("backend", ["squashfuse_ll", "squashfuse", "python", "fusepy"])
def test_backend_by_name(ready: Workshop, backend: str) -> None:
    ready.run("mount", "--backend", backend)
    assert mount_status(ready)["backend"] == backend
    assert ready.run("exec", "--", "hard-activated").stdout == "activated\n"
    ready.run("umount")


@needs_root
def test_kernel_backend(ready: Workshop) -> None:
    if subprocess.run(["losetup", "-f"], capture_output=True, check=False).returncode != 0:
        pytest.skip("there are no loop devices here")
    ready.run("mount", "--backend", "kernel")
    assert mount_status(ready)["backend"] == "kernel"
    assert ready.run("exec", "--", "hard-activated").stdout == "activated\n"
    ready.run("umount")


def test_a_mount_by_another_backend_stays_and_is_named(mounted: Workshop) -> None:
    answer = mounted.run("mount", "--backend", "squashfuse", "--print")
    assert answer.stdout == f"{mounted.prefix}\n"
    words = f"{mounted.prefix} is already mounted with squashfuse_ll, and stays so\n"
    assert answer.stderr == words
    assert mounted.run("mount", "--backend", "squashfuse_ll", "--print").stderr == ""
    assert mount_status(mounted)["backend"] == "squashfuse_ll"


def test_unknown_backend(ready: Workshop) -> None:
    answer = ready.run("mount", "--backend", "nosuch", status=2)
    assert "invalid choice: 'nosuch'" in answer.stderr
    assert ready.left_over() == []


def test_mount_is_read_only(mounted: Workshop) -> None:
    with pytest.raises(OSError, match="Read-only file system"):
        (mounted.prefix / "new").touch()


# exec's own mount


def test_the_mount_of_exec_goes_away_and_leaves_nothing(ready: Workshop) -> None:
    ready.run("exec", "--", "true")
    ready.wait_until_clean()
    assert not ready.is_mounted()
    assert daemons_of(ready) == []


def test_many_at_once_share_one_mount(ready: Workshop) -> None:
    gate_read, gate_write = os.pipe()
    script = "read line; ls -d $CONDA_PREFIX/bin/python"
    running = [ready.start("exec", "--", "sh", "-c", script, stdin=gate_read) for _ in range(30)]
    os.close(gate_read)
    wait_for(lambda: len(mount_status(ready).get("users", [])) == 30, "not all of them run")
    assert len(daemons_of(ready)) == 1
    os.write(gate_write, b"go\n" * 30)
    os.close(gate_write)
    for each in running:
        stdout, stderr = each.communicate(timeout=support.PATIENCE)
        assert (each.returncode, stdout, stderr) == (0, f"{ready.prefix}/bin/python\n", "")


def test_a_child_that_outlives_exec_keeps_the_mount(ready: Workshop) -> None:
    ready.configure(unmount_after=0)
    read, write = os.pipe()
    try:
        os.set_inheritable(read, True)  # noqa: FBT003
        script = f"(head -c 1 <&{read} >/dev/null; exec true) >/dev/null 2>&1 & echo $!"
        done = subprocess.run(
            [*CONDAINER, "exec", "--", "bash", "-c", script],
            cwd=ready.directory,
            env=ready.variables,
            pass_fds=[read],
            capture_output=True,
            text=True,
            check=True,
        )
        keeper_turns(ready)
        assert int(done.stdout) in [user["pid"] for user in mount_status(ready)["users"]]
    finally:
        os.close(write)
        os.close(read)
        ready.configure()
    ready.wait_until_clean()


def test_umount_in_use_is_refused_and_names_who(ready: Workshop) -> None:
    user = ready.start("exec", "--", "cat", stdin=subprocess.PIPE)
    wait_for_users(ready)
    answer = ready.run("umount", status=1)
    assert f"is in use by cat ({user.pid})" in answer.stderr
    assert (ready.prefix / "bin" / "python").exists()
    user.communicate()


def test_umount_names_who_only_stands_in_it(mounted: Workshop) -> None:
    with subprocess.Popen(["cat"], cwd=mounted.prefix / "bin", stdin=subprocess.PIPE) as stands:
        answer = mounted.run("umount", status=1)
        assert f"cat ({stands.pid})" in answer.stderr
        stands.communicate()
    assert mounted.is_mounted()


def test_umount_keeps_the_pin_where_it_is_refused(ready: Workshop) -> None:
    ready.run("mount")
    with subprocess.Popen(["cat"], cwd=ready.prefix, stdin=subprocess.PIPE) as stands:
        ready.run("umount", status=1)
        stands.communicate()
    assert mount_status(ready)["pinned"]
    ready.run("umount")


def test_descriptors_that_scripts_use_do_not_let_go_of_the_mount(ready: Workshop) -> None:
    script = "exec 3</dev/null 4</dev/null 5</dev/null 6</dev/null 9</dev/null; read line; true"
    user = ready.start("exec", "--", "sh", "-c", script, stdin=subprocess.PIPE)
    wait_for_users(ready)
    wait_for(lambda: os.path.exists(f"/proc/{user.pid}/fd/9"))  # noqa: PTH110
    assert [each["pid"] for each in mount_status(ready)["users"]] == [user.pid]
    user.communicate()


# Daemons that die


def kill_daemon(workshop: Workshop) -> None:
    (daemon,) = daemons_of(workshop)
    os.kill(daemon, signal.SIGKILL)
    wait_for(lambda: not daemons_of(workshop))


def test_a_dead_daemon_with_users_is_told_and_repaired(ready: Workshop) -> None:
    user = ready.start("exec", "--", "cat", stdin=subprocess.PIPE)
    wait_for_users(ready)
    kill_daemon(ready)
    try:
        # Its keeper takes it away at the same time.
        told = ready.run("status").stdout
        assert "its daemon has died" in told or "mounted     no\n" in told
        assert ready.run("exec", "--", "hard-activated").stdout == "activated\n"
    finally:
        user.communicate()


def test_a_dead_mount_that_somebody_stands_in_is_repaired(ready: Workshop) -> None:
    user = ready.start(
        "exec", "--", "sh", "-c", 'cd "$CONDA_PREFIX"; read x', stdin=subprocess.PIPE
    )
    wait_for_users(ready)
    wait_for(lambda: os.readlink(f"/proc/{user.pid}/cwd") == str(ready.prefix))  # noqa: PTH115
    kill_daemon(ready)
    assert ready.run("exec", "--", "hard-activated").stdout == "activated\n"
    user.communicate()


def test_umount_of_a_dead_mount(ready: Workshop) -> None:
    user = ready.start("exec", "--", "cat", stdin=subprocess.PIPE)
    wait_for_users(ready)
    kill_daemon(ready)
    ready.run("umount")
    assert not ready.is_mounted()
    user.communicate()


def test_a_dead_daemon_without_users_leaves_nothing(ready: Workshop) -> None:
    ready.run("mount")
    kill_daemon(ready)
    ready.wait_until_clean()


def test_mount_after_the_daemon_died(ready: Workshop) -> None:
    user = ready.start("exec", "--", "cat", stdin=subprocess.PIPE)
    wait_for_users(ready)
    kill_daemon(ready)
    ready.run("mount")
    assert mount_status(ready)["state"] == "mounted"
    user.communicate()
    ready.run("umount")


def test_a_keeper_that_is_asked_to_end_unmounts_when_idle(ready: Workshop) -> None:
    ready.run("mount")
    (daemon,) = daemons_of(ready)
    keeper = int(Path(f"/proc/{daemon}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(keeper, signal.SIGTERM)
    ready.wait_until_clean()


def test_an_exec_that_is_killed_lets_go_of_the_mount(ready: Workshop) -> None:
    user = ready.start("exec", "--", "cat", stdin=subprocess.PIPE)
    wait_for_users(ready)
    user.kill()
    user.communicate()
    ready.wait_until_clean()


def test_the_daemon_holds_nothing_of_the_caller(ready: Workshop, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    with (tmp_path / "held").open("w") as held, (tmp_path / "out").open("w") as out:
        subprocess.run(
            [*CONDAINER, "-d", str(ready.directory), "mount"],
            cwd=here,
            env=ready.variables,
            stdin=held,
            stdout=out,
            stderr=out,
            pass_fds=[held.fileno()],
            check=True,
        )
    (daemon,) = daemons_of(ready)
    parent = Path(f"/proc/{daemon}/stat").read_text().rpartition(")")[2].split()[1]
    for pid in (str(daemon), parent):
        assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
        opened = [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()]  # noqa: PTH115
        assert not [path for path in opened if path.startswith(str(tmp_path))]
        assert os.getsid(int(pid)) != os.getsid(0)
    ready.run("umount")


def test_a_shell_whose_lock_file_has_gone_mounts_nothing(ready: Workshop) -> None:
    """Such a mount would go at once, and take the file of the shell's next attempt with it."""
    lock = Path(ready.run("-q", "mount", "--for-shell").stdout.rstrip("\n"))
    with lock.open() as held:
        lock.unlink()
        done = subprocess.run(
            [*CONDAINER, "-q", "mount", "--for-shell", str(held.fileno())],
            cwd=ready.directory,
            env=ready.variables,
            pass_fds=[held.fileno()],
            check=False,
        )
    assert done.returncode == shell.TRY_AGAIN
    assert not ready.is_mounted()
    ready.run("exec", "--", "true")  # whose end takes the empty directory away


def test_ctrl_c_ends_the_command_and_not_the_mount(ready: Workshop) -> None:
    with support.terminal(
        [*CONDAINER, "exec", "--", "cat"],
        cwd=ready.directory,
        env=ready.variables,
    ) as terminal:
        terminal.type("started\n")
        terminal.expect("started\r\nstarted\r\n")  # from the terminal, and from the command
        before = daemons_of(ready)
        terminal.type("\x03")
        assert terminal.wait() == -signal.SIGINT
    assert len(before) == 1
    assert ready.is_mounted()
    assert daemons_of(ready) == before


DYING = """
import os, stat, sys, mfusepy

class Dying(mfusepy.Operations):
    def getattr(self, path, fh=None):
        if path != "/":
            os._exit(1)
        return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
    def readdir(self, path, fh):
        return [".", ".."]
mfusepy.FUSE(Dying(), sys.argv[-1], foreground=True, nothreads=True)
"""


def test_a_daemon_that_dies_under_the_first_look_is_followed_by_another(
    ready: Workshop, tmp_path: Path
) -> None:
    """Its mount is live until somebody reads a file of it."""
    program, died = tmp_path / "squashfuse_ll", shlex.quote(str(tmp_path / "died"))
    python, daemon = shlex.quote(sys.executable), shutil.which("squashfuse_ll")
    program.write_text(
        f'#!/bin/sh\n[ -e {died} ] && exec {daemon} "$@"\n'
        f'touch {died}\nexec {python} -c {shlex.quote(DYING)} "$@"\n'
    )
    program.chmod(0o755)
    path = f"{tmp_path}:{ready.variables['PATH']}"
    answer = ready.run("exec", "--", "hard-activated", variables={"PATH": path})
    assert (answer.stdout, answer.stderr) == ("activated\n", "")
    assert (tmp_path / "died").exists()


@needs_root
def test_a_mount_whose_path_has_gone_is_none(mounted: Workshop) -> None:
    """Another mount on the directory above hides it, in a namespace of its own."""
    script = 'mount -t tmpfs tmpfs "$0" && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, str(mounted.base), *CONDAINER, "status", "--json"],
        cwd=mounted.directory,
        env=mounted.variables,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["mount"] == {"state": "not mounted"}


# Images that are not what they should be


def damage_missing(image: Path) -> None:
    image.unlink()


def damage_empty(image: Path) -> None:
    os.truncate(image, 0)


def damage_truncated(image: Path) -> None:
    os.truncate(image, image.stat().st_size // 2)


def damage_head(image: Path) -> None:
    with image.open("r+b") as file:
        file.write(b"\0" * 96)


def damage_kind(image: Path) -> None:
    image.unlink()
    image.mkdir()


def damage_fifo(image: Path) -> None:
    image.unlink()
    os.mkfifo(image)


def damage_root(image: Path) -> None:
    """The superblock stays as it is; the tables behind it do not."""
    with image.open("r+b") as file:
        file.seek(96)
        file.write(b"\xff" * (image.stat().st_size - 96))


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (damage_missing, "there is no image"),
    (damage_empty, "is not a squashfs image"),
    (damage_truncated, "is truncated: it has"),
    (damage_head, "is not a squashfs image"),
    (damage_kind, "is not a regular file"),
    (damage_fifo, "is not a regular file"),
    (damage_root, "cannot mount"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGES)
def test_a_damaged_image_is_refused(
    ready: Workshop, tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    copy = ready.copy(tmp_path / "copy")
    damage(copy.image)
    for command, status in ((("mount",), 1), (("exec", "--", "true"), 125)):
        answer = copy.run(*command, status=status)
        assert answer.stdout == ""
        error = answer.stderr[answer.stderr.index("condainer: error: ") :]
        assert words in error
        assert str(copy.image) in error
        copy.wait_until_clean()


def test_an_image_that_condainer_did_not_build(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_text("x")
    subprocess.run(
        ["mksquashfs", tmp_path / "tree", workshop.image], check=True, capture_output=True
    )
    answer = workshop.run("exec", "--", "true", status=125)
    assert "it was not built by this condainer" in answer.stderr
    workshop.run("mount")
    assert (workshop.prefix / "file").read_text() == "x"
    workshop.run("umount")


def hostile_variable(name: str, value: object) -> Callable[[Workshop, Path], None]:
    def fill(workshop: Workshop, file: Path) -> None:
        document = {"prefix": str(workshop.prefix), "name": "n", "variables": {name: value}}
        file.write_text(json.dumps(document))

    return fill


def hostile_depth(_: Workshop, file: Path) -> None:
    file.write_text("[" * 100_000)


def hostile_size(_: Workshop, file: Path) -> None:
    file.touch()
    os.truncate(file, 1 << 27)


def hostile_pipe(_: Workshop, file: Path) -> None:
    os.mkfifo(file)


def hostile_link(workshop: Workshop, file: Path) -> None:
    hostile_variable("A", "x")(workshop, workshop.directory / "elsewhere.json")
    file.symlink_to(workshop.directory / "elsewhere.json")


def hostile_directory(workshop: Workshop, file: Path) -> None:
    hostile_variable("A", "x")(workshop, workshop.directory / file.name)
    file.parent.rmdir()
    file.parent.symlink_to(workshop.directory)


WRONG = "is not what it should be"


@pytest.mark.parametrize(
    ("fill", "words"),
    [
        (hostile_variable("A=B", "x"), WRONG),
        (hostile_variable("", "x"), WRONG),
        (hostile_variable("A\0B", "x"), WRONG),
        (hostile_variable("\ud800", "x"), WRONG),
        (hostile_variable("A", "x\0y"), WRONG),
        (hostile_variable("A", "\udfff"), WRONG),
        (hostile_depth, "activation.json: "),
        (hostile_size, "activation.json: it is larger than"),
        (hostile_pipe, "activation.json: it is not a regular file"),
        (hostile_link, "activation.json is a symbolic link"),
        (hostile_directory, ".condainer is a symbolic link"),
    ],
)
def test_an_image_whose_snapshot_cannot_be_trusted(
    workshop: Workshop, tmp_path: Path, fill: Callable[[Workshop, Path], None], words: str
) -> None:
    (tmp_path / "tree" / ".condainer").mkdir(parents=True)
    fill(workshop, tmp_path / "tree" / ".condainer" / "activation.json")
    subprocess.run(
        ["mksquashfs", tmp_path / "tree", workshop.image], check=True, capture_output=True
    )
    answer = workshop.run("exec", "--", "true", status=125)
    assert words in answer.stderr
    assert str(workshop.prefix) in answer.stderr
    assert "bug" not in answer.stderr


# Mountpoints that are taken


def squat_link(prefix: Path) -> None:
    (prefix.parent / "elsewhere").mkdir()
    prefix.symlink_to("elsewhere")


def squat_file(prefix: Path) -> None:
    prefix.write_text("mine")


def squat_full(prefix: Path) -> None:
    prefix.mkdir()
    (prefix / "precious").write_text("mine")


def squat_other(prefix: Path) -> None:
    prefix.mkdir()
    os.chown(prefix, 65534, 65534)


def picture(directory: Path) -> list[tuple[str, int, int, str]]:
    """What is below a directory, in detail."""
    return [
        (
            str(path),
            path.lstat().st_mode,
            path.lstat().st_uid,
            path.read_text() if path.is_file() else "",
        )
        for path in sorted(directory.rglob("*"))
    ]


SQUATS: list[tuple[Callable[[Path], None], str]] = [
    (squat_link, "is a symbolic link"),
    (squat_file, "is not a directory"),
    (squat_full, "is not empty"),
]


@pytest.mark.parametrize(
    ("squat", "words"),
    [*SQUATS, pytest.param(squat_other, "belongs to user 65534", marks=needs_root)],
)
def test_a_taken_mountpoint_is_refused_and_left_alone(
    ready: Workshop, squat: Callable[[Path], None], words: str
) -> None:
    squat(ready.prefix)
    before = picture(ready.base)
    try:
        for command, status in ((("mount",), 1), (("exec", "--", "true"), 125)):
            answer = ready.run(*command, status=status)
            assert f"the mountpoint {ready.prefix}" in answer.stderr
            assert words in answer.stderr
            assert picture(ready.base) == before
    finally:
        for path in ready.left_over():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def test_an_empty_left_over_mountpoint_is_used(ready: Workshop) -> None:
    ready.prefix.mkdir()
    assert ready.run("exec", "--", "hard-activated").stdout == "activated\n"


def test_left_over_lock_files_are_no_obstacle(ready: Workshop) -> None:
    ready.runtime.mkdir(mode=0o700)
    for suffix in ("use", "mounting"):
        (ready.runtime / f"{ready.uuid}.{suffix}").touch()
    assert ready.run("exec", "--", "hard-activated").stdout == "activated\n"


def squat_runtime_link(directory: Path) -> None:
    (directory.parent / "elsewhere").mkdir(mode=0o700)
    directory.symlink_to("elsewhere")


def squat_runtime_open(directory: Path) -> None:
    directory.mkdir()
    directory.chmod(0o777)


def squat_runtime_other(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    os.chown(directory, 65534, 65534)


def squat_runtime_file(directory: Path) -> None:
    directory.touch()


@pytest.mark.parametrize(
    "squat",
    [
        squat_runtime_link,
        squat_runtime_open,
        squat_runtime_file,
        pytest.param(squat_runtime_other, marks=needs_root),
    ],
)
def test_a_squatted_runtime_directory_is_refused(
    ready: Workshop, squat: Callable[[Path], None]
) -> None:
    squat(ready.runtime)
    before = picture(ready.base)
    try:
        answer = ready.run("exec", "--", "true", status=125)
        assert f"{ready.runtime} is not a directory that only you can use" in answer.stderr or (
            f"{ready.runtime} belongs to user" in answer.stderr
        )
        assert picture(ready.base) == before
    finally:
        for path in ready.left_over():
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink()


@pytest.mark.parametrize("base", ["/nowhere/at/all", "/proc"])
def test_a_base_directory_that_cannot_be_written(
    ready: Workshop, tmp_path: Path, base: str
) -> None:
    copy = ready.copy(tmp_path / "copy")
    copy.configure(mount_base_directory=base)
    answer = copy.run("exec", "--", "true", status=125)
    assert "mount_base_directory" in answer.stderr
    assert base in answer.stderr


def test_a_base_directory_where_everybody_may_replace_what_is_there(ready: Workshop) -> None:
    ready.base.chmod(0o777)
    try:
        for command, status in ((("mount",), 1), (("exec", "--", "true"), 125)):
            answer = ready.run(*command, status=status)
            assert f"{ready.base} is writable for all and has no sticky bit" in answer.stderr
            assert f"chmod +t {ready.base}" in answer.stderr
            assert ready.left_over() == []
    finally:
        ready.base.chmod(0o700)


# Projects in odd places


@pytest.mark.parametrize(
    "name", ["two words", "co,mma", "back\\slash", "größe", "qu'o\"te", "new\nline", "$HOME", "-x"]
)
def test_project_directories_with_odd_names(ready: Workshop, tmp_path: Path, name: str) -> None:
    copy = ready.copy(tmp_path / name)
    assert copy.run("exec", "--", "hard-activated").stdout == "activated\n"
    copy.wait_until_clean()


def test_a_project_whose_name_is_not_utf8(ready: Workshop, tmp_path: Path) -> None:
    copy = ready.copy(tmp_path / os.fsdecode(b"caf\xe9"))
    assert copy.run("exec", "--", "hard-activated").stdout == "activated\n"
    done = subprocess.run(
        [*CONDAINER, "status"],
        cwd=copy.directory,
        env=copy.variables,
        capture_output=True,
        check=True,
    )
    assert os.fsencode(copy.directory) in done.stdout
    copy.wait_until_clean()


def test_a_link_to_a_project(ready: Workshop, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(ready.directory)
    assert ready.run("-d", str(link), "exec", "--", "hard-activated").stdout == "activated\n"


def test_a_base_directory_behind_a_link(ready: Workshop, tmp_path: Path) -> None:
    copy = ready.copy(tmp_path / "copy")
    link = tmp_path / "base"
    link.symlink_to(ready.base)
    copy.configure(mount_base_directory=link)
    assert copy.run("mount", "--print").stdout == f"{link}/condainer-{copy.uuid}\n"
    assert mount_status(copy)["state"] == "mounted"
    copy.run("umount")


def test_two_slashes_before_the_base_directory(ready: Workshop, tmp_path: Path) -> None:
    copy = ready.copy(tmp_path / "copy")
    copy.configure(mount_base_directory=f"/{ready.base}")
    assert copy.run("exec", "--", "hard-activated").stdout == "activated\n"


@needs_root
def test_a_read_only_project(ready: Workshop, tmp_path: Path) -> None:
    copy = ready.copy(tmp_path / "copy")
    script = (
        'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && cd "$0" && ! touch new 2>&- '
        '&& "$@" exec -- hard-activated && "$@" -q umount'
    )
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, str(copy.directory), *CONDAINER],
        env=copy.variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "activated\n", "")


@needs_root
def test_without_squashfuse_python_takes_over(ready: Workshop) -> None:
    ready.configure(unmount_after=60)  # whatever the machine is busy with, `status` finds it
    try:
        script = '"$@" -v exec -- hard-activated && "$@" status --json && "$@" -q umount'
        done = support.without(ready, ["squashfuse", "squashfuse_ll"], script)
    finally:
        ready.configure()
    said, _, status = done.stdout.partition("\n")
    assert said == "activated"
    assert json.loads(status)["mount"]["backend"] == "python"
    assert done.stderr.splitlines() == [
        "condainer: there is no squashfuse_ll",
        "condainer: there is no squashfuse",
        "condainer: mounted with python",
    ]


@needs_root
def test_the_second_backend_is_taken_where_the_first_is_missing(ready: Workshop) -> None:
    script = '"$@" mount && "$@" status --json && "$@" -q umount'
    done = support.without(ready, ["squashfuse_ll"], script)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["mount"]["backend"] == "squashfuse"


def test_the_next_backend_is_taken_where_one_cannot_mount(ready: Workshop, tmp_path: Path) -> None:
    """As an old squashfuse that does not know how the image is compressed."""
    for name in ("squashfuse_ll", "squashfuse"):
        (tmp_path / name).write_text("#!/bin/sh\necho unknown compression >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    path = {"PATH": f"{tmp_path}:{ready.variables['PATH']}"}
    said = ready.run("-v", "mount", variables=path).stderr
    assert f"condainer: cannot mount {ready.image} with squashfuse: unknown compression\n" in said
    assert "condainer: mounted with python\n" in said
    assert mount_status(ready)["backend"] == "python"
    ready.run("umount")
    said = ready.run("mount", "--backend", "squashfuse", variables=path, status=1).stderr
    assert f"cannot mount {ready.image} with squashfuse: unknown compression" in said


# Who uses it

MAP = """
import mmap, os, sys
with open(sys.argv[1], "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
os.unlink(sys.argv[1])
print("mapped", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("name", ["plain", "two  words ", "new\nline", "carriage\rreturn", "ünï"])
def test_a_file_that_is_only_mapped_is_used(tmp_path: Path, name: str) -> None:
    """By a real process, whose line in /proc says (deleted) behind the path besides."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "file").write_text("x")
    with subprocess.Popen(
        [sys.executable, "-c", MAP, str(tmp_path / name / "file")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "mapped\n"
        found = users.users_of(tmp_path / name, tmp_path / "lock")
        nobody = users.users_of(tmp_path / name[:2], tmp_path / "lock")
        process.communicate()
    assert [user.pid for user in found] == [process.pid]
    assert nobody == []


# The mount table


@needs_root
def test_mountpoints_with_spaces_and_the_like(tmp_path: Path) -> None:
    """In a namespace of its own, so that nothing is left."""
    where = tmp_path / "a b\tc\nd\\e#f größe\rg"
    where.mkdir()
    script = "import sys\nfrom condainer.system import mounttable\nfrom pathlib import Path\n"
    script += "print(ascii(mounttable.mount_at(Path(sys.argv[1]))))"
    done = subprocess.run(
        [
            *("unshare", "-m", "sh", "-c", 'mount -t tmpfs "s p" "$1" && exec "$0" -c "$2" "$1"'),
            *(support.CONDAINER[0], str(where), script),
        ],
        cwd=support.REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    expected = mounttable.Mount(0, where, "tmpfs", "s p", None)
    assert re.sub(r"identity=\d+", "identity=0", done.stdout) == f"{expected!a}\n"


def test_mounts_below_a_path() -> None:
    found = mounttable.mounts_at_or_below(Path("/proc"))
    assert found[0].mountpoint == Path("/proc")
    assert found[0].kind == "proc"


def test_no_mount_at_an_ordinary_directory(tmp_path: Path) -> None:
    assert mounttable.mount_at(tmp_path) is None
    assert mounttable.mounts_at_or_below(tmp_path / "missing") == []


def test_a_mount_of_something_else_is_left_alone(workshop: Workshop, hard_channel: Path) -> None:
    workshop.environment("hard-text", channel=hard_channel)
    workshop.run("build", "-q")
    with building.mounted_tmpfs(workshop.prefix, "size=1m"):
        (workshop.prefix / "file").write_text("something\n")
        for arguments, status in ((("umount",), 1), (("mount",), 1), (("exec", "true"), 125)):
            answer = workshop.run(*arguments, status=status)
            assert f"something else is mounted at {workshop.prefix}: tmpfs" in answer.stderr
        assert "tmpfs" in workshop.run("status").stdout
        assert (workshop.prefix / "file").read_text() == "something\n"
    workshop.prefix.rmdir()
