"""How one makes an image without condainer: `micromamba create`, and what compresses its prefix."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from benchmarks.measure import program
from tests import standin

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.places import Place

STAND_IN = "not on PATH; the stand-in of the tests, by rattler, creates"


def micromamba(directory: Path) -> tuple[str, bool]:
    """The executable, and whether it is the real one.

    Args:
        directory: where to put what stands in for it.
    """
    found = shutil.which("micromamba")
    return found or str(standin.write_program(directory / "stand-in")), found is not None


def make(executable: str, compress: Callable[[Path, Path], None], place: Place) -> Path:
    """Install what a place is to have, compress it, and give the image."""
    prefix = place.prefix.with_name("by-hand")
    image = place.directory / "by-hand.squashfs"
    create = [executable, "create", "-y", "-r", str(place.home / "mamba"), "-p", str(prefix)]
    channel = ["-c", f"file://{place.channel}", "--override-channels"]
    try:
        program([*create, *channel, *place.specs], {**os.environ, "HOME": str(place.home)})
        compress(prefix, image)
    finally:
        shutil.rmtree(prefix, ignore_errors=True)
    return image


def plain(prefix: Path, image: Path) -> None:
    """Compress with mksquashfs as it comes: gzip."""
    program(["mksquashfs", str(prefix), str(image), "-noappend", "-no-progress", "-quiet"])
