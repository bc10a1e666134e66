"""Builds that are interrupted: nothing of them is left, and what was there before still is."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests import building, localchannel
from tests.support import compressing, running, wait_for

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support import Workshop

pytestmark = pytest.mark.slow

OLD_IMAGE = b"an image that was here before"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class Stop:
    """What a stage needs so that a signal can meet it.

    Attributes:
        workshop: the project.
        channel: of the hard cases.
        basic: the channel with pip.
        packages: an empty package cache.
        servers: closed when the test is over.
    """

    workshop: Workshop
    channel: Path
    basic: Callable[[], Path]
    packages: Path
    servers: contextlib.ExitStack

    def solve(self) -> Callable[[], object]:
        """The list of a channel does not come."""
        server = building.served_but("", self.channel)
        url, asked = self.servers.enter_context(server)
        self.workshop.environment("hard-text", channel=url)
        return asked.is_set

    def fetch(self) -> Callable[[], object]:
        """A package does not come."""
        server = building.served_but("conda", self.channel)
        url, asked = self.servers.enter_context(server)
        self.workshop.configure(package_cache=self.packages)
        self.workshop.environment("hard-text", "hard-hello", "python", channel=url)
        return asked.is_set

    def post_link(self) -> Callable[[], object]:
        """A post-link script and its child sleep."""
        self.workshop.environment("hard-post-link-sleeps", "hard-text", channel=self.channel)
        return lambda: _has_lines(self.workshop.prefix / "hard-sleeping.txt")

    def pip(self) -> Callable[[], object]:
        """A package index does not answer."""
        url, asked = self.servers.enter_context(building.served_but("/", self.channel))
        lines = f"  - pip:\n    - --index-url {url}\n    - nothing\n"
        self.workshop.environment("python", "pip", channel=self.basic(), more=lines)
        return asked.is_set

    def compile(self) -> Callable[[], object]:
        """A module takes long to compile."""
        self.workshop.environment("python", "hard-slow-module", channel=self.channel)
        python = str(self.workshop.prefix / "bin/python")
        return lambda: [
            line
            for line in building.processes_of(self.workshop).values()
            if line.startswith(python) and "cache_from_source" in line
        ]

    def squash(self) -> Callable[[], object]:
        """A slow compressor has much to do."""
        self.workshop.configure(compression="xz")
        self.workshop.environment("hard-big", channel=localchannel.ensure("big"))
        return lambda: (
            compressing(self.workshop)
            and any(".squashfs." in name for name in building.parts(self.workshop))
        )


@pytest.fixture
def stop(workshop: Workshop, hard_channel: Path, tmp_path: Path) -> Iterator[Stop]:
    workshop.image.write_bytes(OLD_IMAGE)
    with contextlib.ExitStack() as servers:
        try:
            yield Stop(
                *(workshop, hard_channel, lambda: localchannel.ensure("basic")),
                packages=tmp_path / "packages",
                servers=servers,
            )
        finally:
            end(workshop)


def end(workshop: Workshop) -> None:
    """End what a failed test has left, which may be stopped and so would never end by itself."""
    for pid in building.processes_of(workshop):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def start(workshop: Workshop, *arguments: str) -> subprocess.Popen[str]:
    return workshop.start("build", "--force", *arguments)


def check_clean(workshop: Workshop, before: dict[str, tuple[object, ...]]) -> None:
    """Nothing of a build is left, and nothing has changed."""
    assert building.processes_of(workshop) == {}
    assert workshop.left_over() == []
    after = building.picture(workshop.directory)
    for seen in (before, after):
        seen.pop(".")
    assert after == before


def check_next_build(workshop: Workshop, channel: Path) -> None:
    """The next build simply works."""
    workshop.environment("hard-text", channel=channel)
    workshop.run("build", "--force", "-q")
    assert workshop.image.read_bytes() != OLD_IMAGE
    assert workshop.left_over() == []
    assert building.parts(workshop) == []


def _has_lines(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.read_text().endswith("\n")
    return False


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize("stage", ["solve", "fetch", "post_link", "pip", "compile", "squash"])
def test_signal_in_a_stage(stop: Stop, stage: str, signum: signal.Signals) -> None:
    interrupt(stop, stage, signum, "rattler")


@pytest.mark.parametrize("stage", ["solve", "fetch", "post_link"])
def test_signal_while_micromamba_works(stop: Stop, stage: str, micromamba: Path) -> None:
    interrupt(stop, stage, signal.SIGINT, str(micromamba))


def interrupt(stop: Stop, stage: str, signum: signal.Signals, installer: str) -> None:
    """Send a signal when a build has come to a stage, and see what is left."""
    workshop = stop.workshop
    with stop.servers:
        is_there = getattr(stop, stage)()
        before = building.picture(workshop.directory)
        build = start(workshop, "--installer", installer)
        wait_for(lambda: is_there() or build.poll() is not None)
        build.send_signal(signum)
        _, words = build.communicate()
        assert build.returncode == 128 + signum, words
        assert f"interrupted by signal {int(signum)}" in words
        assert "Traceback" not in words
        assert "panicked" not in words
        check_clean(workshop, before)
    check_next_build(workshop, stop.channel)


def test_installer_that_does_not_say_its_version_is_ended(
    workshop: Workshop, hard_channel: Path, tmp_path: Path
) -> None:
    workshop.environment("hard-text", channel=hard_channel)
    silent = tmp_path / "micromamba"
    silent.write_text(f"#!/bin/sh\necho $$ > '{tmp_path}/pid'\nexec sleep 600\n")
    silent.chmod(0o755)
    build = workshop.start("build", "--installer", str(silent))
    wait_for(lambda: _has_lines(tmp_path / "pid"))
    build.send_signal(signal.SIGINT)
    _, words = build.communicate()
    assert build.returncode == 128 + signal.SIGINT, words
    pid = int((tmp_path / "pid").read_text())
    wait_for(lambda: pid not in running("sleep", "600"))


def test_second_signal_changes_nothing(stop: Stop) -> None:
    workshop = stop.workshop
    is_there = stop.post_link()
    before = building.picture(workshop.directory)
    build = start(workshop)
    wait_for(is_there)
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        build.send_signal(signum)
    _, words = build.communicate()
    # The kernel may deliver two that come together in either order.
    assert build.returncode in {128 + signal.SIGINT, 128 + signal.SIGTERM}, words
    check_clean(workshop, before)


def test_all_builds_of_a_command_are_ended(stop: Stop, tmp_path: Path, home: Path) -> None:
    first = stop.workshop
    is_there = stop.post_link()
    with building.new_workshop(tmp_path / "second", home) as second:
        second.environment("hard-post-link-sleeps", channel=stop.channel)
        before = building.picture(first.directory), building.picture(second.directory)
        build = start(first, str(first.directory), str(second.directory))
        sleeping = second.prefix / "hard-sleeping.txt"
        wait_for(lambda: is_there() and _has_lines(sleeping))
        build.send_signal(signal.SIGTERM)
        build.communicate()
        assert build.returncode == 128 + signal.SIGTERM
        check_clean(first, before[0])
        check_clean(second, before[1])


def test_random_moments(stop: Stop, micromamba: Path) -> None:
    """Ten builds, each interrupted when it has said so and so many lines."""
    workshop = stop.workshop
    specs = [spec for spec in building.EVERYTHING if spec != "hard-modules"]
    workshop.environment(*specs, channel=stop.channel)
    workshop.run("build", "--force", "-q")
    before = building.picture(workshop.directory)
    moments = random.Random(10)  # noqa: S311  (the same moments each time)
    for turn in range(10):
        installer = ("rattler", str(micromamba))[turn % 2]
        lines = moments.randrange(1, 45)
        build = workshop.start("build", "--force", "-v", "--installer", installer)
        assert build.stderr is not None
        for _ in range(lines):
            build.stderr.readline()
        build.send_signal(signal.SIGINT)
        _, words = build.communicate()
        assert build.returncode == 128 + signal.SIGINT, (lines, words)
        check_clean(workshop, dict(before))
    check_next_build(workshop, stop.channel)


# When somebody mounts meanwhile


def test_exec_while_the_image_is_built_anew_does_not_get_in_its_way(
    workshop: Workshop, hard_channel: Path, micromamba: Path, tmp_path: Path
) -> None:
    """It is told who builds; the build, which was still solving, comes to its end."""
    workshop.environment("hard-text", channel=hard_channel)
    workshop.run("build", "-q")
    solving, go_on = tmp_path / "solving", tmp_path / "go-on"
    os.mkfifo(go_on)
    wrapper = tmp_path / "micromamba"
    wrapper.write_text(
        "#!/bin/sh\n"
        f"case \"$*\" in *--dry-run*) touch '{solving}'; read -r _ < '{go_on}';; esac\n"
        f"exec '{micromamba}' \"$@\"\n"
    )
    wrapper.chmod(0o755)
    build = start(workshop, "--installer", str(wrapper))
    wait_for(lambda: solving.exists() or build.poll() is not None)
    for command, status in (("mount",), 1), (("exec", "true"), 125):
        answer = workshop.run(*command, status=status)
        assert f"the image of {workshop.directory} is being built by" in answer.stderr
        assert f"({build.pid})" in answer.stderr
    go_on.write_text("\n")
    _, words = build.communicate()
    assert build.returncode == 0, words
    workshop.run("exec", "true")
    workshop.run("umount")


@building.needs_root
def test_why_a_build_failed_is_said_where_its_staging_cannot_be_removed(stop: Stop) -> None:
    workshop = stop.workshop
    is_there = stop.post_link()
    build = start(workshop)
    wait_for(lambda: is_there() or build.poll() is not None)
    place = workshop.prefix / "mounted"
    place.mkdir()
    with building.mounted_tmpfs(place, "size=1m"):
        for pid in map(int, (workshop.prefix / "hard-sleeping.txt").read_text().split()):
            os.kill(pid, signal.SIGKILL)
        _, words = build.communicate()
        assert build.returncode == 1
        assert "post-link script" in words
        assert f"{workshop.prefix} was not removed: something is mounted there" in words
    check_next_build(workshop, stop.channel)


# When condainer itself is killed


@pytest.mark.parametrize("stage", ["post_link", "squash"])
def test_next_build_after_a_kill_waits_for_the_orphans_and_then_works(
    stop: Stop, stage: str
) -> None:
    workshop = stop.workshop
    is_there = getattr(stop, stage)()
    build = start(workshop, "--no-overlap")  # or mksquashfs would end with the pipe
    wait_for(is_there)
    build.kill()
    build.communicate()
    orphans = building.processes_of(workshop)
    for pid in orphans:
        os.kill(pid, signal.SIGSTOP)  # so that none has come to its end too early
    answer = workshop.run("build", "--force", status=1)
    assert "programs of a build of this project that was killed are still running" in answer.stderr
    assert any(f"({pid})" in answer.stderr for pid in orphans)
    assert (workshop.prefix / "conda-meta").exists()
    for pid in orphans:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not building.processes_of(workshop))
    assert workshop.image.read_bytes() == OLD_IMAGE
    assert any(".squashfs." in name for name in building.parts(workshop))
    check_next_build(workshop, stop.channel)


def test_part_that_a_living_process_writes_is_left_alone(
    workshop: Workshop, hard_channel: Path
) -> None:
    node = os.uname().nodename
    living = (
        workshop.directory / f".{workshop.image.name}.{node}.{os.getpid()}.0123456789abcdef.part"
    )
    elsewhere = workshop.directory / f".{workshop.image.name}.another-node.1.0123456789abcdef.part"
    for part in (living, elsewhere):
        part.touch()
    workshop.environment("hard-text", channel=hard_channel)
    workshop.run("build", "-q")
    assert building.parts(workshop) == sorted([living.name, elsewhere.name])
