"""`python -m condainer.fuse` as scripts know it: its command line, and the life of a mount.

It takes the place of `squashfuse_ll`, so it answers as that does.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import itertools
import mmap
import os
import platform
import re
import resource
import signal
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import condainer
from condainer.fuse import attach
from condainer.fuse.options import _split as split
from condainer.system import mounttable
from tests import images, support
from tests.images import (
    daemons,
    is_mounted,
    mount_options,
    served,
    status_of,
    unmount,
    wait_for_turns,
)
from tests.support import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

TEXT = b"text " * 3000
"""What the file `text` of the small tree holds."""

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can do that")


@pytest.fixture(scope="session")
def image(collection: images.Collection) -> Path:
    return collection.image("small", "-comp", "zstd")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A mountpoint; afterwards nothing may be mounted there, and nobody serve it."""
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    yield mountpoint
    left = is_mounted(mountpoint)
    if left:
        unmount(mountpoint, "-z")
    wait_for(lambda: not daemons(mountpoint), "the daemon is still there")
    assert not left


# The command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "an image and a mountpoint are needed"),
        (("IMAGE",), "an image and a mountpoint are needed"),
        (("IMAGE", "MOUNTPOINT", "more"), "an image and a mountpoint are needed"),
        (("-x", "IMAGE", "MOUNTPOINT"), "unknown option -x"),
        (("--foreground", "IMAGE", "MOUNTPOINT"), "unknown option --foreground"),
        (("IMAGE", "MOUNTPOINT", "-o"), "-o needs an option"),
        (("-o", "nosuch", "IMAGE", "MOUNTPOINT"), "unknown option -o nosuch"),
        (("-onosuch", "IMAGE", "MOUNTPOINT"), "unknown option -o nosuch"),
        (("-o", "ro,nosuch=1,uid=0", "IMAGE", "MOUNTPOINT"), "unknown option -o nosuch=1"),
        (("-o", "ro=1", "IMAGE", "MOUNTPOINT"), "unknown option -o ro=1"),
        (("-o", "allow_other=1", "IMAGE", "MOUNTPOINT"), "unknown option -o allow_other=1"),
        (("-o", "subdir", "IMAGE", "MOUNTPOINT"), "unknown option -o subdir"),
        (("-o", "subdir=", "IMAGE", "MOUNTPOINT"), "unknown option -o subdir="),
        (("-o", "uid", "IMAGE", "MOUNTPOINT"), "unknown option -o uid"),
        (("-o", "uid=", "IMAGE", "MOUNTPOINT"), "uid= needs a number"),
        (("-o", "uid=-1", "IMAGE", "MOUNTPOINT"), "uid= needs a number"),
        (("-o", "uid=4294967296", "IMAGE", "MOUNTPOINT"), "uid= needs a number"),
        (("-o", "gid=99999999999", "IMAGE", "MOUNTPOINT"), "gid= needs a number"),
        (("-o", "gid=root", "IMAGE", "MOUNTPOINT"), "gid= needs a number"),
        (("-o", "offset=1k", "IMAGE", "MOUNTPOINT"), "offset= needs a number"),
        (("-o", "offset=1_000", "IMAGE", "MOUNTPOINT"), "offset= needs a number"),
        (("-o", f"offset={1 << 63}", "IMAGE", "MOUNTPOINT"), "offset= needs a number"),
        (("-o", f"offset={'9' * 5000}", "IMAGE", "MOUNTPOINT"), "offset= needs a number"),
        (("-o", "timeout=0.5", "IMAGE", "MOUNTPOINT"), "timeout= needs a number"),
        (("-o", f"timeout={1 << 64}", "IMAGE", "MOUNTPOINT"), "timeout= needs a number"),
    ],
)
def test_wrong_usage(image: Path, place: Path, arguments: tuple[str, ...], message: str) -> None:
    names = {"IMAGE": str(image), "MOUNTPOINT": str(place)}
    done = run(*(names.get(word, word) for word in arguments))
    assert done.returncode == (1 if message.startswith("unknown option") else 254)
    assert done.stdout == ""
    assert message in done.stderr.splitlines()[0]
    assert "usage: python -m condainer.fuse [options] IMAGE MOUNTPOINT" in done.stderr


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help(option: str) -> None:
    done = run(option)
    assert done.returncode == 254
    assert done.stderr.startswith("usage: ")
    for word in ("-f ", "-d ", "-s ", "allow_other", "subdir=", "notify_pipe=", "timeout="):
        assert f" {word}" in done.stderr


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_version(option: str) -> None:
    done = run(option)
    assert (done.returncode, done.stderr) == (254, f"condainer.fuse {condainer.__version__}\n")


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the program with any arguments."""
    return subprocess.run(
        [*images.FUSE, *arguments],
        env={**os.environ, "PYTHONPATH": str(support.REPOSITORY), **variables},
        capture_output=True,
        text=True,
        timeout=support.PATIENCE,
        check=False,
    )


def damaged(image: Path, directory: Path, kind: str) -> Path:
    """Something that is no image."""
    path = directory / kind
    match kind:
        case "empty":
            path.touch()
        case "text":
            path.write_text("this is no image" * 100)
        case "part":
            path.write_bytes(image.read_bytes()[:5000])
        case "directory":
            path.mkdir()
        case "loop":
            path.symlink_to(path)
        case "superblock":
            path.write_bytes(image.read_bytes()[:32] + b"\xff" * 64 + image.read_bytes()[96:])
        case _:
            assert kind == "missing"
    return path


BAD = {
    "missing": "No such file or directory",
    "empty": "it is not a squashfs image",
    "text": "it is not a squashfs image",
    "part": "it is truncated: it has ",
    "directory": "Is a directory",
    "loop": "Too many levels of symbolic links",
    "superblock": "it is truncated: it has ",
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image(image: Path, tmp_path: Path, place: Path, kind: str) -> None:
    path = damaged(image, tmp_path, kind)
    done = images.serve(path, place)
    assert done.returncode == 255
    assert done.stderr.startswith(f"condainer.fuse: {path}: {BAD[kind]}")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        *((), ("-h",), ("IMAGE",), ("/etc/passwd", "MOUNTPOINT"), ("-q", "IMAGE", "MOUNTPOINT")),
        *(("IMAGE", "/no/such/place"), ("-o", "nonsense", "IMAGE", "MOUNTPOINT")),
        *(("IMAGE", "MOUNTPOINT", "-o"), ("-o", "offset=x", "IMAGE", "MOUNTPOINT")),
    ],
)
def test_the_same_statuses_as_those_of_squashfuse(
    image: Path, place: Path, arguments: tuple[str, ...]
) -> None:
    names = {"IMAGE": str(image), "MOUNTPOINT": str(place)}
    words = [names.get(word, word) for word in arguments]
    other = subprocess.run(["squashfuse_ll", *words], capture_output=True, check=False)
    assert run(*words).returncode == other.returncode


@pytest.mark.parametrize(
    ("name", "status", "reason"),
    [("nosuch", 254, "No such file or directory"), ("file", 1, "Not a directory")],
)
def test_a_bad_mountpoint(image: Path, tmp_path: Path, name: str, status: int, reason: str) -> None:
    (tmp_path / "file").touch()
    done = images.serve(image, tmp_path / name)
    assert done.returncode == status
    assert done.stderr == f"condainer.fuse: bad mount point {tmp_path / name}: {reason}\n"
    assert not is_mounted(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("ro,nodev", ["ro", "nodev"]),
        (",ro,,", ["ro"]),
        (r"subdir=a\,b\\,ro", ["subdir=a,b\\", "ro"]),
        (r"subdir=\a\054\303\274\08,ro", ["subdir=a,\udcc3\udcbc08", "ro"]),
        ("subdir=\1\\", ["subdir=\1\\"]),
    ],
)
def test_options_are_told_apart_as_libfuse_does(text: str, options: list[str]) -> None:
    assert split(text) == options


def test_names_may_begin_with_anything(image: Path, tmp_path: Path, place: Path) -> None:
    """Behind two dashes."""
    (tmp_path / "-f").symlink_to(image)
    done = subprocess.run(
        [*images.FUSE, "--", "-f", str(place)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(support.REPOSITORY)},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert (place / "text").read_bytes() == TEXT
    unmount(place)


def test_what_is_above_a_link(image: Path, tmp_path: Path) -> None:
    """It is above where the link leads to."""
    for name in ("one/inner", "one/mnt"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to("one/inner")
    (tmp_path / "one" / "image").symlink_to(image)
    done = images.serve(Path("link/../image"), "link/../mnt", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "one" / "mnt" / "text").read_bytes() == TEXT
    unmount(tmp_path / "one" / "mnt")


# The life of a mount


@contextlib.contextmanager
def in_foreground(
    image: Path, place: Path, *options: str, **variables: str
) -> Iterator[subprocess.Popen[str]]:
    """The program while it stays in the foreground, from when it has mounted."""
    with subprocess.Popen(
        [*images.FUSE, "-f", *options, str(image), str(place)],
        env={**os.environ, "PYTHONPATH": str(support.REPOSITORY), **variables},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            wait_for(lambda: is_mounted(place) or process.poll() is not None)
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def test_it_goes_to_the_background_once_it_is_mounted(image: Path, place: Path) -> None:
    with served(image, place):
        assert (place / "text").read_bytes() == TEXT
        (daemon,) = daemons(place)
        assert os.getsid(daemon) == daemon
        assert Path(f"/proc/{daemon}/cwd").resolve() == Path("/")
        streams = {Path(f"/proc/{daemon}/fd/{number}").resolve() for number in range(3)}
        assert streams == {Path("/dev/null")}


def test_without_standard_streams(image: Path, place: Path) -> None:
    """None of them is taken for the image, or the other way round."""
    script = 'exec "$@" <&- >&- 2>&-'
    argv = [*images.FUSE, str(image), str(place)]
    variables = {**os.environ, "PYTHONPATH": str(support.REPOSITORY)}
    done = subprocess.run(["sh", "-c", script, "sh", *argv], env=variables, check=False)
    assert done.returncode == 0
    assert (place / "text").read_bytes() == TEXT
    unmount(place)
    done = subprocess.run(["sh", "-c", script, "sh", *argv[:-1]], env=variables, check=False)
    assert done.returncode == 254


def test_it_stays_in_the_foreground(image: Path, place: Path) -> None:
    with in_foreground(image, place) as process:
        assert (place / "text").read_bytes() == TEXT
        unmount(place)
        _, errors = process.communicate(timeout=support.PATIENCE)
    assert (process.returncode, errors) == (0, "")


def test_it_prints_each_request(image: Path, place: Path) -> None:
    with in_foreground(image, place, "-d") as process:
        (place / "text").read_bytes()
        unmount(place)
        _, errors = process.communicate(timeout=support.PATIENCE)
    lines = errors.splitlines()
    assert lines[0].startswith("operation 26, ")  # INIT
    assert any(line.startswith("operation 1, ") for line in lines)  # LOOKUP
    assert any(line.startswith("operation 15, ") for line in lines)  # READ


def test_debug_is_an_option_as_well(image: Path, place: Path) -> None:
    with in_foreground(image, place, "-o", "debug") as process:
        unmount(place)
        _, errors = process.communicate(timeout=support.PATIENCE)
    assert errors.startswith("operation 26, ")


def test_requests_do_not_wait_for_who_reads_of_them(image: Path, place: Path) -> None:
    """What cannot be printed at once is not; how much that was is told when there is room again."""
    with in_foreground(image, place, "-d") as process:
        assert process.stderr is not None
        ask_often(place)  # for more than a pipe holds
        os.read(process.stderr.fileno(), 1 << 16)
        os.statvfs(place)
        unmount(place)
        _, errors = process.communicate(timeout=support.PATIENCE)
    assert re.search(r"^[1-9]\d* lines were lost$", errors, re.MULTILINE)


def test_requests_do_not_wait_for_a_reader_that_has_gone(image: Path, place: Path) -> None:
    with in_foreground(image, place, "-d") as process:
        assert process.stderr is not None
        process.stderr.close()
        ask_often(place)
        assert (place / "text").read_bytes() == TEXT
        unmount(place)
        assert process.wait(support.PATIENCE) == 0


def ask_often(place: Path) -> None:
    """Ask for what the kernel does not keep, in a process that can be ended if need be."""
    script = "import os, sys\nfor _ in range(5000): os.statvfs(sys.argv[1])"
    command = [sys.executable, "-c", script, str(place)]
    subprocess.run(command, timeout=support.PATIENCE, check=True)


def test_one_thread_is_enough(collection: images.Collection, place: Path) -> None:
    tree = collection.tree("plain")
    with served(collection.image("plain"), place, "-s"):
        for name in ("sparse", "d9/f9", "d8/f8"):
            assert (place / name).read_bytes() == (tree / name).read_bytes()
        (daemon,) = daemons(place)
        assert status_of(daemon, "Threads") == 2  # one waits for signals


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_unmounts(image: Path, place: Path, name: str) -> None:
    with in_foreground(image, place) as process:
        (place / "text").read_bytes()
        process.send_signal(signal.Signals[name])
        _, errors = process.communicate(timeout=support.PATIENCE)
        assert not is_mounted(place)
    assert (process.returncode, errors) == (0, "")


def test_a_signal_that_was_to_be_ignored_is(image: Path, place: Path) -> None:
    """As under nohup. What is ignored and blocked would still be heard of."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with in_foreground(image, place) as process:
            for task in Path(f"/proc/{process.pid}/task").iterdir():
                assert not lacks_mask(task, "SigIgn", signal.SIGHUP)
                # While a thread is started, all are blocked.
                wait_for(functools.partial(lacks_mask, task, "SigBlk", signal.SIGHUP))
            process.send_signal(signal.SIGHUP)
            assert (place / "text").read_bytes() == TEXT
            process.terminate()
            assert process.wait(support.PATIENCE) == 0
    finally:
        signal.signal(signal.SIGHUP, previous)


def lacks_mask(task: Path, name: str, number: signal.Signals) -> bool:
    """Whether a signal is not in one of the masks that the kernel tells of a thread."""
    lines = (task / "status").read_text().splitlines()
    (mask,) = (line.split(":\t")[1] for line in lines if line.startswith(f"{name}:"))
    return not int(mask, 16) & 1 << number - 1


def test_another_mount_in_its_place_is_left_alone(image: Path, place: Path) -> None:
    """After it was taken away lazily, while somebody uses it still."""
    with in_foreground(image, place) as process:
        with (place / "text").open("rb"):
            unmount(place, "-z")
            assert images.serve(image, place).returncode == 0
            process.terminate()
            wait_for_turns(process.pid)
            assert is_mounted(place)
        assert process.wait(support.PATIENCE) == 0
    unmount(place)


@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP"])
def test_nothing_is_taken_away_from_who_uses_it(image: Path, place: Path, name: str) -> None:
    with in_foreground(image, place) as process:
        with (place / "noise").open("rb", buffering=0) as file:
            process.send_signal(signal.Signals[name])
            wait_for_turns(process.pid)
            assert is_mounted(place)
            assert len(file.read()) == 9000
            assert (place / "text").read_bytes() == TEXT
        assert process.wait(support.PATIENCE) == 0
        assert not is_mounted(place)


def test_nothing_is_taken_away_from_who_is_in_it(image: Path, place: Path) -> None:
    with (
        in_foreground(image, place) as process,
        subprocess.Popen(["cat"], cwd=place / "directory", stdin=subprocess.PIPE) as user,
    ):
        process.send_signal(signal.SIGINT)
        wait_for_turns(process.pid)
        assert is_mounted(place)
        user.communicate()
        assert process.wait(support.PATIENCE) == 0


def test_the_mount_goes_while_it_is_in_use_and_what_is_open_is_served(
    image: Path, place: Path
) -> None:
    """SIGKILL would leave a dead mount otherwise; scripts know this from `squashfuse_ll`."""
    with in_foreground(image, place) as process:
        with (place / "noise").open("rb", buffering=0) as file:
            directory = os.open(place / "directory", os.O_RDONLY)
            process.terminate()
            wait_for(lambda: not is_mounted(place), "it is still mounted")
            assert process.poll() is None
            assert len(file.read()) == 9000
            assert os.listdir(directory)  # noqa: PTH208  (by its descriptor)
            assert not list(place.iterdir())
            os.close(directory)
        assert process.wait(support.PATIENCE) == 0


def test_a_mount_of_others_stays_while_it_is_in_use(image: Path, place: Path) -> None:
    """One that stands at the same place after ours has gone from there."""
    with served(image, place), (place / "text").open("rb") as file:
        device = attach.device_at(str(place))
        for other in (attach.Mount(str(place), b"0:1"), attach.Mount(str(place), b"")):
            assert not attach.detach(other, in_use=True)
            assert is_mounted(place)
        assert attach.detach(attach.Mount(str(place), device), in_use=True)
        assert not is_mounted(place)
        assert file.read() == TEXT
        remount = images.serve(image, place)  # for `served` to unmount
        assert remount.returncode == 0


_WITHOUT_PROC = """
image=$1 place=$2; shift 2
mount -t tmpfs none /proc
"$@" -f "$image" "$place" & daemon=$!
for turn in $(seq 500); do test -e "$place/text" && break; sleep 0.02; done
head -c 5 "$place/text"
kill "$daemon"
wait "$daemon"
echo "$?" "$(ls "$place")"
"""


@needs_root
def test_it_does_without_proc(image: Path, place: Path) -> None:
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", _WITHOUT_PROC, "sh", str(image), str(place), *images.FUSE],
        env={**os.environ, "PYTHONPATH": str(support.REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("text 0 \n", "")


def test_a_mount_is_found_at_any_path(image: Path, tmp_path: Path) -> None:
    strange = tmp_path / "a b\tc\nd\\e#f"
    strange.mkdir()
    assert attach.device_at(str(strange)) == b""
    with served(image, strange):
        number = strange.stat().st_dev
        assert attach.device_at(str(strange)) == b"%d:%d" % (os.major(number), os.minor(number))


def test_it_unmounts_when_nobody_asks_any_more(image: Path, place: Path) -> None:
    with in_foreground(image, place, "-o", "timeout=1") as process:
        with (place / "noise").open("rb") as file:
            wait_for_turns(process.pid)
            assert is_mounted(place)
            assert len(file.read()) == 9000
        assert process.wait(support.PATIENCE) == 0
        assert not is_mounted(place)


def test_an_image_that_becomes_shorter_ends_nothing(
    collection: images.Collection, tmp_path: Path, place: Path
) -> None:
    copy = tmp_path / "copy.squashfs"
    copy.write_bytes(collection.image("small", "-comp", "zstd", "-b", "4096").read_bytes())
    with served(copy, place):
        assert (place / "text").read_bytes() == TEXT
        os.truncate(copy, 200)
        with pytest.raises(OSError, match="Input/output error"):
            (place / "noise").read_bytes()
        assert (place / "text").read_bytes() == TEXT


def test_an_image_that_is_replaced_stays_as_it_was(
    image: Path, tmp_path: Path, place: Path
) -> None:
    copy = tmp_path / "copy.squashfs"
    copy.write_bytes(image.read_bytes())
    with served(copy, place):
        copy.unlink()
        copy.write_text("another image")
        assert (place / "text").read_bytes() == TEXT


def test_too_little_memory_ends_nothing(collection: images.Collection, place: Path) -> None:
    """Who asked is told, and gets what was asked for when there is room again."""
    tree = collection.tree("noise")
    image = collection.image("noise", "-b", "1M")
    # One arena: others would be set aside already, where the limit does not reach them.
    with in_foreground(image, place, "-s", MALLOC_ARENA_MAX="1") as process:
        (place / "block").stat()
        used = status_of(process.pid, "VmSize") * 1024
        _, hard = resource.prlimit(process.pid, resource.RLIMIT_AS)
        resource.prlimit(process.pid, resource.RLIMIT_AS, (used, hard))
        with pytest.raises(OSError, match="Cannot allocate memory"):
            (place / "block").read_bytes()
        resource.prlimit(process.pid, resource.RLIMIT_AS, (hard, hard))
        assert (place / "block").read_bytes() == (tree / "block").read_bytes()
        unmount(place)
        assert process.wait(support.PATIENCE) == 0


def test_what_devices_are_asked(image: Path, place: Path) -> None:
    """A file is none, however much comes with the question."""
    with served(image, place), (place / "text").open("rb") as file:
        for size in (0, 100, (1 << 14) - 1):
            with pytest.raises(OSError, match="Inappropriate ioctl"):
                fcntl.ioctl(file, 3 << 30 | size << 16 | 0x4242, bytearray(size))


# Many ways to read


@pytest.mark.parametrize("name", ["text", "noise", "sparse"])
def test_every_way_of_reading_gives_the_same(
    collection: images.Collection, place: Path, name: str
) -> None:
    expected = (collection.tree("small") / name).read_bytes()
    with served(collection.image("small", "-b", "4096"), place):
        for flags in (os.O_RDONLY, os.O_RDONLY | os.O_DIRECT):
            descriptor = os.open(place / name, flags)
            try:
                room = mmap.mmap(
                    -1, 1 << 20
                )  # which begins where a page does, as O_DIRECT wants it
                assert os.preadv(descriptor, [room], 0) == len(expected)
                assert room[: len(expected)] == expected
                assert os.preadv(descriptor, [memoryview(room)[:512]], 4096) == 512
                assert room[:512] == expected[4096:4608]
                assert mapped(descriptor) == expected
                assert sent(descriptor, len(expected)) == expected
            finally:
                os.close(descriptor)


def mapped(descriptor: int) -> bytes:
    with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as room:
        return room[:]


def sent(descriptor: int, size: int) -> bytes:
    """What the kernel copies from one file to another."""
    with tempfile.TemporaryFile() as file:
        while os.sendfile(file.fileno(), descriptor, None, size):
            pass
        file.seek(0)
        return file.read()


# Many names, many readers


def test_many_names(collection: images.Collection, place: Path) -> None:
    """All of them are listed and found, and it takes little memory."""
    names = images.many_names()
    with served(collection.many(), place):
        found = [Path(top, name) for top, _, files in os.walk(place) for name in files]
        assert sorted(str(path.relative_to(place)) for path in found) == names
        for name in names:
            assert (place / name).stat().st_size == 0
        for number in range(10_000, 11_000):
            assert not (place / "one" / f"file{number}").exists()
        (daemon,) = daemons(place)
        assert status_of(daemon, "VmHWM") < 100_000  # KiB


def test_a_listing_goes_on_from_where_it_was(collection: images.Collection, place: Path) -> None:
    """With room for few names at a time, and after going back to any of them."""
    if platform.machine() not in _GETDENTS:
        pytest.skip(f"the number of getdents64 on {platform.machine()} is not known here")
    with served(collection.many(), place):
        descriptor = os.open(place / "one", os.O_RDONLY | os.O_DIRECTORY)
        try:
            whole = list(entries(descriptor, 300))
            names = [name for name, _ in whole]
            expected = [name for name in images.many_names() if name.startswith("one/")]
            assert sorted(names) == sorted([".", "..", *(name[4:] for name in expected)])
            for start in range(0, len(whole), 701):
                os.lseek(descriptor, whole[start][1], os.SEEK_SET)
                following = list(itertools.islice(entries(descriptor, 4096), 50))
                assert following == whole[start + 1 :][:50]
        finally:
            os.close(descriptor)


_GETDENTS = {"x86_64": 217, "aarch64": 61}


def entries(descriptor: int, room: int) -> Iterator[tuple[str, int]]:
    """The names of a directory and where each of them ends, read with little room."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(room)
    while (size := libc.syscall(_GETDENTS[platform.machine()], descriptor, buffer, room)) > 0:
        place = 0
        while place < size:
            offset, length = struct.unpack_from("<8xqH", buffer, place)
            name = buffer.raw[place + 19 : place + length].partition(b"\0")[0]
            yield os.fsdecode(name), offset
            place += length
    assert size == 0, os.strerror(ctypes.get_errno())


def test_many_programs_read_everything_at_once(collection: images.Collection, place: Path) -> None:
    with served(collection.image("plain", "-comp", "zstd", "-b", "16384"), place):
        readers = [start_reading(place) for _ in range(16)]
        digests = {reader.communicate(timeout=support.PATIENCE)[0] for reader in readers}
        expected, _ = start_reading(collection.tree("plain")).communicate(timeout=support.PATIENCE)
        assert digests == {expected}


def start_reading(top: Path) -> subprocess.Popen[bytes]:
    """Start to read everything that is in a directory; its digest will be printed."""
    script = 'tar -C "$1" --sort=name --numeric-owner -cf - . | b2sum'
    return subprocess.Popen(["sh", "-c", script, "sh", str(top)], stdout=subprocess.PIPE)


# Options that say what is shown


def test_the_owner_of_everything(image: Path, place: Path) -> None:
    with served(image, place, "-o", "uid=1234,gid=5678"):
        for path in (place, place / "text", place / "directory" / "inner" / "file"):
            status = path.lstat()
            assert (status.st_uid, status.st_gid) == (1234, 5678)


def test_an_image_behind_something_else(image: Path, tmp_path: Path, place: Path) -> None:
    shifted = tmp_path / "shifted"
    shifted.write_bytes(b"#!/bin/sh\n".ljust(4096, b"#") + image.read_bytes())
    assert images.serve(shifted, place).returncode == 255
    assert images.serve(shifted, place, "-o", "offset=4095").returncode == 255
    assert images.serve(shifted, place, "-o", "offset=1000000").returncode == 255
    with served(shifted, place, "-o", "offset=4096"):
        assert (place / "text").read_bytes() == TEXT
        assert (place / "noise").stat().st_size == 9000


@needs_root
def test_an_image_on_a_device(image: Path, place: Path) -> None:
    command = ["losetup", "--find", "--show", "--read-only", str(image)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"there is no loop device: {done.stderr.strip()}")
    device = done.stdout.strip()
    try:
        with served(Path(device), place):
            assert (place / "text").read_bytes() == TEXT
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@pytest.mark.parametrize("path", ["directory", "/directory", "directory/", "./directory//."])
def test_a_directory_of_the_image(image: Path, place: Path, path: str) -> None:
    with served(image, place, "-o", f"subdir={path}"):
        assert [entry.name for entry in place.iterdir()] == ["inner"]
        assert (place / "inner" / "file").read_text() == "hi"
        assert (place / "inner" / ".." / "inner" / "file").read_text() == "hi"
        assert os.getxattr(place, "user.name") == b"w" * 500


@pytest.mark.parametrize("path", ["nosuch", "text", "directory/nosuch", "text/x", "link", ".."])
def test_a_directory_that_is_not_in_the_image(image: Path, place: Path, path: str) -> None:
    done = images.serve(image, place, "-o", f"subdir={path}")
    assert done.returncode == 255
    reason = f"there is no directory {path} in the image"
    assert done.stderr == f"condainer.fuse: {image}: {reason}\n"


def test_the_mount_table(image: Path, place: Path) -> None:
    with served(image, place):
        mount = mounttable.mount_at(place)
        assert mount is not None
        assert (mount.kind, mount.source) == ("fuse.condainer", str(image))
        assert mount.owner == os.getuid()
        options = mount_options(place)
        assert {"ro", "nosuid", "nodev"} <= options
        assert not {"allow_other", "default_permissions", "noexec"} & options


@needs_root
def test_options_of_the_mount(image: Path, place: Path) -> None:
    options = {"noexec", "noatime", "allow_other", "default_permissions"}
    name = "fsname=a name\\,of any\\\\kind"
    with served(image, place, "-o", ",".join([*options, name])):
        mount = mounttable.mount_at(place)
        assert mount is not None
        assert mount.source == "a name,of any\\kind"
        assert {"ro", "nosuid", "nodev", *options} <= mount_options(place)


def test_options_that_make_no_difference(image: Path, place: Path) -> None:
    with served(image, place, "-o", "rw,suid", "-o", "dev,exec,atime"):
        assert {"ro", "nosuid", "nodev"} <= mount_options(place)
        with pytest.raises(OSError, match="Read-only file system"):
            (place / "new").touch()


# Whoever waits for the mount


def test_a_pipe_is_told_when_it_is_mounted(image: Path, tmp_path: Path, place: Path) -> None:
    """Whoever reads there may come before or after."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with served(image, place, "-o", f"notify_pipe={pipe}"):
        assert (place / "text").read_bytes() == TEXT
        assert told(pipe) == "s"


def test_a_pipe_is_found_from_where_it_was_named(image: Path, tmp_path: Path, place: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with served(image, place, "-o", "notify_pipe=pipe", cwd=tmp_path):
        assert told(tmp_path / "pipe") == "s"


def test_a_pipe_is_told_when_it_cannot_be_mounted(image: Path, tmp_path: Path, place: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for wrong in ((tmp_path / "nosuch", place), (image, tmp_path / "nosuch")):
        with subprocess.Popen(
            [*images.FUSE, "-o", f"notify_pipe={pipe}", *map(str, wrong)],
            env={**os.environ, "PYTHONPATH": str(support.REPOSITORY)},
            stderr=subprocess.PIPE,
        ) as process:
            assert told(pipe) == "f"
            process.communicate(timeout=support.PATIENCE)
        assert process.returncode in {254, 255}


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_a_pipe_that_is_none(image: Path, tmp_path: Path, place: Path, kind: str) -> None:
    """It is told of, and nothing else happens: neither to the mount nor to the file."""
    path = tmp_path / kind
    if kind == "file":
        path.write_text("precious")
    with in_foreground(image, place, "-o", f"notify_pipe={path}") as process:
        assert (place / "text").read_bytes() == TEXT
        unmount(place)
        _, errors = process.communicate(timeout=support.PATIENCE)
    assert errors == f"condainer.fuse: {path}: it is no pipe\n"
    assert kind == "missing" or path.read_text() == "precious"


def told(pipe: Path) -> str:
    done = subprocess.run(
        ["cat", str(pipe)], capture_output=True, text=True, timeout=support.PATIENCE, check=True
    )
    return done.stdout


# A descriptor that is mounted already


@needs_root
def test_a_descriptor_that_is_mounted_already(image: Path, place: Path) -> None:
    """It is for whoever has mounted it to unmount it."""
    with mounted_descriptor(place) as descriptor:
        command = [*images.FUSE, str(image), f"/dev/fd/{descriptor}"]
        variables = {**os.environ, "PYTHONPATH": str(support.REPOSITORY)}
        subprocess.run(command, env=variables, pass_fds=[descriptor], check=True)
        os.close(descriptor)
        (daemon,) = support.running(Path(images.FUSE[0]).name, f"/dev/fd/{descriptor}")
        assert (place / "text").read_bytes() == TEXT
        os.kill(daemon, signal.SIGTERM)
        wait_for_turns(daemon)
        assert (place / "noise").stat().st_size == 9000
        unmount(place)
        wait_for(lambda: not Path(f"/proc/{daemon}/cmdline").exists() or not cmdline(daemon))


def cmdline(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@contextlib.contextmanager
def mounted_descriptor(place: Path) -> Iterator[int]:
    descriptor = os.open("/dev/fuse", os.O_RDWR)
    data = f"fd={descriptor},rootmode=40000,user_id=0,group_id=0".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mount(b"test", os.fsencode(place), b"fuse", ctypes.c_ulong(1), data) == 0
    try:
        yield descriptor
    finally:
        if is_mounted(place):
            unmount(place, "-z")


@pytest.mark.parametrize("name", ["/dev/fd/99", "/dev/fd/x"])
def test_a_descriptor_that_is_not_open(image: Path, name: str) -> None:
    done = images.serve(image, name)
    assert done.returncode == 1
    assert done.stderr == f"condainer.fuse: bad mount point {name}: it is not open\n"
