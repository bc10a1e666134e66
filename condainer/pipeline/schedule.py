"""Decides how many processors a build may keep busy, and which of several builds gets them.

One budget serves the whole command: downloads, pip, compilers and mksquashfs take processors from
it before they start. Some programs run more threads than they were told to, so the process and its
children are also bound to that many processors.
"""

from __future__ import annotations

import contextlib
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MOST = 8
"""The most that the default takes, since builds run on shared login nodes."""


class Budget:
    """The processors of one command, shared by its builds.

    Args:
        processors: how many there are to share, at least 1.
    """

    def __init__(self, processors: int) -> None:
        self.processors = processors
        self._free = processors
        self._builds = 0
        self._changed = anyio.Condition()

    @contextlib.asynccontextmanager
    async def build(self) -> AsyncIterator[None]:
        """Count one more build that shares the budget, while this is open."""
        self._builds += 1
        try:
            yield
        finally:
            self._builds -= 1

    @property
    def share(self) -> int:
        """How many processors a build gets if it could use all of them."""
        return max(1, self.processors // max(1, self._builds))

    @property
    def is_enough(self) -> bool:
        """Whether there is a processor for each build."""
        return self._builds <= self.processors

    @contextlib.asynccontextmanager
    async def take(self, at_most: int | None = None) -> AsyncIterator[int]:
        """Wait for processors, hold them, and give them back.

        Args:
            at_most: how many can be used; None means this build's fair share.

        Yields:
            How many there are, at least 1.
        """
        async with self._changed:
            while not self._free:
                await self._changed.wait()
            taken = min(self._free, self.share, at_most or self.share)
            self._free -= taken
        try:
            yield taken
        finally:
            with anyio.CancelScope(shield=True):
                async with self._changed:
                    self._free += taken
                    self._changed.notify_all()


def default_jobs() -> int:
    """How many processors a build takes by default: what it may use, at most `MOST`."""
    return min(usable(), MOST)


def usable() -> int:
    """How many processors this process may use, by its affinity and its control group."""
    allowed = len(os.sched_getaffinity(0))
    try:
        membership = Path("/proc/self/cgroup").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:  # a container may have no /proc
        return allowed
    quota = cgroup_quota(membership, Path("/sys/fs/cgroup"))
    if quota is not None:
        allowed = min(allowed, max(1, int(quota)))
    return allowed


def cgroup_quota(membership: str, root: Path) -> float | None:
    """Find the processors that control groups allow: the least of this group and those above it.

    Args:
        membership: the text of /proc/self/cgroup, see cgroups(7).
        root: where the control groups are mounted.

    Returns:
        The number of processors; None if there is no limit.
    """
    quotas = []
    for line in membership.splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            tops = [root, root / "unified"]
            read = _quota_v2
        elif "cpu" in controllers.split(","):
            tops = [root / controllers, root / "cpu"]
            read = _quota_v1
        else:
            continue
        for top in tops:
            group = top / path.lstrip("/")
            while group.is_relative_to(top):
                quotas.append(read(group))
                group = group.parent
    known = [quota for quota in quotas if quota is not None]
    return min(known, default=None)


def bind_to(processors: int) -> None:
    """Let this process and its children run on a limited number of processors.

    They are chosen at random, so that several builds on a node do not choose the same.

    Args:
        processors: how many.
    """
    allowed = sorted(os.sched_getaffinity(0))
    if processors < len(allowed):
        with contextlib.suppress(OSError):  # forbidden in some containers; the budget still holds
            os.sched_setaffinity(0, random.sample(allowed, processors))


def _quota_v2(group: Path) -> float | None:
    """Read `cpu.max`: quota and period in microseconds, or `max`."""
    try:
        quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
        return int(quota) / int(period) if quota != "max" else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(group: Path) -> float | None:
    """Read `cpu.cfs_quota_us`, which is -1 if there is no limit."""
    try:
        quota = int((group / "cpu.cfs_quota_us").read_text(encoding="ascii"))
        period = int((group / "cpu.cfs_period_us").read_text(encoding="ascii"))
        return quota / period if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
