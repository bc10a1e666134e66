"""Packages on their way into rattler's cache."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import threading
from collections import Counter
from typing import TYPE_CHECKING

import anyio
import pytest

from condainer.pipeline.installers import fetching, network
from condainer.pipeline.packages import package_from_json
from tests import building, localchannel

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import Workshop

PACKAGES = ("hard-text=1", "hard-hello", "python")
WORK = ".condainer-fetch"
MANY = 10


@pytest.fixture
def cache(workshop: Workshop, tmp_path: Path) -> Path:
    """An empty package cache."""
    workshop.variables["CONDAINER_INSTALLER"] = "rattler"
    workshop.configure(package_cache=tmp_path / "cache")
    return tmp_path / "cache"


def fetched(asked: list[str]) -> Counter[str]:
    """How often each package was asked for."""
    return Counter(path.rpartition("/")[2] for path in asked if path.endswith(".conda"))


def test_each_is_fetched_once(workshop: Workshop, hard_channel: Path, cache: Path) -> None:
    """The engine takes what it finds in its cache, also the next time."""
    with building.served_in_part(0, hard_channel) as (url, asked):
        workshop.environment(*PACKAGES, channel=url)
        workshop.run("build")
        assert set(fetched(asked).values()) == {1}
        workshop.run("build", "--force")
        assert set(fetched(asked).values()) == {1}
    assert len(list(cache.glob("hard-text-1.*-0"))) == 1
    assert not list(cache.glob(f"{WORK}*"))


def test_what_is_cut_off_is_fetched_again(
    workshop: Workshop, hard_channel: Path, cache: Path
) -> None:
    with building.served_in_part(2, hard_channel) as (url, asked):
        workshop.environment(*PACKAGES, channel=url)
        workshop.run("build")
    assert set(fetched(asked).values()) == {3}
    assert "was incomplete; fetching it again" in workshop.build_log.read_text()
    assert cache.exists()


def test_what_is_cut_off_each_time(workshop: Workshop, hard_channel: Path, cache: Path) -> None:
    workshop.image.write_bytes(b"old")
    with building.served_in_part(100, hard_channel) as (url, _):
        workshop.environment("hard-text=1", channel=url)
        words = workshop.run("build", "--force", status=1).stderr
        assert f"cannot fetch {url}/" in words
        assert "Traceback" not in words
    assert workshop.image.read_bytes() == b"old"
    assert not list(cache.glob(f"{WORK}*"))
    assert workshop.left_over() == []


@pytest.mark.usefixtures("cache")
def test_a_package_of_the_same_name_with_other_content(workshop: Workshop, tmp_path: Path) -> None:
    for text in ("one", "other"):
        script = f"echo {text} > kept.txt"
        channel = building.make_channel(tmp_path / text, building.odd_package(script))
        workshop.environment("odd", channel=channel)
        workshop.run("build", "--force")
        tree = building.unpack(workshop.image, tmp_path / f"tree {text}")
        assert (tree / "kept.txt").read_text() == f"{text}\n"


def test_a_wrong_one_does_not_come_into_the_cache(workshop: Workshop, cache: Path) -> None:
    with building.served(localchannel.ensure("badchecksum")) as url:
        workshop.environment("hard-badchecksum", channel=url)
        words = workshop.run("build", status=1).stderr
    assert "is not the file that its channel lists: SHA256 " in words
    assert not list(cache.glob("hard-badchecksum*"))
    assert not list(cache.glob(f"{WORK}*"))


def test_what_killed_builds_have_left(workshop: Workshop, hard_channel: Path, cache: Path) -> None:
    """Whether somebody works there is not told by processes: a container has its own."""
    host = socket.gethostname()
    ended, living = cache / f"{WORK}.{host}.abc", cache / f"{WORK}.{host}.def"
    elsewhere, old = cache / f"{WORK}.another.abc", cache / f"{WORK}.another.def"
    for path in (ended, living, elsewhere, old):
        (path / "part").mkdir(parents=True)
        (path / ".lock").touch()
    os.utime(old, (0, 0))
    with (living / ".lock").open("rb+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        workshop.environment("hard-text=1", channel=hard_channel)
        workshop.run("build")
        assert sorted(cache.glob(f"{WORK}*")) == sorted([living, elsewhere])
        ended.mkdir()
        (ended / ".lock").touch()
        workshop.run("build", "--force")  # which fetches nothing
        assert sorted(cache.glob(f"{WORK}*")) == sorted([living, elsewhere])


@building.needs_root
def test_what_others_have_left_keeps_nobody_from_building(
    workshop: Workshop, hard_channel: Path, cache: Path
) -> None:
    theirs = cache / f"{WORK}.{socket.gethostname()}.abc"
    theirs.mkdir(parents=True)
    os.chown(theirs, 65534, 65534)
    os.utime(theirs, (0, 0))
    workshop.environment("hard-text=1", channel=hard_channel)
    workshop.run("build")
    assert list(cache.glob(f"{WORK}*")) == [theirs]


@building.needs_root
def test_a_cache_that_cannot_be_written(
    workshop: Workshop, hard_channel: Path, tmp_path: Path
) -> None:
    with building.mounted_tmpfs(tmp_path / "cache", "size=1m") as cache:
        workshop.variables["CONDAINER_INSTALLER"] = "rattler"
        workshop.configure(package_cache=cache)
        workshop.environment("hard-text=1", channel=hard_channel)
        subprocess.run(["mount", "-o", "remount,ro", str(cache)], check=True)
        words = workshop.run("build", status=1).stderr
    assert "cannot write to the package cache" in words
    assert "Traceback" not in words


def test_others_go_on_while_a_package_is_unpacked(tmp_path: Path) -> None:
    """As what is compressed meanwhile has to, and the board."""
    archive = next(localchannel.ensure("big").rglob("hard-big-*.conda"))
    package = package_from_json({"name": "hard-big", "version": "1.0", "build": "0"})
    begun, ended = threading.Event(), threading.Event()
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        begun.wait()
        while not ended.wait(0.001):
            ticks += 1

    async def unpack() -> None:
        work = fetching.unpack(network.client(), archive, tmp_path / "part", package)
        begun.set()
        await work
        ended.set()

    thread = threading.Thread(target=tick)
    thread.start()
    anyio.run(unpack)
    thread.join()
    assert ticks > MANY
