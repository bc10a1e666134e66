"""How an image is compressed: what the project asks for, and what mksquashfs can do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from condainer.errors import BuildError
from condainer.pipeline import squash, tree
from condainer.project import image
from condainer.project.values import COMPRESSORS
from condainer.system import tools
from tests import building

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import Workshop


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
