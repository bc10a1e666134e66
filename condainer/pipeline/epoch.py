"""Defines the latest time that an image records, so that the same build gives the same image.

It is SOURCE_DATE_EPOCH, or with --locked the time when the lock file was made. mksquashfs and other
programs know that variable: https://reproducible-builds.org/specs/source-date-epoch/
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from condainer.errors import BuildError

VARIABLE = "SOURCE_DATE_EPOCH"
_LATEST = 0xFFFF_FFFF
"""The latest time that an inode of SquashFS can hold, in seconds since 1970."""


@dataclass(frozen=True)
class Epoch:
    """The latest time that an image records.

    Attributes:
        stamp: in seconds since 1970; None if each file keeps its own time.
    """

    stamp: int | None = None

    @property
    def is_fixed(self) -> bool:
        """Whether the image is to be the same each time it is built."""
        return self.stamp is not None

    @property
    def latest(self) -> int:
        """The latest time of a file in the image, in seconds since 1970."""
        return _LATEST if self.stamp is None else self.stamp

    def of(self, status: os.stat_result) -> int:
        """The time that the image records for a file, in seconds since 1970.

        Args:
            status: of the file, by `lstat`. The image has 32 bits for its time.
        """
        mtime = int(status[stat.ST_MTIME])
        return mtime & _LATEST if self.stamp is None else min(max(mtime, 0), self.stamp)


def of_build(locked: int | None) -> Epoch:
    """Find the epoch of a build.

    Args:
        locked: the time of the lock file that it installs from; None if there is none.

    Raises:
        BuildError: If SOURCE_DATE_EPOCH is not a time.
    """
    text = os.environ.get(VARIABLE, "")
    if not text:
        return Epoch(locked)
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= _LATEST):  # noqa: PLR2004
        raise BuildError(
            f"{VARIABLE} is '{text}', which is not a number of seconds since 1970 that an image "
            "can hold",
            "unset it, or set it to the time of the last change: git log -1 --format=%ct",
        )
    return Epoch(int(text))
