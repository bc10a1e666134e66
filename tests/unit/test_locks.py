"""Lock files: who gets them, what becomes of them, and which directories are trusted."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from condainer.errors import CondainerError
from condainer.system import locks
from tests import support

if TYPE_CHECKING:
    from pathlib import Path

HOLD = """
import sys
from pathlib import Path
from condainer.system import locks

locks.acquire(Path(sys.argv[1]), shared=sys.argv[2] == "shared", timeout=60)
print("held", flush=True)
sys.stdin.read()
"""


def hold(path: Path, how: str = "alone") -> subprocess.Popen[str]:
    """Another process that holds a lock until its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, path, how],
        cwd=support.REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "locks" / "lock"


def test_a_lock_is_held_by_one(path: Path) -> None:
    with hold(path) as other:
        with pytest.raises(locks.BusyError, match="is held by another process"):
            locks.acquire(path)
        with pytest.raises(locks.BusyError):
            locks.acquire(path, shared=True)
        other.communicate()
    os.close(locks.acquire(path))


def test_shared_locks_do_not_exclude_each_other(path: Path) -> None:
    with hold(path, "shared") as other:
        os.close(locks.acquire(path, shared=True))
        with pytest.raises(locks.BusyError):
            locks.acquire(path)
        other.communicate()


def test_a_lock_is_dropped_when_its_holder_is_killed(path: Path) -> None:
    with hold(path) as other:
        other.kill()
    os.close(locks.acquire(path))


def test_a_lock_can_be_waited_for(path: Path) -> None:
    with hold(path) as other:
        released = threading.Thread(target=other.communicate)
        released.start()
        os.close(locks.acquire(path, timeout=support.PATIENCE))
        released.join()


def test_one_that_waits_gets_a_file_that_is_there(path: Path) -> None:
    """Not the one it waited for, which its holder has removed."""
    mine = locks.acquire(path)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, path, "alone"],
        cwd=support.REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as waiting:
        locks.discard(path, mine)
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == "held\n"
        assert path.exists()
        with pytest.raises(locks.BusyError):
            locks.acquire(path)
        waiting.communicate()


COUNT = """
import sys
from pathlib import Path
from condainer.system import locks

lock, counter = Path(sys.argv[1]), Path(sys.argv[2])
for _ in range(100):
    descriptor = locks.acquire(lock, timeout=60)
    counter.write_text(str(int(counter.read_text()) + 1))
    locks.discard(lock, descriptor)
"""


def test_removing_the_file_lets_nobody_in_twice(path: Path, tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    processes = [
        subprocess.Popen([sys.executable, "-c", COUNT, path, counter], cwd=support.REPOSITORY)
        for _ in range(6)
    ]
    assert [process.wait(support.PATIENCE) for process in processes] == [0] * 6
    assert counter.read_text() == "600"
    assert not path.parent.exists()


def test_discard_tidies_up(path: Path) -> None:
    locks.discard(path, locks.acquire(path))
    assert not path.parent.exists()


def test_discard_leaves_what_others_have_there(path: Path) -> None:
    descriptor = locks.acquire(path)
    (path.parent / "other").touch()
    locks.discard(path, descriptor)
    assert [each.name for each in path.parent.iterdir()] == ["other"]


def test_the_directory_is_private(path: Path) -> None:
    os.close(locks.acquire(path))
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("umask", [0o777, 0o177, 0o277])
def test_the_modes_do_not_hang_on_the_umask(path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        os.close(locks.acquire(path))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o777, 0o710, 0o701, 0o770])
def test_a_directory_open_to_others_is_refused(path: Path, mode: int) -> None:
    path.parent.mkdir()
    path.parent.chmod(mode)
    with pytest.raises(CondainerError, match="is not a directory that only you can use"):
        locks.acquire(path)
    assert list(path.parent.iterdir()) == []


def test_a_link_to_a_directory_is_refused(path: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    path.parent.symlink_to("real")
    with pytest.raises(CondainerError, match="is not a directory that only you can use"):
        locks.acquire(path)
    assert list((tmp_path / "real").iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_a_directory_of_somebody_else_is_refused(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    os.chown(path.parent, 65534, 65534)
    with pytest.raises(
        CondainerError, match=r"belongs to user 65534 \(nobody\), since 2"
    ) as caught:
        locks.acquire(path)
    assert "mount_base_directory: /var/tmp/NAME" in caught.value.hint


def test_a_link_in_place_of_the_file_is_refused(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    path.symlink_to(tmp_path / "target")
    with pytest.raises(CondainerError, match=r"cannot open .*lock: "):
        locks.acquire(path)
    assert not (tmp_path / "target").exists()


def test_a_base_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CondainerError, match="cannot make the directory") as caught:
        locks.acquire(tmp_path / "missing" / "locks" / "lock")
    assert str(tmp_path / "missing") in caught.value.hint


def test_a_lock_is_not_inherited_unasked(path: Path) -> None:
    descriptor = locks.acquire(path)
    subprocess.run(["sh", "-c", "true"], check=True, close_fds=False)
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)
