"""What programs see of an image: exactly what they see where the kernel has mounted it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests import images

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can have the kernel judge")

LAYOUTS = {
    **{name: ("-comp", name) for name in images.COMPRESSORS if name != "lzma"},
    "small blocks": ("-comp", "zstd", "-b", "4096"),
    "large blocks": ("-comp", "zstd", "-b", "1M"),
    "no fragments": ("-comp", "zstd", "-no-fragments"),
    "fragments for all": ("-comp", "gzip", "-always-use-fragments", "-b", "16384"),
    "no export table": ("-comp", "zstd", "-no-exports"),
    "nothing compressed": ("-noI", "-noD", "-noF", "-noX"),
    "no extended attributes": ("-comp", "lz4", "-no-xattrs"),
    "no holes": ("-comp", "lz4", "-no-sparse"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_everything_is_as_the_kernel_shows_it(
    collection: images.Collection, tmp_path: Path, layout: str
) -> None:
    image = collection.image("every_kind", *LAYOUTS[layout])
    with (
        images.loop_mounted(image, tmp_path / "kernel") as kernel,
        images.served(image, tmp_path / "fuse") as fuse,
    ):
        assert images.differences(kernel, fuse) == []
        assert images.totals(kernel) == images.totals(fuse)


def test_what_the_kernel_cannot_mount(collection: images.Collection, tmp_path: Path) -> None:
    """It has no lzma: an image of the same tree stands for what it would show."""
    image = collection.image("every_kind", "-comp", "lzma")
    known = collection.image("every_kind", *LAYOUTS["gzip"])
    with (
        images.loop_mounted(known, tmp_path / "kernel") as kernel,
        images.served(image, tmp_path / "fuse") as fuse,
    ):
        assert images.differences(kernel, fuse) == []


def test_a_file_of_more_than_4_gib(collection: images.Collection, tmp_path: Path) -> None:
    image = collection.huge()
    with (
        images.loop_mounted(image, tmp_path / "kernel") as kernel,
        images.served(image, tmp_path / "fuse") as fuse,
    ):
        assert images.differences(kernel, fuse) == []
        status = (fuse / "huge").stat()
        assert status.st_size > 1 << 32
        assert status.st_blocks * 512 < 8 << 20  # the others are holes
        for place in (0, (1 << 30) - 5, (1 << 32) - 20, (1 << 32) + 12_300):
            assert piece(fuse, place) == piece(kernel, place)
        assert b"across the line" in piece(fuse, (1 << 32) - 20)


def piece(mountpoint: Path, place: int) -> bytes:
    with (mountpoint / "huge").open("rb") as file:
        return os.pread(file.fileno(), 40, place)
