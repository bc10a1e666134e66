"""Says which file system ran full, and how much is needed."""

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
"""Packages grow about that much when they are unpacked (measured on 22 scientific packages)."""

IMAGE_RATIO = 3
"""An image is about that much smaller than what it holds (likewise)."""

_FULL = re.compile(r"No space left on device|Disk quota exceeded|ENOSPC|os error (28|122)\b")
_MAYBE_FULL = re.compile(r"cannot copy: Input/output error")
"""What C++ says of a file that cannot be copied whole, whatever the reason."""
_ALMOST_NOTHING = 16 << 20
_HINT = "make room there, or choose another place in condainer.yml"


@dataclass(frozen=True)
class Place:
    """A directory that a build fills.

    Attributes:
        path: the directory.
        what: what is put there.
        needed: about how many bytes; 0 where nobody knows.
    """

    path: Path
    what: str
    needed: int


class NoSpaceError(BuildError):
    """A file system is full, and it is said which."""


def require(place: Place, least: int) -> None:
    """Refuse early where a directory cannot possibly hold what is coming.

    Args:
        place: the directory, with an estimate for the message.
        least: bytes that are needed for certain.

    Raises:
        NoSpaceError: where less than that is free.
    """
    free = free_bytes(place.path)
    if free < least:
        raise _error(place, free)


def explain(error: BaseException, places: Iterable[Place]) -> NoSpaceError | None:
    """If an error means that something is full, say what; else None.

    Args:
        error: what was raised.
        places: what may be full; the first is what was being filled.
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
    # Whoever ran out of space has taken its file away again, or it is a quota.
    place = _named(error, places) or places[0]
    free = free_bytes(place.path)
    return NoSpaceError(
        f"no space left for {place.what} in {place.path}: the {human(free)} that are free now "
        f"do not suffice, or a quota is reached ({str(error).splitlines()[-1].strip()})",
        _HINT,
    )


def _named(error: BaseException, places: Iterable[Place]) -> Place | None:
    """The place of the file that an error names, however it does."""
    words = f"{getattr(error, 'filename', None) or ''} {error}"
    found = [place for place in places if str(place.path) in words]
    return max(found, key=lambda place: len(str(place.path)), default=None)


def free_bytes(path: Path) -> int:
    """What this user may still write below a directory, quotas aside."""
    status = os.statvfs(_existing(path))
    return status.f_bavail * status.f_frsize


def on_one_file_system(path: Path, other: Path) -> bool:
    """Whether what is put into one directory can be linked into another."""
    return _existing(path).stat().st_dev == _existing(other).stat().st_dev


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _error(place: Place, free: int) -> NoSpaceError:
    needed = f"; about {human(place.needed)} are needed" if place.needed else ""
    return NoSpaceError(
        f"no space left for {place.what} in {place.path}: {human(free)} are free{needed}",
        _HINT,
    )
