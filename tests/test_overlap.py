"""Images that are compressed while the environment is installed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from condainer import process
from condainer.pipeline import installers
from condainer.pipeline.archive import Archive, ChangedError
from condainer.pipeline.epoch import Epoch
from condainer.pipeline.installers import Final
from condainer.pipeline.overlap import Overlap
from condainer.pipeline.streaming import Streaming
from tests import building, localchannel, support
from tests.localchannel.package import PLACEHOLDER, Package, put
from tests.support import PATIENCE, compressing, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.localchannel.package import Recipe
    from tests.support import Workshop

HARMLESS = tuple(
    name
    for name in building.EVERYTHING
    if name not in {"hard-post-link-edits", "clobber-a", "clobber-b"}
)
"""What can be installed together without one package's changing another's files."""

INSTALLERS = ("rattler", "micromamba")
AGAIN = "compressing all again"


@pytest.fixture(params=INSTALLERS)
def installer(request: pytest.FixtureRequest, micromamba: Path) -> str:
    """What installs."""
    return "rattler" if request.param == "rattler" else str(micromamba)


@pytest.fixture
def locked_time(workshop: Workshop) -> None:
    """Images are the same each time."""
    workshop.variables["SOURCE_DATE_EPOCH"] = "1700000000"


def build(workshop: Workshop, *how: str) -> str:
    """Build anew, and give what was said."""
    return workshop.run("build", "--force", *how).stderr


def streamed(workshop: Workshop) -> bool:
    """Whether the last build sent mksquashfs an archive."""
    return " -tar " in workshop.build_log.read_text()


def look(image: Path, mountpoint: Path) -> dict[str, tuple[object, ...]]:
    """All that the kernel says of each path in an image, and what is in it."""
    mountpoint.mkdir()
    subprocess.run(["mount", "-o", "loop,ro", str(image), str(mountpoint)], check=True)
    try:
        found = building.picture(mountpoint)
        for name, seen in found.items():
            path = mountpoint / name
            status = path.lstat()
            size = 0 if path.is_dir() and not path.is_symlink() else status.st_size
            found[name] = (*seen, status.st_gid, status.st_nlink, size)
    finally:
        subprocess.run(["umount", str(mountpoint)], check=True)
    return found


@building.needs_root
@pytest.mark.usefixtures("locked_time")
@pytest.mark.parametrize("packages", [HARMLESS, building.EVERYTHING])
def test_the_same_tree_as_the_ordinary_way(
    workshop: Workshop,
    hard_channel: Path,
    tmp_path: Path,
    installer: str,
    packages: tuple[str, ...],
) -> None:
    workshop.environment(*packages, channel=hard_channel)
    said = build(workshop, "--installer", installer)
    assert streamed(workshop)
    assert AGAIN not in said or packages == building.EVERYTHING
    one = look(workshop.image, tmp_path / "one")
    build(workshop, "--installer", installer, "--no-overlap")
    assert not streamed(workshop)
    assert one == look(workshop.image, tmp_path / "other")


@building.needs_root
@pytest.mark.usefixtures("locked_time")
def test_copies_from_a_cache_on_another_file_system(
    workshop: Workshop, hard_channel: Path, tmp_path: Path
) -> None:
    with building.mounted_tmpfs(tmp_path / "cache", "size=500m") as cache:
        workshop.configure(package_cache=cache)
        workshop.environment(*HARMLESS, channel=hard_channel)
        assert AGAIN not in build(workshop, "--installer", "rattler")
        assert streamed(workshop)
        one = look(workshop.image, tmp_path / "one")
        image = workshop.image.read_bytes()
        build(workshop, "--installer", "rattler", "--no-overlap")
        assert one == look(workshop.image, tmp_path / "other")
    workshop.configure(package_cache=tmp_path / "linked")
    build(workshop, "--installer", "rattler")
    assert workshop.image.read_bytes() == image  # hard links or copies, it is the same


@building.needs_root
def test_a_cache_on_the_same_file_system_that_is_mounted_twice(
    workshop: Workshop, hard_channel: Path, tmp_path: Path, installer: str
) -> None:
    """As in containers, and where each user has a /tmp: nothing can be linked."""
    cache = tmp_path / "cache"
    cache.mkdir()
    workshop.configure(package_cache=cache)
    workshop.environment(*HARMLESS, channel=hard_channel)
    subprocess.run(["mount", "--bind", str(cache), str(cache)], check=True)
    try:
        assert AGAIN not in build(workshop, "--installer", installer)
        one = look(workshop.image, tmp_path / "one")
        build(workshop, "--installer", installer, "--no-overlap")
        assert contents(one) == contents(look(workshop.image, tmp_path / "other"))
    finally:
        subprocess.run(["umount", str(cache)], check=True)


@pytest.mark.usefixtures("locked_time")
def test_the_cache_of_another_installer_has_the_same_packages(
    workshop: Workshop, hard_channel: Path, tmp_path: Path, micromamba: Path
) -> None:
    workshop.environment(*HARMLESS, channel=hard_channel)
    made = set()
    for root in ("one", "other", "other"):
        workshop.variables["MAMBA_ROOT_PREFIX"] = str(tmp_path / root)
        assert AGAIN not in build(workshop, "--installer", str(micromamba))
        made.add(workshop.image.read_bytes())
        home = Path(workshop.variables["HOME"], "micromamba/pkgs")
        if not home.exists():
            home.parent.mkdir()
            subprocess.run(["cp", "-a", str(tmp_path / "one/pkgs"), str(home)], check=True)
    assert len(made) == 1


@pytest.mark.usefixtures("locked_time")
def test_more_builds_than_processors_make_the_same_images(
    workshop: Workshop, hard_channel: Path
) -> None:
    workshop.environment(*HARMLESS, channel=hard_channel)
    build(workshop)
    image = workshop.image.read_bytes()
    second = support.make_workshop(workshop.directory.with_name("second"), workshop.base)
    second.environment("hard-text", channel=hard_channel)
    projects = (str(workshop.directory), str(second.directory))
    workshop.run("build", "--force", "--jobs", "1", *projects)
    assert workshop.image.read_bytes() == image


@pytest.mark.usefixtures("locked_time")
def test_the_same_image_each_time(
    workshop: Workshop, hard_channel: Path, tmp_path: Path, installer: str
) -> None:
    """Whatever is cached, in what order packages come, and with how many processors."""
    with building.served_late(hard_channel) as (url, be_late_with):
        workshop.environment(*HARMLESS, channel=url)
        made = set()
        for number, (late, how) in enumerate(
            [("hard-text", ()), ("hard-binary", ("--jobs", "1")), ("python", ())]
        ):
            workshop.configure(package_cache=tmp_path / str(number))
            be_late_with(late)
            assert AGAIN not in build(workshop, "--installer", installer, *how)
            assert streamed(workshop)
            made.add(workshop.image.read_bytes())
        build(workshop, "--installer", installer)  # from the cache
        assert made == {workshop.image.read_bytes()}


def test_a_lock_file_gives_the_same_image_each_time(
    workshop: Workshop, hard_channel: Path, tmp_path: Path
) -> None:
    """Also where it was written on another day: it tells its own time."""
    workshop.environment(*HARMLESS, channel=hard_channel)
    build(workshop)
    lock = workshop.lock_file.read_text()
    made = set()
    for name in ("one", "other"):
        workshop.configure(package_cache=tmp_path / name)
        build(workshop, "--locked")
        made.add(workshop.image.read_bytes())
    assert len(made) == 1
    assert workshop.lock_file.read_text() == lock
    workshop.lock_file.write_text(lock.replace("# created: 20", "# created: yesterday, 20"))
    words = workshop.run("build", "--force", "--locked", status=1).stderr
    assert "which is no time" in words


def test_a_time_that_is_none(workshop: Workshop, hard_channel: Path) -> None:
    workshop.environment("hard-text", channel=hard_channel)
    for text in ("yesterday", "-1", "1" * 11):
        words = workshop.run("build", variables={"SOURCE_DATE_EPOCH": text}, status=1).stderr
        assert f"SOURCE_DATE_EPOCH is '{text}'" in words


# What is changed after it was sent


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
    package = installers.package_from_json({"name": "own", "version": "1", "build": "0"})
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
    package = installers.package_from_json({"name": "own", "version": "1", "build": "0"})
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
    package = installers.package_from_json({"name": "own", "version": "1", "build": "0"})
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
    package = installers.package_from_json({"name": "own", "version": "1", "build": "0"})
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
    with pytest.raises(ChangedError, match="not looked at any more"):
        overlap.look()
    overlap.close()
    os.close(reader)


def test_those_that_wait_for_packages_keep_nobody_from_bringing_them(prefix: Path) -> None:
    """Also where there are more of them than threads."""

    async def bring() -> None:
        reader, writer = os.pipe()
        package = installers.package_from_json({"name": "own", "version": "1", "build": "0"})
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


def late_change(script: str) -> Recipe:
    """A package whose post-link script does something to another's file, `share/victim`."""

    def recipe(tree: Path) -> Package:
        text = f"#!/bin/bash\ncd {PLACEHOLDER}/share\n{script}\n"
        put(tree, "bin/.changes-post-link.sh", text, 0o755)
        return Package(name="changes", version="1.0", depends=("victim",))

    return recipe


def victim(tree: Path) -> Package:
    put(tree, "share/victim", "as it was made\n")
    return Package(name="victim", version="1.0")


BIND = 'import socket; socket.socket(socket.AF_UNIX).bind("socket")'


def test_a_path_that_is_longer_than_it_needs_to_be(
    workshop: Workshop, tmp_path: Path, installer: str
) -> None:
    """What can be installed can be compressed as well."""

    def long_way(tree: Path) -> Package:
        put(tree, "share/x", "x\n")
        paths = [{"_path": "share/./x", "path_type": "hardlink", "size_in_bytes": 2}]
        listing = json.dumps({"paths": paths, "paths_version": 1}).encode()
        return Package(name="long", version="1.0", info={"paths.json": listing})

    workshop.environment("long", channel=building.make_channel(tmp_path / "channel", long_way))
    assert AGAIN not in build(workshop, "--installer", installer)
    assert (building.unpack(workshop.image, tmp_path / "tree") / "share/x").read_text() == "x\n"


@pytest.mark.parametrize(
    "script",
    [
        "cp victim x; echo more >> x; mv x victim",
        "rm victim; mkdir victim",
        "rm victim",
        "ln victim twin",
        IN_PLACE,
        f'sleep 0.1; {IN_PLACE}; rm "$0"',  # so that nothing tells that there was a script
        f"{shlex.quote(sys.executable)} -c '{BIND}'",
    ],
)
def test_the_image_has_what_scripts_have_made_of_it(
    workshop: Workshop, tmp_path: Path, installer: str, script: str
) -> None:
    """Whether it was sent before or after."""
    channel = building.make_channel(tmp_path / "channel", victim, late_change(script))
    workshop.environment("changes", channel=channel)
    said = build(workshop, "--installer", installer)
    assert said.count(AGAIN) <= 1
    one = building.picture(building.unpack(workshop.image, tmp_path / "one"))
    build(workshop, "--installer", installer, "--no-overlap")
    other = building.picture(building.unpack(workshop.image, tmp_path / "other"))
    assert contents(one) == contents(other)


def contents(seen: dict[str, tuple[object, ...]]) -> dict[str, tuple[object, ...]]:
    """Mode and content of each path but those that tell when an image was built."""
    own = (".condainer/", "conda-meta/")
    return {k: (v[0], v[3]) for k, v in seen.items() if not k.startswith(own)}


def test_a_path_of_two_packages(
    workshop: Workshop, hard_channel: Path, tmp_path: Path, installer: str
) -> None:
    """The image has what the installer has left there."""
    found = set()
    for how in ((), ("--no-overlap",)):
        workshop.environment("clobber-a", "clobber-b", channel=hard_channel)
        build(workshop, "--installer", installer, *how)
        tree = building.unpack(workshop.image, tmp_path / f"tree{len(how)}")
        found.add((tree / "share/clobber.txt").read_text())
    assert len(found) == 1


def test_a_path_that_is_a_file_and_a_directory(
    workshop: Workshop, tmp_path: Path, installer: str
) -> None:
    """The installer decides which it is, if it takes both."""

    def directory(tree: Path) -> Package:
        put(tree, "share/x/file", "one\n")
        return Package(name="directory", version="1.0")

    def file(tree: Path) -> Package:
        put(tree, "share/x", "other\n")
        return Package(name="file", version="1.0")

    channel = building.make_channel(tmp_path / "channel", directory, file)
    workshop.environment("directory", "file", channel=channel)
    found = []
    for how in ((), ("--no-overlap",)):
        done = workshop.run("build", "--force", "--installer", installer, *how, status=None)
        assert "mksquashfs failed" not in done.stderr
        found.append(done.returncode)
    assert found[0] == found[1]


# When it is not done, and what fails in the middle


def test_old_mksquashfs_takes_the_ordinary_way(
    workshop: Workshop, hard_channel: Path, tmp_path: Path
) -> None:
    real = subprocess.run(["which", "mksquashfs"], capture_output=True, text=True, check=True)
    old = tmp_path / "bin" / "mksquashfs"
    old.parent.mkdir()
    old.write_text(
        "#!/bin/sh\n"
        'case "$*" in -version) echo "mksquashfs version 4.4 (2019/08/29)"; exit ;; esac\n'
        f'exec {real.stdout.strip()} "$@"\n'
    )
    old.chmod(0o755)
    workshop.environment("hard-text", channel=hard_channel)
    path = f"{old.parent}:{workshop.variables['PATH']}"
    workshop.run("build", variables={"PATH": path})
    assert not streamed(workshop)
    workshop.run("build", "--force")
    assert streamed(workshop)


@dataclass(frozen=True)
class HalfWay:
    """A build that has sent what there is, and waits for one more package.

    Attributes:
        process: the build.
        end_server: takes away where the package would come from.
    """

    process: subprocess.Popen[str]
    end_server: Callable[[], None]


@pytest.fixture
def half_way(
    workshop: Workshop, hard_channel: Path, installer: str, tmp_path: Path
) -> Iterator[HalfWay]:
    workshop.image.write_bytes(b"old")
    workshop.configure(package_cache=tmp_path / "packages")
    with contextlib.ExitStack() as server:
        serving = building.served_but("hard-binary-1.0-0.conda", hard_channel)
        url, asked = server.enter_context(serving)
        workshop.environment("hard-binary", "hard-text=1", channel=url)
        process = workshop.start("build", "--force", "--installer", installer)
        assert asked.wait(PATIENCE)
        wait_for(lambda: compressing(workshop))
        yield HalfWay(process, server.close)
    assert workshop.image.read_bytes() == b"old"
    assert building.parts(workshop) == []
    assert building.processes_of(workshop) == {}
    assert workshop.left_over() == []
    assert not list((tmp_path / "packages").glob(".condainer-fetch*"))


def test_mksquashfs_is_killed_half_way(workshop: Workshop, half_way: HalfWay) -> None:
    (mksquashfs,) = compressing(workshop)
    os.kill(mksquashfs, signal.SIGKILL)
    _, words = half_way.process.communicate()
    assert half_way.process.returncode == 1
    assert "mksquashfs failed (killed by SIGKILL)" in words


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_half_way(half_way: HalfWay, signum: signal.Signals) -> None:
    half_way.process.send_signal(signum)
    _, words = half_way.process.communicate()
    assert half_way.process.returncode == 128 + signum
    assert "Traceback" not in words


def test_the_server_ends_half_way(workshop: Workshop, half_way: HalfWay) -> None:
    half_way.end_server()
    _, words = half_way.process.communicate()
    assert half_way.process.returncode == 1
    assert re.search(r"cannot fetch .*\.conda:\n|micromamba failed", words)
    assert "Traceback" not in words + workshop.build_log.read_text()


def test_wrong_checksum(workshop: Workshop) -> None:
    workshop.image.write_bytes(b"old")
    workshop.environment("hard-badchecksum", channel=localchannel.ensure("badchecksum"))
    words = workshop.run("build", "--force", status=1).stderr
    assert "hard-badchecksum" in words
    assert workshop.image.read_bytes() == b"old"
    assert building.parts(workshop) == []
    assert workshop.left_over() == []


def test_mksquashfs_is_as_nice_as_the_rest(
    workshop: Workshop, hard_channel: Path, tmp_path: Path
) -> None:
    """Nobody but root could take that back, and on a busy machine it would wait and wait."""
    real = shutil.which("mksquashfs", path=workshop.variables["PATH"])
    wrapper = tmp_path / "bin/mksquashfs"
    wrapper.parent.mkdir()
    wrapper.write_text(
        f"#!/bin/sh\n'{real}' \"$@\"\nstatus=$?\nnice >'{tmp_path}/nice'\nexit $status\n"
    )
    wrapper.chmod(0o755)
    workshop.environment("hard-text", channel=hard_channel)
    path = f"{wrapper.parent}:{workshop.variables['PATH']}"
    workshop.run("build", variables={"PATH": path})
    assert streamed(workshop)
    assert int((tmp_path / "nice").read_text()) == os.getpriority(os.PRIO_PROCESS, 0)
