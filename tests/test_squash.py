"""How an image is compressed: what the project asks for, and what mksquashfs can do."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from condainer.errors import BuildError, ToolError
from condainer.pipeline import squash, tree
from condainer.project import image
from condainer.project.config import Config
from condainer.project.values import COMPRESSORS
from condainer.system import tools
from tests import building

if TYPE_CHECKING:
    from tests.support import Workshop

CONFIG = Config(uuid=str(uuid.uuid4()))
LEVELS = {"zstd": 7}
MKSQUASHFS = tools.Mksquashfs(Path("mksquashfs"), (4, 5), ("gzip", "lz4", "xz", "zstd"))


def configured(**keys: object) -> Config:
    return dataclasses.replace(CONFIG, **keys)  # type: ignore[arg-type]


def test_zstd_is_taken_where_nothing_else_is_asked_for() -> None:
    chosen = squash.choose_compression(CONFIG, MKSQUASHFS, LEVELS)
    assert chosen.arguments == ["-comp", "zstd", "-b", "262144", "-Xcompression-level", "7"]


def test_next_best_is_taken_where_there_is_no_zstd() -> None:
    older = dataclasses.replace(MKSQUASHFS, compressors=("gzip", "lz4"))
    chosen = squash.choose_compression(configured(compression_level=12), older, LEVELS)
    assert (chosen.algorithm, chosen.level) == ("gzip", None)


def test_algorithm_that_mksquashfs_lacks_is_refused() -> None:
    with pytest.raises(ToolError, match="cannot compress with lzo"):
        squash.choose_compression(configured(compression="lzo"), MKSQUASHFS, LEVELS)


@pytest.mark.parametrize(
    "algorithm", [name for name in COMPRESSORS if name in tools.find_mksquashfs().compressors]
)
def test_project_chooses_algorithm_and_block_size(
    workshop: Workshop, hard_channel: Path, tmp_path: Path, algorithm: str
) -> None:
    workshop.configure(compression=algorithm, block_size="64K")
    workshop.environment("hard-text", channel=hard_channel)
    workshop.run("build", "-q")
    superblock = image.read_superblock(workshop.image)
    assert (superblock.compression, superblock.block_size) == (algorithm, 65536)
    content = building.unpack(workshop.image, tmp_path / "tree")
    assert (content / "share/hard-text/version.txt").read_text() == "2.0\n"


def test_level_is_passed_on(workshop: Workshop, hard_channel: Path) -> None:
    workshop.environment("python", channel=hard_channel)
    sizes = []
    for level in (1, 9):
        workshop.configure(compression="gzip", compression_level=level)
        workshop.run("build", "--force", "-q")
        sizes.append(workshop.image.stat().st_size)
    assert sizes[1] < 0.95 * sizes[0]


def test_image_that_holds_something_else_is_refused(workshop: Workshop, hard_channel: Path) -> None:
    workshop.environment("hard-text", channel=hard_channel)
    workshop.run("build", "-q")
    inodes = image.read_superblock(workshop.image).inodes
    squash.verify(workshop.image, tree.Tree(inodes, inodes, 0))
    with pytest.raises(BuildError, match=f"holds {inodes} inodes instead of {inodes + 1}"):
        squash.verify(workshop.image, tree.Tree(inodes + 1, inodes + 1, 0))


def test_truncated_image_is_refused(workshop: Workshop, hard_channel: Path) -> None:
    workshop.environment("hard-text", channel=hard_channel)
    workshop.run("build", "-q")
    inodes = image.read_superblock(workshop.image).inodes
    shorter = workshop.directory / "shorter"
    shorter.write_bytes(workshop.image.read_bytes()[:-4096])
    with pytest.raises(BuildError, match="truncated"):
        squash.verify(shorter, tree.Tree(inodes, inodes, 0))


def test_hard_links_are_counted_once(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "directory/same").hardlink_to(tmp_path / "file")
    (tmp_path / "link").symlink_to("file")
    assert tree.survey(tmp_path) == tree.Tree(entries=5, inodes=4, bytes=5)


def test_hard_links_of_any_kind_are_counted_as_in_an_image(tmp_path: Path) -> None:
    top = tmp_path / "tree"
    (top / ".condainer").mkdir(parents=True)
    (top / ".condainer/manifest.json").write_text("{}")
    (top / "file").write_bytes(b"12345")
    (top / "link").symlink_to("file")
    os.mkfifo(top / "pipe")
    for name in ("file", "link", "pipe"):
        os.link(top / name, top / ".condainer" / name, follow_symlinks=False)
    counted = tree.survey(top)
    assert counted == tree.Tree(entries=9, inodes=6, bytes=7, links_again=1)
    for name in ("as new", "when its links have been read"):
        command = ["mksquashfs", str(top), str(tmp_path / name), "-quiet", "-no-progress"]
        subprocess.run(command, check=True)
        squash.verify(tmp_path / name, counted)


def test_deep_directories_are_counted(tmp_path: Path) -> None:
    with building.deep_directories(tmp_path, 1500):
        assert tree.survey(tmp_path) == tree.Tree(entries=1501, inodes=1501, bytes=0)


def test_path_that_is_too_long_for_an_image_is_named(tmp_path: Path) -> None:
    with (
        building.deep_directories(tmp_path, 2000, "directory"),
        pytest.raises(BuildError, match=r"4,095 bytes; it begins with directory/directory/.*…$"),
    ):
        tree.survey(tmp_path)
