"""Many processes that do the same at once, started by one that does as little as it can.

    python benchmarks/crowd.py start COUNT PROGRAM [ARGUMENT...]
    python benchmarks/crowd.py walk COUNT TOP < NAMES

`start` runs a program so many times; `{rank}` in its arguments is a number from 0. `walk` has so
many processes stat, open, read (4 KiB) and close files below a directory, each its share of the
names. Both print as JSON when each was done (`start`), or how long each single operation took at
the middle and at the tail (`walk`). What it means is the business of `suites`.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from typing import NoReturn

_TIME = struct.Struct("<d")
_PIECE = 4096


def start(count: int, argv: list[str]) -> dict[str, list[float]]:
    """Start a program so many times and wait for all.

    Returns:
        seconds until each had ended, from the start of the first.

    Raises:
        SystemExit: where one fails.
    """
    null = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    begun = time.perf_counter()
    for rank in range(count):
        words = [word.replace("{rank}", str(rank)) for word in argv]
        os.posix_spawnp(words[0], words, os.environ, file_actions=[null])
    seconds, worst = [], 0
    for _ in range(count):
        worst = max(worst, abs(os.waitstatus_to_exitcode(os.wait()[1])))
        seconds.append(time.perf_counter() - begun)
    if worst:
        sys.exit(worst)
    return {"seconds": seconds}


def walk(count: int, top: str, names: list[str]) -> dict[str, float]:
    """Have so many processes go through files, and wait for all.

    Returns:
        seconds until the last had ended, how many operations that were, and the median and the
        99th percentile of what one took.
    """
    paths = [f"{top}/{name}" for name in names]
    gate, opener = os.pipe()
    results = [_fork(paths[number::count], gate, opener) for number in range(count)]
    os.close(gate)
    begun = time.perf_counter()
    os.close(opener)
    texts = [_read_all(result) for result in results]
    if any(os.waitstatus_to_exitcode(os.wait()[1]) for _ in results):
        sys.exit(1)
    ends = [_TIME.unpack_from(text)[0] for text in texts]
    took = sorted(t for text in texts for (t,) in _TIME.iter_unpack(text[_TIME.size :]))
    return {
        "wall_s": max(ends) - begun,
        "operations": len(took),
        "p50_s": took[len(took) // 2],
        "p99_s": took[len(took) * 99 // 100],
    }


def _fork(paths: list[str], gate: int, opener: int) -> int:
    """Start a process that goes through some files when the gate opens; gives its results."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            os.close(opener)
            os.close(reader)
            os.read(gate, 1)
            _go(paths, writer)
        finally:
            os._exit(1)
    os.close(writer)
    return reader


def _go(paths: list[str], writer: int) -> NoReturn:
    """Time each operation on some files; tells when it was done, and what each took."""
    took: list[float] = []
    clock = time.perf_counter
    for path in paths:
        before = clock()
        os.stat(path)  # noqa: PTH116  (nothing but the call itself)
        known = clock()
        descriptor = os.open(path, os.O_RDONLY)
        opened = clock()
        os.read(descriptor, _PIECE)
        read = clock()
        os.close(descriptor)
        took += (known - before, opened - known, read - opened, clock() - read)
    with os.fdopen(writer, "wb") as file:
        file.write(_TIME.pack(clock()) + b"".join(map(_TIME.pack, took)))
    os._exit(0)


def _read_all(descriptor: int) -> bytes:
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def main(mode: str, count: str, *words: str) -> None:
    """Do it, and print what came of it."""
    if mode == "start":
        found: object = start(int(count), list(words))
    else:
        found = walk(int(count), words[0], sys.stdin.read().splitlines())
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
