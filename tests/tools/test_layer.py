"""The layer that counts what reaches a file system: against strace, and against what is below."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks import contenders, layer
from benchmarks.layer import METADATA, Report, Server, Settings, below
from benchmarks.passthrough import Answer
from benchmarks.samples import Sample
from benchmarks.suites import metadata, parallel
from tests import images, support

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.skipif(
    not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="nothing can be mounted"
)
NEVER = 3600.0
"""Seconds that no test waits for."""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with some of everything."""
    top = tmp_path / "tree"
    images.make_plain(top)
    if os.getuid() == 0:
        images.make_special(top)
    return top


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A directory with ten files."""
    top = tmp_path / "small"
    (top / "sub").mkdir(parents=True)
    for number in range(10):
        (top / "sub" / f"f{number}").write_text(f"{number}" * 1000)
    return top


def everything(top: Path) -> list[Path]:
    """All names below a directory."""
    listed = [(directory, [*kinds, *files]) for directory, kinds, files in os.walk(top)]
    return [Path(directory) / name for directory, names in listed for name in names]


def facts(top: Path) -> dict[str, tuple[object, ...]]:
    """All names below a directory, with attributes and content."""
    found: dict[str, tuple[object, ...]] = {}
    for path in (top, *everything(top)):
        status = path.lstat()
        kind, content = stat.S_IFMT(status.st_mode), ""
        if kind == stat.S_IFREG:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        elif kind == stat.S_IFLNK:
            content = str(path.readlink())
        elif kind == stat.S_IFDIR:
            with os.scandir(path) as entries:
                content = str(
                    sorted((e.name, e.inode(), e.is_dir(follow_symlinks=False)) for e in entries)
                )
        numbers = (status.st_ino, status.st_size, status.st_nlink, status.st_blocks)
        owners = (status.st_mode, status.st_uid, status.st_gid, status.st_rdev)
        found[str(path.relative_to(top))] = (
            *numbers,
            *owners,
            status.st_mtime_ns,
            status.st_ctime_ns,
            content,
        )
    return found


def test_all_is_as_it_is_below(tree: Path, tmp_path: Path) -> None:
    expected = facts(tree)
    with below(tree, [tmp_path / "node"]):
        assert facts(tmp_path / "node") == expected
    assert len(expected) > 3000


def test_nothing_can_be_written(small: Path, tmp_path: Path) -> None:
    with below(small, [tmp_path / "node"]):
        for path in ("sub/f0", "new"):
            with pytest.raises(OSError, match="Read-only") as caught:
                (tmp_path / "node" / path).write_text("x")
            assert caught.value.errno == errno.EROFS
    assert (small / "sub/f0").read_text() == "0" * 1000


def test_a_known_series_of_operations_is_counted(small: Path, tmp_path: Path) -> None:
    node = tmp_path / "node"
    with below(small, [node]) as running:
        before = running.report().nodes[0].operations
        assert before == {"init": 1}
        for _ in range(3):  # the kernel answers the second and the third look-up by itself
            os.lstat(node / "sub")
        for number in range(7):
            descriptor = os.open(node / "sub" / f"f{number}", os.O_RDONLY)
            assert len(os.read(descriptor, 4096)) == 1000
            os.close(descriptor)
        for number in range(5):
            assert not (node / f"missing{number}").exists()
        (found,) = running.report().nodes
    counted = {kind: found.operations.get(kind, 0) for kind in ("lookup", "open", "read")}
    assert counted == {"lookup": 1 + 7 + 5, "open": 7, "read": 7}
    assert found.read_bytes == 7 * 1000
    assert found.metadata == 1 + 7 + 5 + 7 + found.operations.get("getattr", 0)


def test_each_node_has_caches_of_its_own(small: Path, tmp_path: Path) -> None:
    nodes = [tmp_path / f"node{number}" for number in range(3)]
    with below(small, nodes) as running:
        for node in (nodes[0], nodes[0], nodes[2]):
            os.lstat(node / "sub/f1")
        report = running.report()
    assert [node.operations.get("lookup", 0) for node in report.nodes] == [2, 0, 2]


@pytest.mark.parametrize(("keep", "lookups"), [(-1.0, 1), (0.0, 4)])
def test_a_node_believes_as_long_as_asked(
    small: Path, tmp_path: Path, keep: float, lookups: int
) -> None:
    with below(small, [tmp_path / "node"], Settings(keep=keep)) as running:
        for _ in range(4):
            os.lstat(tmp_path / "node/sub")
        assert running.report().nodes[0].operations["lookup"] == lookups


# Against an independent count

_CALLS = {
    "lookup": r"(?:newfstatat|lstat|statx)\(.*",
    "open": r"openat\(.*",
    "read": r"pread64\(.*",
    "readlink": r"readlink(?:at)?\(.*",
}


@contextlib.contextmanager
def traced(pid: int, log: Path) -> Iterator[None]:
    """Have strace write down what a process asks of files."""
    if shutil.which("strace") is None:
        pytest.skip("there is no strace")
    calls = "newfstatat,lstat,statx,openat,pread64,readlink,readlinkat"
    words = ["strace", "-f", "-y", "-e", f"trace={calls}", "-o", str(log), "-p", str(pid)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr is not None
        if "attached" not in (line := tracer.stderr.readline()):
            pytest.skip(f"strace cannot attach here: {line}")
        try:
            yield
        finally:
            tracer.terminate()
            tracer.communicate()


def test_the_counts_are_those_of_strace(tree: Path, tmp_path: Path) -> None:
    """What the program does to the directory below, operation by operation."""
    log, node = tmp_path / "log", tmp_path / "node"
    work = 'find "$1" -type f -exec cat {} + | cksum; ls -lR "$1"; readlink "$1/link"'
    with below(tree, [node]) as running, traced(running.pid, log):
        subprocess.run(["sh", "-c", work, "sh", str(node)], check=True, capture_output=True)
        (found,) = running.report().nodes
    lines = [line for line in log.read_text(errors="replace").splitlines() if str(tree) in line]
    lines = [line for line in lines if "AT_EMPTY_PATH" not in line]  # of opendir(3), no look-up
    seen = {
        kind: sum(bool(re.search(rf"\b{call}", line)) for line in lines)
        for kind, call in _CALLS.items()
    }
    asked = found.operations
    assert seen == {
        "lookup": asked["lookup"] + asked.get("getattr", 0) + asked["opendir"],
        "open": asked["open"] + asked["opendir"],
        "read": asked["read"],
        "readlink": asked["readlink"],
    }
    returned = [int(m[1]) for line in lines if (m := re.search(r"pread64.* = (\d+)$", line))]
    assert sum(returned) == found.read_bytes > 1 << 20


def test_an_image_is_one_file_to_the_file_system_below(
    collection: images.Collection, tmp_path: Path
) -> None:
    image = collection.image("small", "-comp", "zstd")
    node, top = tmp_path / "node", tmp_path / "top"
    mounted = contenders.mounted("python", node / image.name, top)
    with below(image.parent, [node]) as running, mounted:
        names = [path for path in everything(top) if stat.S_ISREG(path.lstat().st_mode)]
        assert sum(len(path.read_bytes()) for path in names) > 0
        (found,) = running.report().nodes
    assert len(names) > 1
    counted = {kind: n for kind, n in found.operations.items() if kind in METADATA}
    assert {kind: counted[kind] for kind in ("lookup", "open")} == {"lookup": 1, "open": 1}
    assert 0 < found.read_bytes <= image.stat().st_size + (1 << 20)


# Delays and limits


def ends(server: Server, kind: str, arrivals: list[float], size: int = 0) -> list[float]:
    return [server.done(Answer(kind, (), size), at) for at in arrivals]


def test_operations_wait_in_line_for_a_place() -> None:
    server = Server(Settings(delay=2.0, limit=2))
    assert ends(server, "open", [0, 0, 0, 1, 10, 10]) == [2, 2, 4, 4, 12, 12]
    assert (server.most_at_once, server.queued) == (2, 2)


def test_without_a_limit_none_waits_in_line() -> None:
    server = Server(Settings(delay=2.0))
    assert ends(server, "lookup", [0, 0, 1, 1.5, 10]) == [2, 2, 3, 3.5, 12]
    assert (server.most_at_once, server.queued) == (4, 0)


def test_data_goes_through_one_pipe() -> None:
    server = Server(Settings(delay=9.0, limit=1, data_delay=0.5, bandwidth=100.0))
    assert ends(server, "read", [0, 0, 10], size=200) == [2.5, 4.5, 12.5]
    assert server.most_at_once == 0


def test_closing_and_going_on_with_a_listing_take_no_time() -> None:
    server = Server(Settings(delay=9.0, limit=1))
    assert ends(server, "release", [1.0]) == [1.0]
    assert server.done(Answer("readdir", (), is_further=True), 1.0) == 1.0
    assert server.done(Answer("readdir", ()), 1.0) == 10.0


def test_what_a_node_waits_is_not_counted_twice() -> None:
    node = layer.Node()
    for start, end in ((0.0, 2.0), (1.0, 3.0), (1.0, 2.5), (5.0, 6.0)):
        node.note(Answer("open", ()), start, end)
    assert (node.waited, node.operations) == (4.0, {"open": 4})


@pytest.mark.parametrize("limit", [2, 0])
def test_no_operation_is_answered_before_its_time(small: Path, tmp_path: Path, limit: int) -> None:
    """Eight ask, and none gets an answer; so many as the limit allows are in service."""
    nodes = [tmp_path / f"node{number}" for number in range(8)]
    with below(small, nodes, Settings(delay=NEVER, limit=limit)) as running:
        words = [["stat", str(node)] for node in nodes]
        asking = [subprocess.Popen(each, stderr=subprocess.DEVNULL) for each in words]
        support.wait_for(lambda: sum(node.metadata for node in running.report().nodes) == 8)
        report = running.report()
        assert [program.poll() for program in asking] == [None] * 8
    assert all(program.wait(support.PATIENCE) for program in asking)  # now they get an error
    assert (report.most_at_once, report.queued) == ((2, 6) if limit else (8, 0))
    assert all(round(node.waited) >= NEVER for node in report.nodes)  # sums of floats


# The end


def start(small: Path, *mountpoints: Path) -> subprocess.Popen[str]:
    """Start the program, and wait until all is mounted."""
    for mountpoint in mountpoints:
        mountpoint.mkdir()
    words = [sys.executable, "-m", "benchmarks.layer", str(small), *map(str, mountpoints)]
    process = subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=support.REPOSITORY,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def interrupt(process: subprocess.Popen[str], _mountpoints: list[Path]) -> None:
    process.send_signal(signal.SIGINT)


def terminate(process: subprocess.Popen[str], _mountpoints: list[Path]) -> None:
    process.terminate()


def unmount(_process: subprocess.Popen[str], mountpoints: list[Path]) -> None:
    for mountpoint in mountpoints:
        images.unmount(mountpoint)


def close(process: subprocess.Popen[str], _mountpoints: list[Path]) -> None:
    assert process.stdin is not None
    process.stdin.close()


@pytest.mark.parametrize("end", [interrupt, terminate, unmount, close])
def test_nothing_is_left(
    small: Path, tmp_path: Path, end: Callable[[subprocess.Popen[str], list[Path]], None]
) -> None:
    mountpoints = [tmp_path / "one", tmp_path / "two"]
    with start(small, *mountpoints) as process:
        assert process.stdout is not None
        os.lstat(mountpoints[0] / "sub")
        end(process, mountpoints)
        last = process.stdout.read()
        assert process.wait(support.PATIENCE) == 0
    assert Report.from_json(last).nodes[0].operations["lookup"] == 1
    for mountpoint in mountpoints:
        mountpoint.rmdir()


def test_what_cannot_be_mounted_leaves_no_other_mount(small: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    words = [sys.executable, "-m", "benchmarks.layer", str(small), str(tmp_path / "one")]
    done = subprocess.run(
        [*words, str(tmp_path / "none")],
        cwd=support.REPOSITORY,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "benchmarks.layer: bad mount point" in done.stderr
    (tmp_path / "one").rmdir()


def test_a_mountpoint_in_the_directory_is_refused(small: Path) -> None:
    words = [sys.executable, "-m", "benchmarks.layer", str(small), str(small / "sub")]
    done = subprocess.run(
        words, cwd=support.REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "would wait for itself" in done.stderr


# Many at once


def test_walkers_share_the_files_and_time_each_operation(small: Path) -> None:
    names = [f"sub/f{number}" for number in range(10)]
    found = json.loads(metadata.crowd("walk", 3, str(small), names=names))
    assert found["operations"] == 4 * 10
    assert 0 < found["p50_s"] <= found["p99_s"] <= found["wall_s"]
    with pytest.raises(subprocess.CalledProcessError):
        metadata.crowd("walk", 3, str(small), names=[*names, "missing"])


def test_each_rank_knows_its_number(tmp_path: Path) -> None:
    found = json.loads(metadata.crowd("start", 5, "mkdir", str(tmp_path / "rank{rank}")))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"rank{n}" for n in range(5)]
    assert len(found["seconds"]) == 5
    with pytest.raises(subprocess.CalledProcessError):  # they are there already
        metadata.crowd("start", 5, "mkdir", str(tmp_path / "rank{rank}"))


# The model


def sample(ranks: int, waited: float, number: int = 1) -> Sample:
    values = {
        "start_s": 0.5 + waited,
        "compute_s": 0.5,
        "waited_s": waited,
        "wall_s": 1.0,
        "metadata_operations": 400.0,
        "read_operations": 10.0,
        "read_bytes": 1e6,
    }
    settings: dict[str, str | float] = {
        "file system": "none",
        "ranks": ranks,
        "delay_s": 0.01,
        "limit": 4,
        "bandwidth_bytes_per_s": 1e9,
        "stretched": 1.0,
    }
    return Sample("parallel", metadata.NUMPY, "directory", number, values, settings)


def test_the_model_is_fitted_to_ranks_that_are_not_in_each_others_way() -> None:
    measured = [sample(1, 4.0), sample(2, 4.2), sample(4, 4.1), sample(64, 70.0)]
    model = parallel.fit(measured)
    assert model.alone == 4.1
    assert model.share == pytest.approx(400 * 0.01 / 4)
    assert model.busiest == "metadata"
    assert [model.start(n) for n in (1, 4, 64)] == pytest.approx([4.6, 4.6, 64.5])
    (last,) = [row for row in parallel.tables(measured)[0].rows if row[2] == "64"]
    assert last[-1] == f"{70.5 / 64.5:.2f}"


def test_the_busiest_part_may_be_the_pipe() -> None:
    few = sample(1, 4.0)
    few = replace(few, values={**few.values, "metadata_operations": 3.0, "read_bytes": 2e8})
    model = parallel.fit([few])
    assert model.busiest == "bandwidth"
    assert model.share == pytest.approx(0.2)


def test_places_and_delay_give_the_rate_that_was_published() -> None:
    for system in parallel.FILE_SYSTEMS:
        assert system.limit / system.delay == pytest.approx(system.rate, rel=0.05)
        assert all(source.url.startswith("http") for source in system.sources)
