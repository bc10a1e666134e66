"""Says which file system is full, and how much space is needed."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from condainer.errors import BuildError
from condainer.units import human

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

UNPACKED_RATIO = 4
"""Unpacked packages are about this many times larger (measured on 22 scientific packages)."""

IMAGE_RATIO = 3
"""An image is about this many times smaller than what it holds (likewise)."""

_FULL = re.compile(r"No space left on device|Disk quota exceeded|ENOSPC|os error (28|122)\b")
_MAYBE_FULL = re.compile(r"cannot copy: Input/output error")
"""What C++ says of a file that cannot be copied whole, whatever the reason."""
_ALMOST_NOTHING = 16 << 20
_HINT = "make room there, or choose another place in condainer.yml"


@dataclass(frozen=True)
class Destination:
    """A directory that a build fills.

    Attributes:
        path: the directory.
        what: what is put there.
        needed: about how many bytes; 0 if not known.
    """

    path: Path
    what: str
    needed: int


class NoSpaceError(BuildError):
    """A file system is full; the message says which."""


def require(place: Destination, least: int) -> None:
    """Refuse early if a directory cannot hold what is coming.

    Args:
        place: the directory, with an estimate for the message.
        least: bytes that are needed for certain.

    Raises:
        NoSpaceError: If less than that is free.
    """
    free = free_bytes(place.path)
    if free < least:
        raise _error(place, free)


def explain(error: BaseException, places: Iterable[Destination]) -> NoSpaceError | None:
    """Make an error that says what is full, of one that only says that something is.

    Args:
        error: what was raised.
        places: what may be full; the first is what was being filled.

    Returns:
        The new error; None if the old one has another meaning.
    """
    if isinstance(error, NoSpaceError):
        return None
    number = getattr(error, "errno", None)
    full = number in {errno.ENOSPC, errno.EDQUOT} or _FULL.search(str(error))
    if not (full or _MAYBE_FULL.search(str(error))):
        return None
    places = list(places)
    place = _named(error, places) or min(places, key=lambda place: free_bytes(place.path))
    free = free_bytes(place.path)
    if free < max(_ALMOST_NOTHING, place.needed):
        return _error(place, free)
    if not full:
        return None
    # The program that ran out of space has removed its file, or it is a quota.
    place = _named(error, places) or places[0]
    free = free_bytes(place.path)
    return NoSpaceError(
        f"no space left for {place.what} in {place.path}: {human(free)} are free now, which is "
        f"not enough, or a quota is reached ({str(error).splitlines()[-1].strip()})",
        _HINT,
    )


def _named(error: BaseException, places: Iterable[Destination]) -> Destination | None:
    """The destination of the file that an error names."""
    words = f"{getattr(error, 'filename', None) or ''} {error}"
    found = [place for place in places if str(place.path) in words]
    return max(found, key=lambda place: len(str(place.path)), default=None)


def free_bytes(path: Path) -> int:
    """How many bytes this user may still write below a directory, quotas aside.

    Args:
        path: the directory; it may not exist yet.
    """
    status = os.statvfs(_existing(path))
    return status.f_bavail * status.f_frsize


def on_one_file_system(path: Path, other: Path) -> bool:
    """Whether files in one directory can have hard links in another.

    Args:
        path: a directory; it may not exist yet.
        other: likewise.
    """
    return _existing(path).stat().st_dev == _existing(other).stat().st_dev


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _error(place: Destination, free: int) -> NoSpaceError:
    needed = f"; about {human(place.needed)} are needed" if place.needed else ""
    return NoSpaceError(
        f"no space left for {place.what} in {place.path}: {human(free)} are free{needed}",
        _HINT,
    )
