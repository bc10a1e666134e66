"""What a program reads when it starts: noted by `profile`, put together by `build`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from condainer.project import image
from condainer.startup import listing, note
from tests import building
from tests.forgery import opened
from tests.localchannel.package import Package
from tests.support import CONDAINER, compressing, wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import Workshop


def startup_file(workshop: Workshop) -> Path:
    return workshop.directory / f"{workshop.uuid}.startup.txt"


def listed(workshop: Workshop) -> list[str]:
    return [
        line for line in startup_file(workshop).read_text().splitlines() if not line.startswith("#")
    ]


def places(workshop: Workshop, names: list[str]) -> list[int]:
    """Where the data of files begin in the image."""
    with opened(workshop.image.read_bytes()) as files:
        inodes = [files.inode(files.resolve(os.fsencode(name))) for name in names]
        return [min(start for start, _ in files.extents(inode)) for inode in inodes]


def noted(path: Path) -> tuple[int, int]:
    with image.opened(path) as descriptor:
        return note.read(descriptor, image.read_superblock(path))


def note_behind(path: Path, start: int, end: int) -> None:
    superblock = image.read_superblock(path)
    with path.open("r+b") as file:
        note.write(file.fileno(), superblock, start, end)


@pytest.fixture
def noisy(workshop: Workshop, tmp_path: Path) -> Workshop:
    """A project of files of more than a block, which nobody reads in their order."""

    def recipe(tree: Path) -> Package:
        for name in "abcdefgh":
            path = tree / f"share/noise/{name}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(os.urandom(600_000))
        return Package(name="noise", version="1.0")

    workshop.environment("noise", channel=building.make_channel(tmp_path / "channel", recipe))
    workshop.run("build")
    return workshop


def profile(
    workshop: Workshop, script: str, *, status: int = 0
) -> subprocess.CompletedProcess[str]:
    return workshop.run(
        "profile", "--", "sh", "-c", f"cd {workshop.prefix}/share/noise; {script}", status=status
    )


def test_files_are_noted_in_the_order_of_their_first_reads(noisy: Workshop) -> None:
    done = profile(noisy, "cat f b f >/dev/null; cat g h | wc -c; exit 7", status=7)
    assert done.stdout == "1200000\n"
    assert f"{startup_file(noisy)}: " in done.stderr
    noise = [name for name in listed(noisy) if "noise" in name]
    assert noise == [f"share/noise/{name}" for name in "fbgh"]
    noisy.wait_until_clean()


def test_what_several_programs_read_adds_up(noisy: Workshop) -> None:
    profile(noisy, "cat f b >/dev/null")
    first = listed(noisy)
    profile(noisy, "cat b a f h >/dev/null")
    second = listed(noisy)
    assert second[: len(first)] == first
    assert [name for name in second if "noise" in name] == [f"share/noise/{n}" for n in "fbah"]
    noisy.run("profile", "--new", "--", "sh", "-c", 'cat "$CONDA_PREFIX/share/noise/g" >/dev/null')
    assert [name for name in listed(noisy) if "noise" in name] == ["share/noise/g"]
    noisy.wait_until_clean()


def test_a_list_has_no_more_than_a_build_takes(tmp_path: Path) -> None:
    many = listing.joined(["first"], [f"x{number}" for number in range(100_000)])
    assert many[:2] == ["first", "x0"]
    assert len(many) == 65_534
    long = listing.joined((), [f"{number}{'y' * 4000}" for number in range(2000)])
    (tmp_path / "list").write_text("".join(f"{name}\n" for name in long))
    assert listing.read(tmp_path / "list") == tuple(long)
    assert 900 < len(long) < 1000


def test_what_does_not_run_leaves_the_list(noisy: Workshop) -> None:
    profile(noisy, "cat a >/dev/null")
    before = listed(noisy)
    assert "did not run" in noisy.run("profile", "--", "no-such-program", status=127).stderr
    assert listed(noisy) == before
    noisy.wait_until_clean()


def test_what_fails_early_leaves_a_longer_list(noisy: Workshop) -> None:
    profile(noisy, "cat a b c >/dev/null")
    before = listed(noisy)
    words = profile(noisy, "cat d >/dev/null; exit 1", status=1).stderr
    assert "it failed (exit status 1) and read" in words
    assert f"the list of {len(before)} files stays as it is" in words
    assert listed(noisy) == before
    profile(noisy, "cat a b c d >/dev/null; exit 1", status=1)
    assert len(listed(noisy)) == len(before) + 1
    noisy.wait_until_clean()


def test_what_a_command_leaves_behind_costs_neither_list_nor_exit_status(noisy: Workshop) -> None:
    done = profile(
        noisy, "cat f >/dev/null; sleep 1000 >/dev/null 2>&1 & echo $!; exit 7", status=7
    )
    assert "is in use by sleep" in done.stderr
    assert "the mount stays until it ends" in done.stderr
    assert [name for name in listed(noisy) if "noise" in name] == ["share/noise/f"]
    assert noisy.is_mounted()
    os.kill(int(done.stdout), signal.SIGTERM)
    noisy.wait_until_clean()


def test_killed_it_leaves_nothing(noisy: Workshop, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    noisy.variables["TMPDIR"] = str(temporary)
    process = noisy.start("profile", "--", "sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 1000")
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    process.kill()
    process.wait()
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
    process.communicate()
    noisy.wait_until_clean()
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_what_is_watched(
    noisy: Workshop, tmp_path: Path, signum: signal.Signals
) -> None:
    """And leaves nothing: no program, no mount, no directory for temporary files."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    noisy.variables["TMPDIR"] = str(temporary)
    process = noisy.start("profile", "--", "sh", "-c", f"touch {tmp_path}/runs; exec sleep 1000")
    wait_for((tmp_path / "runs").exists)
    process.send_signal(signum)
    _, words = process.communicate()
    assert process.returncode == 128 + signum
    assert "Traceback" not in words
    assert list(temporary.iterdir()) == []
    noisy.wait_until_clean()


@pytest.mark.parametrize("how", [("--repack",), ("--force",), ("--force", "--no-overlap")])
def test_they_lie_next_to_each_other_afterwards(
    noisy: Workshop, tmp_path: Path, how: tuple[str, ...]
) -> None:
    before = building.picture(building.unpack(noisy.image, tmp_path / "before"))
    profile(noisy, "cat f b h >/dev/null")
    lock = noisy.lock_file.read_text()
    noisy.run("build", *how)
    names = [f"share/noise/{name}" for name in "fbhacdeg"]
    found = places(noisy, names)
    together = sorted(found[:3])
    assert together == found[:3]
    assert not any(together[0] < place < together[2] for place in found[3:])
    start, end = noted(noisy.image)
    assert start <= together[0] < together[2] < end
    assert end - start < 3 * 600_000 + 200_000
    manifest = image.read_manifest(noisy.image)
    assert manifest["startup"] == listed(noisy)
    after = building.picture(building.unpack(noisy.image, tmp_path / "after"))
    if how == ("--repack",):
        for seen in (before, after):
            del seen[".condainer/manifest.json"]
        assert after == before
        assert "-Xcompression-level 15 " in noisy.build_log.read_text()
        assert noisy.lock_file.read_text() == lock
    assert noisy.run("exec", "--", "sh", "-c", "echo runs").stdout == "runs\n"
    noisy.wait_until_clean()


def test_an_image_that_is_built_anew_meanwhile_stays(noisy: Workshop) -> None:
    """As on another node, which sees nothing of this one's locks."""
    before = noisy.image.read_bytes()
    noisy.run("build", "--force", variables={"SOURCE_DATE_EPOCH": "1000000000"})
    newer = noisy.image.read_bytes()
    assert newer != before
    noisy.image.write_bytes(before)
    with noisy.start("build", "--repack") as process:
        wait_for(lambda: compressing(noisy) or process.poll() is not None)
        part = noisy.image.with_suffix(".new")
        part.write_bytes(newer)
        part.replace(noisy.image)
        _, words = process.communicate()
    assert process.returncode == 1, words
    assert "was built again meanwhile" in words
    assert noisy.image.read_bytes() == newer
    assert noisy.left_over() == []


def test_an_image_in_use_cannot_be_watched(mounted: Workshop) -> None:
    with subprocess.Popen(
        [*CONDAINER, "exec", "--", "sleep", "60"], cwd=mounted.directory, env=mounted.variables
    ) as user:
        wait_for(lambda: mounted.run("status").stdout.count("sleep"))
        words = mounted.run("profile", "--", "true", status=1).stderr
        user.send_signal(signal.SIGTERM)
    assert "is already mounted, so nobody can tell which program reads a file" in words
    assert not startup_file(mounted).exists()


def test_there_is_nothing_to_repack(workshop: Workshop) -> None:
    assert "there is no image" in workshop.run("build", "--repack", status=1).stderr


def test_repacking_that_is_killed_leaves_the_image(noisy: Workshop) -> None:
    noisy.configure(compression="xz")
    before = noisy.image.read_bytes()
    build = noisy.start("build", "--repack")
    wait_for(lambda: building.parts(noisy))
    build.send_signal(signal.SIGINT)
    build.communicate()
    assert build.returncode == 128 + signal.SIGINT
    assert noisy.image.read_bytes() == before
    assert noisy.left_over() == []
    assert building.parts(noisy) == []


def test_a_list_that_somebody_wrote(tmp_path: Path) -> None:
    path = tmp_path / "list"
    assert listing.read(path) == ()
    path.write_text("# words\n\nb\na b\nb\n../../etc/passwd\n")
    names = listing.read(path)
    assert names == ("b", "a b")
    (tmp_path / "b").touch()
    (tmp_path / "a b").touch()
    order = listing.write_order(names, tmp_path, tmp_path)
    assert order is not None
    assert order.read_text() == f"{tmp_path}/b 32767\n"


def test_what_is_noted_behind_an_image_is_checked(noisy: Workshop) -> None:
    data = noisy.image.read_bytes()
    assert noted(noisy.image) == (0, 0)
    note_behind(noisy.image, 96, 1000)
    assert noted(noisy.image) == (96, 1000)
    assert noisy.image.read_bytes()[: len(data)] == data
    note_behind(noisy.image, 96, 1 << 40)
    assert noted(noisy.image) == (0, 0)
    assert json.loads(noisy.run("status", "--json").stdout)["image"]["exists"]
    noisy.run("exec", "--", "true")
    noisy.wait_until_clean()
