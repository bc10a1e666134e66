"""What the environment consists of that everything is measured on."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

from benchmarks import contenders

if TYPE_CHECKING:
    from benchmarks.places import Place
    from benchmarks.samples import Bench


def describe(bench: Bench) -> dict[str, int]:
    """Of the large environment, or of the small one, or nothing where neither was needed."""
    for name in ("place", "small"):
        place = bench.__dict__.get(name)  # looked up, lest it be built now
        if place is not None:
            return _describe(place)
    return {}


def _describe(place: Place) -> dict[str, int]:
    command = [sys.executable, "-m", "condainer", "-d", str(place.project), "status", "--json"]
    image = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["image"]
    found = {name: image[name] for name in ("packages", "files")}
    found["image bytes"] = image["bytes"]
    tree = contenders.where(place)
    if tree.exists():  # some suite has needed it
        files = [path for path in tree.rglob("*") if path.is_file() and not path.is_symlink()]
        found["bytes"] = sum(path.stat().st_size for path in files)
    return found
