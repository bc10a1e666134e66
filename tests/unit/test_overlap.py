"""What is changed after it was sent to mksquashfs, and the archive that it is sent in."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from condainer.pipeline.archive import Archive, ChangedError
from condainer.pipeline.epoch import Epoch
from condainer.pipeline.overlap import Overlap
from condainer.pipeline.packages import package_from_json
from condainer.pipeline.streaming import Streaming
from condainer.pipeline.workplace import Final
from condainer.system import process
from tests.localchannel.package import put
from tests.support import PATIENCE, wait_for

if TYPE_CHECKING:
    from pathlib import Path


IN_PLACE = "touch -r victim t; printf X | dd of=victim conv=notrunc; touch -r t victim; rm t"
"""Same length, same time, same inode: only the time of the inode's change differs."""


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """An environment with a file that something happens to."""
    put(tmp_path / "prefix", "share/victim", "as it was made\n")
    put(tmp_path / "prefix", "bin/other", "another\n")
    (tmp_path / "prefix/bin/link").symlink_to("other")
    return tmp_path / "prefix"


def send(prefix: Path, meanwhile: str, cache: Path | None = None) -> None:
    """Send the package that owns all files, do something to them, and look whether it is noticed.

    Args:
        prefix: has the files.
        meanwhile: what is done, in bash.
        cache: has what they are copies of; None where they are the same files.

    Raises:
        ChangedError: where it is.
    """
    reader, writer = os.pipe()
    drain = subprocess.Popen(["cat"], stdin=reader, stdout=subprocess.DEVNULL)
    os.close(reader)
    package = package_from_json({"name": "own", "version": "1", "build": "0"})
    finals = [
        Final(
            name,
            str((cache or prefix) / name),
            hashlib.sha256((prefix / name).read_bytes()).hexdigest(),
            is_copied=cache is not None,
        )
        for name in ("share/victim", "bin/other", "bin/link")
    ]
    overlap = Overlap(prefix, [package], Epoch(), (), writer, lambda _: None)
    try:
        overlap.ready("own", lambda: finals)
        overlap.complete(has_run_scripts=False)
        overlap.feed()
        subprocess.run(["bash", "-ec", meanwhile], cwd=prefix / "share", check=True)
        overlap.look()
        overlap.finish()
    finally:
        overlap.close()
        drain.wait()


@pytest.mark.parametrize(
    ("script", "what"),
    [
        ("echo more >> victim", "share/victim"),
        ("cp victim x; mv x victim", "share/victim"),
        ("touch -r victim t; cp --preserve=all victim x; mv x victim; rm t", "share/victim"),
        ("touch -d 2001-01-01 victim", "share/victim"),
        (IN_PLACE, "share/victim"),
        ("chmod 600 victim", "share/victim"),
        ("rm victim", "share/victim"),
        ("rm victim; mkdir victim", "share/victim"),
        ("rm victim; mkdir victim; echo below > victim/it", "share/victim"),
        ("rm victim; ln -s /etc/passwd victim", "share/victim"),
        ("ln -sf victim ../bin/link", "bin/link"),
        ("mv ../share ../moved; ln -s moved ../share", "share/victim"),
    ],
)
def test_what_has_changed_is_noticed(prefix: Path, script: str, what: str) -> None:
    with pytest.raises(ChangedError, match=what):
        send(prefix, script)


def test_what_is_sent_after_the_look_is_compared_as_well(prefix: Path, tmp_path: Path) -> None:
    """A slow mksquashfs takes packages when everything has long been installed."""
    cache = tmp_path / "cache"
    put(cache, "share/victim", "not what is in the prefix\n")
    reader, writer = os.pipe()
    drain = subprocess.Popen(["cat"], stdin=reader, stdout=subprocess.DEVNULL)
    os.close(reader)
    package = package_from_json({"name": "own", "version": "1", "build": "0"})
    overlap = Overlap(prefix, [package], Epoch(), (), writer, lambda _: None)
    feeding = threading.Thread(target=overlap.feed)
    feeding.start()
    try:
        overlap.look()
        overlap.ready("own", lambda: [Final("share/victim", str(cache / "share/victim"), "")])
        overlap.complete(has_run_scripts=False)
        feeding.join()
        with pytest.raises(ChangedError, match="share/victim"):
            overlap.finish()
    finally:
        overlap.stop()
        feeding.join()
        overlap.close()
        drain.wait()


@pytest.mark.parametrize(
    "script", ["true", "ln victim x; rm x", "echo new > x", "mkdir d; chmod 700 d"]
)
def test_what_has_not_changed_is_kept(prefix: Path, script: str) -> None:
    """As by another build that links the same file from the package cache."""
    send(prefix, script)


@pytest.mark.parametrize(
    ("has_run_scripts", "is_copied", "is_read"),
    [(False, False, False), (True, False, True), (False, True, True)],
)
def test_what_installers_have_only_linked_is_not_read_again(
    prefix: Path, tmp_path: Path, *, has_run_scripts: bool, is_copied: bool, is_read: bool
) -> None:
    """A link changes the inode, and so may a script; a checksum that is wrong tells who reads."""
    reader, writer = os.pipe()
    package = package_from_json({"name": "own", "version": "1", "build": "0"})
    overlap = Overlap(prefix, [package], Epoch(), (), writer, lambda _: None)
    victim = Final("share/victim", str(prefix / "share/victim"), "0" * 64, is_copied)
    feeding = threading.Thread(target=overlap.feed)
    feeding.start()
    try:
        overlap.ready("own", lambda: [victim])
        os.read(reader, 1)  # it is sent
        wait_until_later(prefix / "share/victim")
        (tmp_path / "linked").hardlink_to(victim.path)
        (tmp_path / "linked").unlink()
        wait_until_later(prefix / "share/victim")
        overlap.complete(has_run_scripts=has_run_scripts)
        feeding.join()
        with pytest.raises(ChangedError) if is_read else contextlib.nullcontext():
            overlap.look()
    finally:
        overlap.stop()
        feeding.join()
        overlap.close()
        os.close(reader)


def wait_until_later(path: Path) -> None:
    """Wait until the clock of a file system, which goes in steps, is past a change of a file."""
    changed = path.stat().st_ctime_ns

    def is_later() -> bool:
        with tempfile.TemporaryFile(dir=path.parent) as file:
            return os.fstat(file.fileno()).st_ctime_ns > changed

    wait_for(is_later)


@pytest.mark.parametrize(
    "script",
    [
        "echo 'as it was nade' > victim; touch -r ../bin/other victim",
        "chmod 700 victim",
        "touch -d @1000 victim",
        "ln victim again",
    ],
)
def test_a_copy_that_is_another_is_noticed(prefix: Path, tmp_path: Path, script: str) -> None:
    subprocess.run(["cp", "-a", str(prefix), str(tmp_path / "cache")], check=True)
    subprocess.run(["touch", "-r", "bin/other", "share/victim"], cwd=prefix, check=True)
    subprocess.run(["touch", "-r", "bin/other", "share/victim"], cwd=tmp_path / "cache", check=True)
    send(prefix, "true", tmp_path / "cache")
    with pytest.raises(ChangedError, match="share/victim"):
        send(prefix, script, tmp_path / "cache")


def test_a_name_that_is_none_is_not_sent(prefix: Path) -> None:
    """What a package lists is not what it has."""
    strange = [Final(name, f"{prefix}/{name}", "") for name in ("a\0b", "\ud800", "bin/other/x")]
    reader, writer = os.pipe()
    package = package_from_json({"name": "own", "version": "1", "build": "0"})
    overlap = Overlap(prefix, [package], Epoch(), (), writer, lambda _: None)
    overlap.ready("own", lambda: strange)
    overlap.complete(has_run_scripts=False)
    overlap.feed()
    overlap.close()
    with os.fdopen(reader, "rb") as file:
        assert file.read() == b""


def test_nobody_waits_for_the_look_at_what_nobody_wants(prefix: Path) -> None:
    reader, writer = os.pipe()
    overlap = Overlap(prefix, [], Epoch(), (), writer, lambda _: None)
    overlap.stop()
    with pytest.raises(ChangedError, match="not compared any more"):
        overlap.look()
    overlap.close()
    os.close(reader)


def test_those_that_wait_for_packages_keep_nobody_from_bringing_them(prefix: Path) -> None:
    """Also where there are more of them than threads."""

    async def bring() -> None:
        reader, writer = os.pipe()
        package = package_from_json({"name": "own", "version": "1", "build": "0"})
        overlap = Overlap(prefix, [package], Epoch(), (), writer, lambda _: None)
        anyio.to_thread.current_default_thread_limiter().total_tokens = 1
        stream = Streaming(overlap, anyio.Event().wait)
        async with process.task_group() as group, stream.running():
            await anyio.lowlevel.checkpoint()
            with anyio.fail_after(PATIENCE):
                await anyio.to_thread.run_sync(partial(overlap.complete, has_run_scripts=False))
            group.cancel_scope.cancel()
        os.close(reader)

    anyio.run(bring)


@pytest.mark.parametrize(
    ("mtime", "told"),
    [
        (1_700_000_000_999_999_999, 1_700_000_000),
        (-5_000_000_000, (1 << 32) - 5),
        (((1 << 32) + 4) * 1_000_000_000, 4),
    ],
)
def test_a_time_is_what_mksquashfs_makes_of_it(tmp_path: Path, mtime: int, told: int) -> None:
    """Without its fraction, and in 32 bits."""
    file = tmp_path / "file"
    file.touch()
    os.utime(file, ns=(0, mtime))
    assert Epoch().of(file.lstat()) == told


def test_long_names_are_in_the_bytes_of_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not always in UTF-8."""
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "iso-8859-1")
    file = tmp_path / "file"
    file.touch()
    reader, writer = os.pipe()
    archive = Archive(writer)
    archive.add(120 * "ö", str(file), file.lstat(), 0)
    archive.close()
    with os.fdopen(reader, "rb") as pipe:
        assert 120 * b"\xf6" in pipe.read()


def test_an_archive_is_what_tar_reads(tmp_path: Path) -> None:
    """Also names around the length that a header has room for, and any bytes in them."""
    names = [
        "short",
        "n" * 99,
        "n" * 100,
        "n" * 101,
        "d/" * 99 + "n",
        "größe",
        "\udcff",
        "new\nline",
    ]
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"x" * 513)
    large.write_bytes(os.urandom(300_000))
    link = tmp_path / "link"
    link.symlink_to("t" * 150)
    reader, writer = os.pipe()
    found = {}

    def read() -> None:
        with (
            os.fdopen(reader, "rb") as file,
            tarfile.open(fileobj=file, mode="r|", errors="surrogateescape") as archive,
        ):
            for member in archive:
                data = archive.extractfile(member) if member.isreg() else None
                content = data.read() if data else member.linkname.encode()
                found[member.name] = (member.mode, member.mtime, member.uid, content)

    thread = threading.Thread(target=read)
    thread.start()
    archive = Archive(writer)
    for name in names:
        archive.add(name, str(small), small.lstat(), 1_700_000_000)
    archive.add("large", str(large), large.lstat(), 5)
    archive.add("link", str(link), link.lstat(), 6)
    archive.add("directory", str(tmp_path), tmp_path.lstat(), 7)
    archive.link("n" * 120, "n" * 99, 8)
    archive.end()
    archive.close()
    thread.join()
    mode = small.stat().st_mode & 0o7777
    wanted = (mode, 1_700_000_000, 0, b"x" * 513)
    assert [found[name] for name in names] == [wanted] * len(names)
    assert found["large"][3] == large.read_bytes()
    assert found["link"][3] == b"t" * 150
    assert found["directory"][:2] == (tmp_path.stat().st_mode & 0o7777, 7)
    assert found["n" * 120][3] == b"n" * 99
