"""What a cold import reads of an image, before and after `profile` and `build --repack`.

    python -m benchmarks.layout

Counted with strace from what squashfuse_ll reads, so it is the same each time. Reads that are less
than 128 KiB apart count as one.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import places
from benchmarks.filesystem import IMPORTS

_APART = 128 << 10
_READ = re.compile(r"pread64\(.*, (\d+), (\d+)\) += (\d+)$", re.MULTILINE)


def main() -> int:
    """Measure, and print a table; gives the exit status."""
    for program in ("strace", "squashfuse_ll"):
        if shutil.which(program) is None:
            sys.stderr.write(f"there is no {program} here\n")
            return 1
    with tempfile.TemporaryDirectory(prefix="cndb-") as name:
        place = places.make(Path(name))
        place.condainer("build")
        measure(place)  # programs keep things in the home directory, as a list of all fonts
        before = measure(place)
        place.condainer("profile", "--", "python", "-c", IMPORTS)
        place.condainer("build", "--repack")
        after = measure(place)
    sys.stdout.write(f"{'':8}{'MB read':>10}{'separate reads':>18}\n")
    for label, (size, reads) in (("before", before), ("after", after)):
        sys.stdout.write(f"{label:8}{size / 1e6:10.1f}{reads:18}\n")
    sys.stdout.write(f"{'ratio':8}{after[0] / before[0]:10.2f}{after[1] / before[1]:18.2f}\n")
    return 0


def measure(place: places.Place) -> tuple[int, int]:
    """The bytes of an image that are read at least once, and in how many pieces."""
    log, top = place.directory / "strace.log", place.prefix
    top.mkdir()
    command = ["strace", "-f", "-o", str(log), "-e", "trace=pread64", "squashfuse_ll", "-f"]
    with subprocess.Popen([*command, str(place.image), str(top)]) as daemon:
        while not top.is_mount():
            time.sleep(0.01)
        home = {"PATH": "/usr/bin:/bin", "HOME": str(place.home)}
        subprocess.run([str(top / "bin/python"), "-c", IMPORTS], env=home, check=True)
        subprocess.run(["umount", str(top)], check=True)
        daemon.wait()
    top.rmdir()
    return union(log.read_text())


def union(text: str) -> tuple[int, int]:
    """The bytes that reads cover together, and how many pieces they are in."""
    size = pieces = end = 0
    for place, count in sorted((int(m[2]), int(m[3])) for m in _READ.finditer(text)):
        pieces += not pieces or place > end + _APART
        size += max(0, place + count - max(place, end))
        end = max(end, place + count)
    return size, pieces


if __name__ == "__main__":
    sys.exit(main())
