"""Starts a program N times at once, waits for all, and prints as JSON what came of it.

    python benchmarks/launcher.py COUNT MOUNTPOINT PROGRAM [ARGUMENT...]

One process that does as little as it can starts each of them, so that what is measured is theirs.
It runs in a mount namespace of the benchmark's own: a mount at the mountpoint, and a process in
that namespace, can only be theirs as well. The kernel says when the mount table changes.
"""

from __future__ import annotations

import json
import os
import select
import sys
import threading
import time
from collections import Counter
from pathlib import Path

_TABLE = "/proc/self/mountinfo"


class Watch:
    """Counts the mounts that appear at a mountpoint.

    Args:
        mountpoint: its path.
    """

    def __init__(self, mountpoint: str) -> None:
        self._mountpoint = mountpoint
        self._table = os.open(_TABLE, os.O_RDONLY)
        self._stop, self._stopper = os.pipe()
        self._there = self._read()
        self.appeared = 0
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _read(self) -> set[str]:
        with Path(_TABLE).open(encoding="utf-8", errors="replace") as lines:
            fields = [line.split(" ", 5) for line in lines]
        return {f"{line[0]} {line[2]}" for line in fields if line[4] == self._mountpoint}

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._table, select.POLLPRI)
        poll.register(self._stop, select.POLLIN)
        while self._stop not in dict(poll.poll()):
            now = self._read()
            self.appeared += len(now - self._there)
            self._there = now

    def end(self) -> int:
        """Stop, and give how many there were."""
        os.write(self._stopper, b".")
        self._thread.join()
        self.appeared += len(self._read() - self._there)
        return self.appeared


def launch(count: int, argv: list[str]) -> tuple[float, dict[str, int]]:
    """Start a program so many times and wait for all.

    Returns:
        the seconds it took, and how often there was each exit status.
    """
    null = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    start = time.perf_counter()
    for _ in range(count):
        os.posix_spawn(argv[0], argv, os.environ, file_actions=[null])
    statuses = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(count)]
    seconds = time.perf_counter() - start
    return seconds, {str(status): many for status, many in Counter(statuses).items()}


def processes() -> dict[str, int]:
    """The other processes in this mount namespace, by name."""
    ours = Path("/proc/self/ns/mnt").readlink()
    names: Counter[str] = Counter()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if (entry / "ns/mnt").readlink() == ours:
                    names[(entry / "comm").read_text(errors="replace").strip()] += 1
            except OSError:
                continue
    return dict(names)


def main() -> None:
    """Measure, and say what came of it."""
    count, mountpoint, *argv = sys.argv[1:]
    watch = Watch(mountpoint)
    seconds, statuses = launch(int(count), argv)
    mounts = watch.end()
    found = {"seconds": seconds, "statuses": statuses, "mounts": mounts, "processes": processes()}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
