"""File systems that run full: which one is named, and nothing unfinished stays on it."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from condainer.errors import BuildError
from condainer.pipeline import lockfile, space
from tests import building, localchannel

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import Workshop

OLD_IMAGE = b"an image that was here before"


def free(path: Path) -> int:
    return space.free_bytes(path)


def fail(workshop: Workshop, *arguments: str) -> str:
    answer = workshop.run("build", "--force", *arguments, status=1)
    assert "Traceback" not in answer.stderr
    return answer.stderr


def test_staging_that_cannot_hold_what_is_to_be_fetched_is_refused_early(
    workshop: Workshop, tmp_path: Path
) -> None:
    channel = localchannel.ensure("big")
    workshop.environment("hard-big", channel=channel)
    (archive,) = channel.rglob("hard-big-*.conda")
    package = lockfile.package_from_line(archive.as_uri())
    package = replace(package, size=archive.stat().st_size)
    workshop.lock_file.write_text(lockfile.render([package], [], 0))
    with building.mounted_tmpfs(tmp_path / "base", "size=32m") as base:
        workshop.configure(mount_base_directory=base)
        for arguments in ((), ("-n",), ("--locked",)):
            words = fail(workshop, *arguments)
            place = f"{base}/condainer-{workshop.uuid}"
            assert f"no space left for the installation in {place}" in words
            assert re.search(r"33\.\d MB are free; about 2\d\d MB are needed", words)
        assert "linked" not in workshop.build_log.read_text()
        assert list(base.iterdir()) == []


@pytest.mark.parametrize("name", ["rattler", "micromamba"])
def test_staging_that_runs_full(
    workshop: Workshop, hard_channel: Path, micromamba: Path, tmp_path: Path, name: str
) -> None:
    workshop.environment("python", channel=hard_channel)
    workshop.image.write_bytes(OLD_IMAGE)
    installer = "rattler" if name == "rattler" else str(micromamba)
    with building.mounted_tmpfs(tmp_path / "base", "size=16m") as base:
        workshop.configure(mount_base_directory=base)
        words = fail(workshop, "--installer", installer)
        assert f"no space left for the installation in {base}/condainer-{workshop.uuid}" in words
        assert re.search(r"are free; about \d+\.\d MB are needed", words)
        assert list(base.iterdir()) == []
    assert workshop.image.read_bytes() == OLD_IMAGE
    assert building.parts(workshop) == []


@pytest.mark.parametrize("name", ["rattler", "micromamba"])
def test_what_is_in_the_cache_needs_no_room_again(
    workshop: Workshop, micromamba: Path, tmp_path: Path, name: str
) -> None:
    workshop.environment("hard-big", channel=localchannel.ensure("big"))
    build = ("build", "--force", "--installer", "rattler" if name == "rattler" else str(micromamba))
    with building.mounted_tmpfs(tmp_path / "disk", "size=300m") as disk:
        workshop.configure(mount_base_directory=disk, package_cache=disk / "packages")
        assert " to fetch)" in workshop.run(*build).stderr
        with (disk / "filler").open("wb") as filler:
            os.posix_fallocate(filler.fileno(), 0, free(disk) - (24 << 20))
        assert " to fetch" not in workshop.run(*build).stderr


@pytest.fixture
def tight(workshop: Workshop, tmp_path: Path) -> Workshop:
    """A project whose own file system is given to it by the test."""
    workshop.directory = tmp_path / "tight"
    return workshop


@pytest.mark.parametrize(("megabytes", "early"), [(5, True), (40, False)])
def test_image_side_that_runs_full(tight: Workshop, *, megabytes: int, early: bool) -> None:
    with building.mounted_tmpfs(tight.directory, f"size={megabytes}m"):
        tight.configure()
        tight.environment("hard-big", channel=localchannel.ensure("big"))
        tight.image.write_bytes(OLD_IMAGE)
        (tight.directory / "activate").write_text("# usage: source activate\n")
        before = free(tight.directory)
        words = fail(tight)
        assert f"no space left for the image in {tight.directory}: " in words
        assert re.search(r"are free; about 67\.\d MB are needed|free now do not suffice", words)
        assert ("Creating 4.0 filesystem" in tight.build_log.read_text()) is not early
        assert tight.image.read_bytes() == OLD_IMAGE
        assert (tight.directory / "activate").read_text() == "# usage: source activate\n"
        assert building.parts(tight) == []
        assert free(tight.directory) > before - (1 << 20)
    assert tight.left_over() == []


def test_disk_that_the_image_is_linked_to_runs_full(workshop: Workshop, tmp_path: Path) -> None:
    workshop.environment("hard-big", channel=localchannel.ensure("big"))
    with building.mounted_tmpfs(tmp_path / "disk", "size=5m") as disk:
        workshop.image.symlink_to(disk / "image")
        assert f"no space left for the image in {disk}: " in fail(workshop)
        assert list(disk.iterdir()) == []
    assert workshop.image.is_symlink()


def test_log_that_cannot_be_written(tight: Workshop, hard_channel: Path) -> None:
    with building.mounted_tmpfs(tight.directory, "size=1m"):
        tight.configure()
        tight.environment("hard-text", channel=hard_channel)
        with (tight.directory / "filler").open("wb") as filler:
            filler.write(b"x" * (free(tight.directory)))
        words = fail(tight)
        assert "no space left" in words
        assert str(tight.directory) in words
        assert building.parts(tight) == []
    assert tight.left_over() == []


def test_package_cache_that_runs_full(
    workshop: Workshop, hard_channel: Path, tmp_path: Path
) -> None:
    workshop.environment("python", channel=hard_channel)
    with building.mounted_tmpfs(tmp_path / "packages", "size=8m") as packages:
        workshop.configure(package_cache=packages)
        words = fail(workshop)
        assert f"no space left for the package cache in {packages}" in words
    assert workshop.left_over() == []


def test_another_error_is_not_taken_for_a_full_file_system(tmp_path: Path) -> None:
    place = space.Destination(tmp_path, "anything", 0)
    assert space.explain(BuildError("something else"), [place]) is None
    assert space.explain(OSError(errno.EACCES, "Permission denied"), [place]) is None


def test_quota_is_taken_for_a_full_file_system(tmp_path: Path) -> None:
    place = space.Destination(tmp_path, "anything", 0)
    error = space.explain(OSError(errno.EDQUOT, "Disk quota exceeded"), [place])
    assert error is not None
    assert f"no space left for anything in {tmp_path}" in error.message
    assert "quota" in error.message
