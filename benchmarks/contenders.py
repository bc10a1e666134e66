"""Who serves an environment at its prefix: a directory, the kernel, and file systems in user space.

How long what is done with it takes is the business of `suites`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from condainer.system import mounttable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.places import Place

DIRECTORY, KERNEL, EXTRACT = "directory", "kernel", "extract"
DAEMONS = {
    "squashfuse_ll": ("squashfuse_ll", "-f"),
    "squashfuse": ("squashfuse", "-f"),
    "python": (sys.executable, "-m", "condainer.fuse", "-f"),
    "fusepy": (sys.executable, "-m", "condainer.fuse.portable", "-f"),
}
"""Serve an image until they are unmounted. The last is made of two libraries as they are: it shows
what the reader and the protocol of `python` gain."""
ALL = (DIRECTORY, KERNEL, *DAEMONS, EXTRACT)

_TICK = os.sysconf("SC_CLK_TCK")
_POLL = 0.002
_PATIENCE = 60.0


@dataclass(frozen=True)
class Served:
    """An environment that is there.

    Attributes:
        prefix: where.
        start: seconds until it was.
        daemon: what serves it; None where no program does.
    """

    prefix: Path
    start: float
    daemon: subprocess.Popen[bytes] | None = None

    def cpu(self) -> float:
        """Seconds of processors that the daemon has used."""
        if self.daemon is None:
            return 0.0
        fields = Path(f"/proc/{self.daemon.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICK

    def memory(self) -> int:
        """The most bytes of memory that the daemon has had."""
        if self.daemon is None:
            return 0
        status = Path(f"/proc/{self.daemon.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024


def why_not(name: str) -> str:
    """Why a contender cannot take part here; an empty text where it can."""
    if name == KERNEL and os.getuid() != 0:
        return "only root can mount with the kernel"
    if name in DAEMONS and shutil.which(DAEMONS[name][0]) is None:
        return f"no {DAEMONS[name][0]} on PATH"
    if name in DAEMONS and not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse cannot be opened"
    return ""


@contextmanager
def served(name: str, place: Place) -> Iterator[Served]:
    """Have an environment at its prefix.

    Args:
        name: of the contender.
        place: the project; built.
    """
    if name == EXTRACT:
        yield from _extracted(place)
    elif name == DIRECTORY:
        yield from _directory(place)
    else:
        with mounted(name, place.image, place.prefix) as found:
            yield found


def _extracted(place: Place) -> Iterator[Served]:
    start = time.perf_counter()
    place.condainer("mount", "--backend", "extract")
    try:
        yield Served(place.prefix, time.perf_counter() - start)
    finally:
        place.condainer("umount")


def _directory(place: Place) -> Iterator[Served]:
    """The same files as they would lie there without an image: moved there, and back."""
    tree = directory_of(place)
    start = time.perf_counter()
    tree.rename(place.prefix)
    try:
        yield Served(place.prefix, time.perf_counter() - start)
    finally:
        place.prefix.rename(tree)


def source(name: str, place: Place) -> Path:
    """What a contender reads: the image, or the directory that is at the prefix meanwhile."""
    return place.prefix if name in {DIRECTORY, EXTRACT} else place.image


def where(place: Place) -> Path:
    """Where `directory_of` puts it."""
    return place.prefix.with_name("directory")


def directory_of(place: Place) -> Path:
    """A project's environment as an ordinary directory; made on first use."""
    tree = where(place)
    if not tree.exists():
        part = tree.with_name("directory.part")
        with served("python", place) as found:
            shutil.copytree(found.prefix, part, symlinks=True)
        part.rename(tree)
    return tree


@contextmanager
def mounted(name: str, image: Path, mountpoint: Path) -> Iterator[Served]:
    """Mount an image with the kernel or one of `DAEMONS`.

    Raises:
        RuntimeError: where the daemon ends, or the mount does not come.
    """
    mountpoint.mkdir(exist_ok=True)
    daemon: subprocess.Popen[bytes] | None = None
    start = time.perf_counter()
    try:
        if name == KERNEL:
            subprocess.run(["mount", "-o", "loop,ro", str(image), str(mountpoint)], check=True)
        else:
            # In a session of its own: an interrupt at the terminal is for us, who then unmount.
            words = [*DAEMONS[name], str(image), str(mountpoint)]
            daemon = subprocess.Popen(words, start_new_session=True, stderr=subprocess.DEVNULL)
            _wait_for(mountpoint, daemon)
        yield Served(mountpoint, time.perf_counter() - start, daemon)
    finally:
        _unmount(mountpoint, daemon)


def clear(directory: Path) -> None:
    """Unmount what is still mounted below a directory, used or not, before it is removed."""
    command = ["umount", "-l"] if os.getuid() == 0 else ["fusermount3", "-uz"]
    for mount in reversed(mounttable.mounts_at_or_below(directory)):
        subprocess.run([*command, str(mount.mountpoint)], check=False)


def _wait_for(mountpoint: Path, daemon: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while mounttable.mount_at(mountpoint) is None:
        if daemon.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{daemon.args!r} did not mount (status {daemon.poll()})")
        time.sleep(_POLL)
    next(mountpoint.iterdir())


def _unmount(mountpoint: Path, daemon: subprocess.Popen[bytes] | None) -> None:
    """Unmount, if need be again: what has just ended may still be counted as a user."""
    command = ["umount"] if os.getuid() == 0 else ["fusermount3", "-u"]
    deadline = time.monotonic() + _PATIENCE
    # Asks the table, and not the mountpoint: where a daemon was killed, nothing answers there.
    while mounttable.mount_at(mountpoint) is not None:
        done = subprocess.run([*command, str(mountpoint)], check=False, capture_output=True)
        if done.returncode != 0 and time.monotonic() > deadline:
            raise RuntimeError(done.stderr.decode(errors="replace"))
        time.sleep(_POLL if done.returncode else 0)
    if daemon is not None:
        daemon.terminate()  # for one that has not mounted
        daemon.wait()
    mountpoint.rmdir()
