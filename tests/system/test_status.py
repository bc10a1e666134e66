"""`status`: what it tells people and scripts, whatever state things are in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING

import pytest

from tests import support

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import Workshop


def test_without_an_image(workshop: Workshop) -> None:
    found = json.loads(workshop.run("status", "--json").stdout)
    assert found == {
        "project": str(workshop.directory),
        "uuid": workshop.uuid,
        "mountpoint": str(workshop.prefix),
        "image": {"path": str(workshop.image), "exists": False},
        "mount": {"state": "not mounted"},
    }
    told = workshop.run("status").stdout
    assert "none yet" in told
    assert "condainer build" in told
    assert workshop.left_over() == []


def test_of_a_built_project(built: Workshop) -> None:
    image = json.loads(built.run("status", "--json").stdout)["image"]
    assert image["exists"]
    assert image["bytes"] == built.image.stat().st_size
    assert image["name"] == "test"
    assert image["packages"] == 4
    assert "problem" not in image
    told = built.run("status").stdout
    assert "4 packages, zstd" in told
    assert "as 'test'" in told


def test_of_a_damaged_image(built: Workshop, tmp_path: Path) -> None:
    copy = built.copy(tmp_path / "copy")
    os.truncate(copy.image, 5000)
    found = json.loads(copy.run("status", "--json").stdout)
    assert "is truncated" in found["image"]["problem"]
    assert "problem     the image" in copy.run("status").stdout


def test_of_an_image_that_is_a_dangling_link(workshop: Workshop) -> None:
    workshop.image.symlink_to("nowhere")
    found = json.loads(workshop.run("status", "--json").stdout)
    assert "No such file" in found["image"]["problem"]
    workshop.run("status")


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ({"name": "\x1b[2Jx\r\x9b\ud800 \udc9b"}, r"\x1b[2Jx\r\x9b\ud800 \udc9b"),
        ({"name": "x\nmounted     no\u2028\x85"}, r"x\nmounted     no\u2028\x85'"),
        ({"name": "\u202ex\u2066\u200b\u061c\ufeff"}, r"'\u202ex\u2066\u200b\u061c\ufeff'"),
        ({"built": "\nproblem", "name": "x\ty"}, r"built       \nproblem as 'x\ty'"),
        ({"name": "x", "built": "yesterday\x07"}, r"built       yesterday\x07 as 'x'"),
        ({"name": "x", "built": "0001-01-01T00:00:00+23:59"}, "built       0001-01-01"),
        ({"packages": "many"}, "problem     the manifest of"),
        ({"tools": {"x": {}}}, "problem     the manifest of"),
    ],
)
def test_of_an_image_that_says_odd_things(
    workshop: Workshop, tmp_path: Path, manifest: dict[str, object], words: str
) -> None:
    (tmp_path / "tree" / ".condainer").mkdir(parents=True)
    text = json.dumps({"built": "2024-01-01T00:00:00+00:00", **manifest})
    (tmp_path / "tree" / ".condainer" / "manifest.json").write_text(text)
    subprocess.run(
        ["mksquashfs", tmp_path / "tree", workshop.image], check=True, capture_output=True
    )
    assert words in workshop.run("status").stdout
    assert json.loads(workshop.run("status", "--json").stdout)["image"]["exists"]


def test_of_a_mount(mounted: Workshop) -> None:
    told = mounted.run("status").stdout
    assert "mounted     with squashfuse_ll, stays until 'condainer umount'" in told
    assert "used by     nobody" in told


def test_of_a_mount_of_another_image_with_a_pipe_in_the_place_of_the_manifest(
    workshop: Workshop, tmp_path: Path
) -> None:
    (tmp_path / "tree" / ".condainer").mkdir(parents=True)
    os.mkfifo(tmp_path / "tree" / ".condainer" / "manifest.json")
    subprocess.run(
        ["mksquashfs", tmp_path / "tree", workshop.image], check=True, capture_output=True
    )
    workshop.run("mount")
    assert "is no file" in json.loads(workshop.run("status", "--json").stdout)["image"]["problem"]
    workshop.run("umount")


def test_names_who_uses_the_mount(mounted: Workshop) -> None:
    with mounted.start("exec", "--", "cat", stdin=-1) as user:
        support.wait_for(lambda: f"used by     cat ({user.pid})" in mounted.run("status").stdout)
        user.communicate()


def test_a_program_cannot_forge_a_line_with_its_name(mounted: Workshop) -> None:
    code = "open('/proc/self/comm', 'w').write('x\\nimage  \\x1b'); input()"
    with mounted.start("exec", "--", sys.executable, "-c", code, stdin=-1) as user:
        words = rf"used by     x\nimage  \x1b ({user.pid})"
        support.wait_for(lambda: words in mounted.run("status").stdout)
        error = mounted.run("umount", status=1).stderr
        assert rf"in use by x\nimage  \x1b ({user.pid})" in error
        user.communicate("\n")


def test_of_a_copy_whose_mountpoint_shows_the_other_image(
    mounted: Workshop, tmp_path: Path, hard_channel: Path
) -> None:
    copy = mounted.copy(tmp_path / "copy")
    words = "problem     the mounted image is not this one"
    assert words not in copy.run("status").stdout  # it holds the same
    copy.configure(uuid=(own := str(uuid.uuid4())))
    copy.environment("hard-text", channel=hard_channel)
    copy.run("build", "-q")
    (copy.directory / f"{own}.squashfs").rename(copy.image)
    copy.configure()
    assert words in copy.run("status").stdout
    assert "problem" not in json.loads(mounted.run("status", "--json").stdout)["mount"]


def test_of_a_taken_mountpoint_is_not_mounted(workshop: Workshop) -> None:
    workshop.prefix.mkdir()
    (workshop.prefix / "file").touch()
    assert json.loads(workshop.run("status", "--json").stdout)["mount"]["state"] == "not mounted"
    (workshop.prefix / "file").unlink()
    workshop.prefix.rmdir()


def test_changes_nothing(ready: Workshop) -> None:
    before = sorted(ready.directory.iterdir())
    ready.run("status")
    assert ready.left_over() == []
    assert sorted(ready.directory.iterdir()) == before
