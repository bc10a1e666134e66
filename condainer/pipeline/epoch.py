"""The time that an image tells of what is newer, where it is to be the same each time it is built.

That is SOURCE_DATE_EPOCH, or with --locked the time the lock file was made; mksquashfs and other
programs know that variable: https://reproducible-builds.org/specs/source-date-epoch/
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from condainer.errors import BuildError

VARIABLE = "SOURCE_DATE_EPOCH"
_LATEST = 0xFFFF_FFFF
"""Seconds since 1970 that an inode of SquashFS can tell."""


@dataclass(frozen=True)
class Epoch:
    """The latest time that an image tells.

    Attributes:
        stamp: in seconds; None where each file has its own time.
    """

    stamp: int | None = None

    @property
    def is_fixed(self) -> bool:
        """Whether the image is to be the same each time."""
        return self.stamp is not None

    @property
    def latest(self) -> int:
        """The latest time in seconds that a file of the image has."""
        return _LATEST if self.stamp is None else self.stamp

    def of(self, status: os.stat_result) -> int:
        """The time in seconds that the image tells of a file: that in its inode has 32 bits."""
        mtime = int(status[stat.ST_MTIME])
        return mtime & _LATEST if self.stamp is None else min(max(mtime, 0), self.stamp)


def of_build(locked: int | None) -> Epoch:
    """What a build is to go by.

    Args:
        locked: the time of the lock file that it installs from.

    Raises:
        BuildError: where SOURCE_DATE_EPOCH is no time.
    """
    text = os.environ.get(VARIABLE, "")
    if not text:
        return Epoch(locked)
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= _LATEST):  # noqa: PLR2004
        raise BuildError(
            f"{VARIABLE} is '{text}', which is no number of seconds since 1970 that an image can "
            "hold",
            "unset it, or set it to the time of the last change: git log -1 --format=%ct",
        )
    return Epoch(int(text))
