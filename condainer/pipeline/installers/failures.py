"""Makes the errors of all installers, so that each uses the same words."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from condainer.errors import BuildError
from condainer.pipeline import credentials

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

_LINES = 25
_OF_THIS_MACHINE = re.compile(
    r"Resource temporarily unavailable|Cannot allocate memory|Too many open files"
    r"|os error (11|12|23|24)\b|spawn.* thread"
)
"""Says that no process, memory or descriptor is available, which is not a channel's fault."""


def excerpt(lines: Iterable[str]) -> str:
    """Shorten an explanation to its beginning, which has the cause, and drop repeated lines.

    Args:
        lines: of the explanation.
    """
    kept = [line for line in dict.fromkeys(line.rstrip() for line in lines) if line]
    shown = [f"  {line}" for line in kept[:_LINES]]
    if len(kept) > _LINES:
        shown.append(f"  … and {len(kept) - _LINES} more lines")
    return "\n".join(shown)


def unsolved(installer: str, why: str, channels: Sequence[str], hint: str = "") -> BuildError:
    """Make an error for packages that do not exist, or not together.

    Args:
        installer: its name.
        why: its own explanation.
        channels: where it has searched; empty if only the installer knows.
        hint: what to do next.
    """
    searched = f"\n  searched: {', '.join(channels)}" if channels else ""
    return BuildError(f"{installer} found no solution:\n{why}{searched}", hint)


def unreadable(why: str, channels: Iterable[str], *, is_offline: bool = False) -> BuildError:
    """Make an error for a channel that cannot be read.

    Args:
        why: the installer's own explanation.
        channels: those to read; the explanation says which of them failed.
        is_offline: whether nothing may be asked for over the network.
    """
    why = credentials.without(why)
    if _OF_THIS_MACHINE.search(why):
        return BuildError(
            f"cannot read channels, because of a limit of this machine or job:\n{why}",
            "see 'ulimit -u', 'ulimit -n' and 'ulimit -v', and the limits of this job or container",
        )
    which = _which(channels, why)
    if is_offline:
        return BuildError(
            f"with --offline, no server is asked, and the cache has no list of {which}:\n{why}",
            "build once without --offline, or install what the lock file lists, with --locked",
        )
    return BuildError(
        f"cannot read {which}:\n{why}",
        "check that its address is right and that this machine can reach it",
    )


def _which(channels: Iterable[str], why: str) -> str:
    """The channels that an explanation names, or all of them."""
    channels = [credentials.without(channel) for channel in channels]
    named = [channel for channel in channels if f"{channel}/" in why] or channels
    return f"the channel {' or '.join(named)}" if named else "a channel"


def unfetched(packages: Iterable[str], cache: Path) -> BuildError:
    """The error for packages that only the network has, with --offline.

    Args:
        packages: their URLs, each with a remark if there is one.
        cache: the package cache that does not have them.
    """
    return BuildError(
        f"with --offline, nothing is fetched, and the package cache {cache} does not have:\n"
        f"{excerpt(packages)}",
        "build once without --offline: packages stay in the cache",
    )
