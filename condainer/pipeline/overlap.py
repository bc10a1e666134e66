"""Sends an environment into an image while it is still being installed, and proves that it fits.

A package is sent as soon as it is unpacked. What scripts, pip and the compiler add comes last.
Before the end, all that was sent is compared with the prefix: if something has changed, the image
is of no use, and is made again from the finished environment. `squash` runs mksquashfs, and
`archive` knows the format.

One thread feeds an `Overlap`. Installers tell it from any thread which packages are ready.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import threading
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from condainer.pipeline import bytecode, tree
from condainer.pipeline.archive import Archive, ChangedError, mode_of
from condainer.pipeline.workplace import Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from condainer.pipeline.epoch import Epoch
    from condainer.pipeline.packages import Package
    from condainer.pipeline.workplace import Listing

_CHUNK = 1 << 20
_STEP = 1 << 20
"""Bytes between two reports of progress."""


class _Sent(NamedTuple):
    """A file as it was when it was sent.

    Attributes:
        essence: what `lstat` says about it and must stay the same.
        changed: its ctime, in nanoseconds.
        sha256: of its content, as its package lists it; empty if not known.
        is_copied: whether the file in the prefix is a copy.
    """

    essence: tuple[int, ...]
    changed: int
    sha256: str
    is_copied: bool


class Overlap:
    """Streams an environment into an image, package by package.

    Args:
        prefix: the environment.
        packages: that are being installed.
        epoch: the times that the image records. If it is fixed, packages are sent in a fixed order,
            small ones first; otherwise as they become ready.
        startup: files that are sent last and side by side, in this order.
        descriptor: of the pipe that mksquashfs reads; closed at the end.
        on_progress: takes the bytes that have been sent.
        on_complete: called when all packages are installed.
    """

    def __init__(
        self,
        prefix: Path,
        packages: Sequence[Package],
        epoch: Epoch,
        startup: Sequence[str],
        descriptor: int,
        on_progress: Callable[[int], None],
        on_complete: Callable[[], None] = lambda: None,
    ) -> None:
        self._prefix = prefix
        self._epoch = epoch
        self._startup = {name: place for place, name in enumerate(startup)}
        self._archive = Archive(descriptor)
        self._on_progress = on_progress
        self._on_complete = on_complete
        self._told = 0
        by_size = sorted(packages, key=lambda package: (package.size, package.name))
        self._waiting = [package.name for package in by_size]
        self._ready: dict[str, Listing] = {}
        self._changed = threading.Condition()
        self._is_complete = self._is_stopped = False
        self._installed = 0
        self._sent: dict[str, _Sent] = {}
        self._first: dict[tuple[int, int], str] = {}
        self._owners: Counter[str] = Counter()
        self._directories: set[str] = set()
        self._there: dict[str, os.stat_result] = {}
        self._compared: set[str] = set()
        self._count = tree.Count()

    def ready(self, package: str, listing: Listing) -> None:
        """Take note that a package is unpacked; from any thread.

        Args:
            package: its name.
            listing: lists its final files.
        """
        with self._changed:
            self._ready[package] = listing
            self._changed.notify()

    def complete(self, *, has_run_scripts: bool) -> None:
        """Take note that all packages are installed.

        Args:
            has_run_scripts: whether anything but the installer may have written into the prefix.
        """
        if not has_run_scripts:
            self._installed = _now(self._prefix)
        with self._changed:
            self._is_complete = True
            self._changed.notify()
        self._on_complete()

    def stop(self) -> None:
        """Send no more. The reader finds that the archive is incomplete."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify()

    def feed(self) -> None:
        """Send packages until all are sent; blocks.

        Raises:
            ChangedError: If a file changes meanwhile.
            BrokenPipeError: If mksquashfs has ended.
        """
        while (listing := self._next()) is not None:
            for final in sorted(listing()):
                if self._is_stopped:
                    return
                self._owners[final.name] += 1
                if final.name not in self._sent and final.name not in self._startup:
                    self._send_final(final)

    def look(self) -> None:
        """Compare all that is at the prefix with what was sent; `feed` may still run.

        Nothing may change the prefix any more.

        Raises:
            ChangedError: If something has changed after it was sent.
        """
        start = len(str(self._prefix)) + 1
        for entry in tree.walk(self._prefix):
            if self._is_stopped:
                raise ChangedError(self._prefix, "is not compared any more")
            name, status = entry.path[start:], entry.stat(follow_symlinks=False)
            self._count.add(status)
            if name in self._sent:
                self._compare(name, status)
            else:
                self._there[name] = status

    def finish(self) -> tree.Tree:
        """Compare what was sent since `look`, and send the rest; blocks.

        Returns:
            The size of what the image holds.

        Raises:
            ChangedError: If something has changed after it was sent.
            BrokenPipeError: If mksquashfs has ended.
        """
        for name in sorted(self._sent.keys() - self._compared):
            if name not in self._there:
                raise ChangedError(name)
            self._compare(name, self._there.pop(name))
        # If two packages own a path, the installer decides, maybe late, which file gets it.
        for name in sorted(
            self._sent.keys() & {n for n, count in self._owners.items() if count > 1}
        ):
            self._compare_content(name)
        last = len(self._startup)
        for name in sorted(self._there, key=lambda name: (self._startup.get(name, last), name)):
            self._send(Final(name, f"{self._prefix}/{name}", ""), self._there[name])
        self._archive.end()
        return self._count.tree

    def close(self) -> None:
        """Close the pipe."""
        self._archive.close()

    def _next(self) -> Listing | None:
        """Wait for the package whose turn it is, and return its files; None at the end."""
        with self._changed:
            while not self._is_stopped:
                candidates = self._waiting[:1] if self._epoch.is_fixed else list(self._ready)
                name = next((name for name in candidates if name in self._ready), None)
                if name is not None:
                    self._waiting.remove(name)
                    return self._ready.pop(name)
                if not self._is_complete:
                    self._changed.wait()
                elif self._waiting and self._ready:
                    del self._waiting[0]  # nobody has announced it
                else:
                    return None
        return None

    def _send_final(self, final: Final) -> None:
        try:
            if final.name.endswith(".pyc") and not bytecode.stays(final.path, self._epoch.latest):
                return
            status = os.lstat(final.path)
        except (OSError, ValueError):
            return  # it has gone, or its name is not a valid one
        self._check_place(final.name)
        kind = stat.S_IFMT(status.st_mode)
        is_known = kind == stat.S_IFREG and final.sha256  # so a copy can be compared
        if is_known or (kind in {stat.S_IFREG, stat.S_IFLNK} and not final.is_copied):
            self._send(final, status)

    def _check_place(self, name: str) -> None:
        """Check that no path is a file and a directory: mksquashfs would drop one of them."""
        why = "is a file of one package and a directory of another"
        if name in self._directories:
            raise ChangedError(name, why)
        above = name.rpartition("/")[0]
        while above and above not in self._directories:
            if above in self._sent:
                raise ChangedError(above, why)
            self._directories.add(above)
            above = above.rpartition("/")[0]

    def _send(self, final: Final, status: os.stat_result) -> None:
        stamp = self._epoch.of(status)
        inode = status.st_dev, status.st_ino
        first = None if final.is_copied else self._first.get(inode)
        if first is not None:
            self._archive.link(final.name, first, stamp)
        else:
            self._archive.add(final.name, final.path, status, stamp)
            # Even if it is the only link now: others may be made later.
            if not (final.is_copied or stat.S_ISDIR(status.st_mode)):
                self._first[inode] = final.name
        essence = _essence(status, is_copied=final.is_copied)
        self._sent[final.name] = _Sent(essence, status.st_ctime_ns, final.sha256, final.is_copied)
        if self._archive.bytes >= self._told + _STEP:
            self._told = self._archive.bytes
            self._on_progress(self._told)

    def _compare(self, name: str, now: os.stat_result) -> None:
        self._compared.add(name)
        sent = self._sent[name]
        if _essence(now, is_copied=sent.is_copied) != sent.essence:
            raise ChangedError(name)
        if sent.is_copied and now.st_nlink > 1:
            raise ChangedError(name)
        # Linking a file changes its ctime, too, and reading all files again would take long. So a
        # file with a ctime before the end of linking counts as unchanged. A copy does not: it may
        # be the file of another package.
        is_linked_only = now.st_ctime_ns < self._installed and not sent.is_copied
        has_changed = now.st_ctime_ns != sent.changed and not is_linked_only
        if has_changed and stat.S_ISREG(now.st_mode):
            self._compare_content(name)

    def _compare_content(self, name: str) -> None:
        """Compare the content of a file with what was sent."""
        path = self._prefix / name
        # Of a symbolic link, the inode has been compared; its target may be anywhere.
        if not path.is_symlink() and _sha256(path) != self._sent[name].sha256:
            raise ChangedError(name)


def _now(directory: Path) -> int:
    """The time in nanoseconds, by the clock of a file system; 0 if nothing can be written there."""
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            return os.fstat(file.fileno()).st_ctime_ns
    except OSError:
        return 0


def _essence(status: os.stat_result, *, is_copied: bool) -> tuple[int, ...]:
    """What tells that a file is still the same; its ctime is compared separately."""
    mode = stat.S_IFMT(status.st_mode) | mode_of(status)
    if is_copied:
        return mode, status.st_size, int(status[stat.ST_MTIME])
    return status.st_dev, status.st_ino, mode, status.st_size, status.st_mtime_ns


def _sha256(path: Path) -> str:
    """The checksum of a file."""
    try:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        with os.fdopen(os.open(path, flags), "rb") as file:
            digest = hashlib.sha256()
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError:
        return "unreadable"
    return digest.hexdigest()
