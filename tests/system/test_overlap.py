"""Images that are compressed while the environment is installed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import building, localchannel, support
from tests.localchannel.package import PLACEHOLDER, Package, put
from tests.support import PATIENCE, compressing, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.localchannel.package import Recipe
    from tests.support import Workshop

pytestmark = pytest.mark.slow

HARMLESS = tuple(
    name
    for name in building.EVERYTHING
    if name not in {"hard-post-link-edits", "clobber-a", "clobber-b"}
)
"""What can be installed together without one package's changing another's files."""

SMALL = tuple(name for name in HARMLESS if name not in {"python", "hard-hello", "hard-modules"})
"""The same without Python, which takes far longer than all the rest."""
CHANGING = (*SMALL, "hard-post-link-edits", "clobber-a", "clobber-b")
"""The same with packages that change files of others."""

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
@pytest.mark.parametrize("packages", [HARMLESS, CHANGING])
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
    assert AGAIN not in said or packages == CHANGING
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
        workshop.environment(*SMALL, channel=hard_channel)
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
    workshop.environment(*SMALL, channel=hard_channel)
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
    workshop.environment(*SMALL, channel=hard_channel)
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
        workshop.environment(*SMALL, channel=url)
        made = set()
        for number, (late, how) in enumerate(
            [("hard-text", ()), ("hard-binary", ("--jobs", "1")), ("hard-links", ())]
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
    assert "which is not a time" in words


def test_a_time_that_is_none(workshop: Workshop, hard_channel: Path) -> None:
    workshop.environment("hard-text", channel=hard_channel)
    for text in ("yesterday", "-1", "1" * 11):
        words = workshop.run("build", variables={"SOURCE_DATE_EPOCH": text}, status=1).stderr
        assert f"SOURCE_DATE_EPOCH is '{text}'" in words


IN_PLACE = "touch -r victim t; printf X | dd of=victim conv=notrunc; touch -r t victim; rm t"
"""Same length, same time, same inode: only the time of the inode's change differs."""


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
