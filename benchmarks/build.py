"""How long a build takes, against `micromamba create` and plain `mksquashfs` (its gzip).

    python -m benchmarks.build [--rounds N] [--micromamba PATH] [--warm]

Both start with empty package caches, unless --warm is given, and take packages from a local
channel. Where there is no micromamba the stand-in of the tests takes its place, and the report
says so.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import measure, places
from tests import standin

if TYPE_CHECKING:
    from collections.abc import Callable


def main() -> int:
    """Measure, and print a table; gives the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.build")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--micromamba", default=shutil.which("micromamba"))
    parser.add_argument("--warm", action="store_true", help="keep the package caches")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cndb-") as name:
        directory = Path(name)
        place = places.make(directory)
        micromamba = arguments.micromamba
        if not micromamba:
            micromamba = str(standin.write_micromamba(directory))
            sys.stderr.write("no micromamba here: the tests' stand-in takes its place\n")
        contenders = {
            "micromamba create + mksquashfs": lambda: _plain(place, micromamba),
            "condainer build, micromamba": lambda: _condainer(place, micromamba),
            "condainer build, rattler": lambda: _condainer(place, "rattler"),
        }
        if not arguments.warm:
            contenders = {name: _cold(place, work) for name, work in contenders.items()}
        results = measure.alternate(contenders, arguments.rounds)
    sys.stdout.write(measure.table(results, results[0]) + "\n")
    return 0


def _cold(place: places.Place, work: Callable[[], int]) -> Callable[[], int]:
    def run() -> int:
        shutil.rmtree(place.home)
        place.home.mkdir()
        return work()

    return run


def _condainer(place: places.Place, installer: str) -> int:
    place.condainer("build", "--force", "--installer", installer)
    return place.image.stat().st_size


def _plain(place: places.Place, micromamba: str) -> int:
    """What one would do by hand."""
    prefix = place.directory / "base" / "plain"
    image = place.directory / "plain.squashfs"
    environment = {**os.environ, "HOME": str(place.home)}
    subprocess.run(
        [
            *(micromamba, "create", "-y", "-r", str(place.home / "mamba"), "-p", str(prefix)),
            *("-c", f"file://{place.channel}", "--override-channels", *places.SPECS),
        ],
        check=True,
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    subprocess.run(
        ["mksquashfs", str(prefix), str(image), "-noappend", "-no-progress"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    shutil.rmtree(prefix)
    return image.stat().st_size


if __name__ == "__main__":
    sys.exit(main())
