"""How installers say that they cannot go on: in the same words, whichever it is."""

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
"""What tells that no process, memory or descriptor is to be had, which is no channel's fault."""


def excerpt(lines: Iterable[str]) -> str:
    """The beginning of an explanation, where the cause stands, without what is said twice."""
    kept = [line for line in dict.fromkeys(line.rstrip() for line in lines) if line]
    shown = [f"  {line}" for line in kept[:_LINES]]
    if len(kept) > _LINES:
        shown.append(f"  … and {len(kept) - _LINES} more lines")
    return "\n".join(shown)


def unsolved(installer: str, why: str, channels: Sequence[str], hint: str = "") -> BuildError:
    """An error for packages that cannot be had, or not together.

    Args:
        installer: its name.
        why: its own explanation.
        channels: where it has looked; empty where only the installer knows.
        hint: what to do next.
    """
    searched = f"\n  searched: {', '.join(channels)}" if channels else ""
    return BuildError(f"{installer} found no solution:\n{why}{searched}", hint)


def unreadable(why: str, channels: Iterable[str], *, is_offline: bool = False) -> BuildError:
    """An error for a channel that cannot be read.

    Args:
        why: the installer's own explanation.
        channels: those that were to be read; which of them it was stands in the explanation.
        is_offline: whether nothing was asked for over the network.
    """
    why = credentials.without(why)
    if _OF_THIS_MACHINE.search(why):
        return BuildError(
            f"this machine or job does not let channels be read:\n{why}",
            "see 'ulimit -u', 'ulimit -n' and 'ulimit -v', and the limits of this job or container",
        )
    channels = [credentials.without(channel) for channel in channels]
    named = [channel for channel in channels if f"{channel}/" in why] or channels
    which = f"the channel {' or '.join(named)}" if named else "a channel"
    if is_offline:
        return BuildError(
            f"--offline forbids to ask {which}, and the cache has no list of it:\n{why}",
            "build once without --offline, or install what the lock file lists, with --locked",
        )
    return BuildError(
        f"cannot read {which}:\n{why}",
        "see that its address is right and that this machine can reach it",
    )


def unfetched(packages: Iterable[str], cache: Path) -> BuildError:
    """An error for packages that would have to be fetched, which --offline forbids.

    Args:
        packages: URLs, and what there is to say of them.
        cache: where they would be.
    """
    return BuildError(
        f"--offline forbids to fetch what is not in the package cache {cache}:\n"
        f"{excerpt(packages)}",
        "build once without --offline: packages stay in the cache",
    )
