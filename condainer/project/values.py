"""Reads the values of `condainer.yml`: one function for each kind of value.

Each takes the text after a key, and raises ValueError with a reason if that is no such value.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

COMPRESSORS = {"zstd": (1, 22), "gzip": (1, 9), "xz": None, "lzo": (1, 9), "lz4": None}
"""The compressors of images, and the range of levels of each; None if it has no levels."""

CHANNEL_PRIORITIES = ("flexible", "strict", "disabled")
"""How conda ranks channels."""

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_SIZE = re.compile(r"(\d+)([KkMm]?)")
_MIN_BLOCK, _MAX_BLOCK = 4096, 1 << 20


def absolute(text: str) -> Path:
    """A directory, by a path that the scripts of packages can cope with.

    Args:
        text: the path.

    Raises:
        ValueError: If it is relative, or contains characters that break such scripts.
    """
    path = Path(text)
    if not path.is_absolute():
        raise ValueError("must be an absolute path")
    if text.startswith("//"):  # the same directory to the kernel, but another path to Python
        path = Path("/" + text.lstrip("/"))
    if ".." in path.parts or re.search(r"[\s'\"\\:]", text):
        raise ValueError("must be free of spaces, quotes, colons and '..' (package scripts break)")
    return path


def uuid(text: str) -> str:
    """The identity of a project.

    Args:
        text: a UUID, in capital letters or not.

    Raises:
        ValueError: If it is no UUID.
    """
    if not _UUID.fullmatch(text):
        raise ValueError("must be a UUID such as 123e4567-e89b-42d3-a456-426614174000")
    return text.lower()


def path(text: str) -> str:
    """A path or a name. `~/` and `~user/` mean the same as in a shell.

    Args:
        text: the path.

    Raises:
        ValueError: If there is no such user.
    """
    expanded = os.path.expanduser(text)  # noqa: PTH111  (Path's says less where there is no such user)
    if "/" in text and expanded.startswith("~"):
        raise ValueError("begins with the home directory of a user whom this machine does not know")
    return expanded


def file(text: str) -> str:
    """The name of a file: a path that is not empty.

    Args:
        text: the path.

    Raises:
        ValueError: If it names no file.
    """
    if "\0" in text or not text:
        raise ValueError("must name a file")
    return path(text)


def users(text: str) -> tuple[str, ...]:
    """Names or numbers of users.

    Args:
        text: these, with commas or spaces between them.

    Raises:
        ValueError: If one is neither.
    """
    names = tuple(text.replace(",", " ").split())
    if not all(re.fullmatch(r"[\w.][\w.-]*\$?", name) for name in names):
        raise ValueError("must be names or numbers of users, with commas between them")
    return names


def boolean(text: str) -> bool:
    """True or false.

    Args:
        text: true, yes, on, false, no or off.

    Raises:
        ValueError: If it is something else.
    """
    choices = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    if text.lower() not in choices:
        raise ValueError("must be true or false")
    return choices[text.lower()]


def _one_of(known: Iterable[str], text: str) -> str:
    if text not in known:
        raise ValueError(f"must be one of {', '.join(known)}")
    return text


def compression(text: str) -> str:
    """A compressor.

    Args:
        text: one of `COMPRESSORS`.

    Raises:
        ValueError: If it is something else.
    """
    return _one_of(COMPRESSORS, text)


def channel_priority(text: str) -> str:
    """How channels are ranked.

    Args:
        text: one of `CHANNEL_PRIORITIES`.

    Raises:
        ValueError: If it is something else.
    """
    return _one_of(CHANNEL_PRIORITIES, text)


def block_size(text: str) -> int:
    """A number of bytes that an image may have as its block size.

    Args:
        text: the number; it may end with K or M.

    Raises:
        ValueError: If an image cannot have it.
    """
    match = _SIZE.fullmatch(text)
    size = int(match[1]) * {"": 1, "k": 1024, "m": 1 << 20}[match[2].lower()] if match else 0
    if size & (size - 1) or not _MIN_BLOCK <= size <= _MAX_BLOCK:
        raise ValueError("must be a power of two from 4K to 1M")
    return size


def seconds(text: str) -> float:
    """A number of seconds.

    Args:
        text: from 0 to 86400.

    Raises:
        ValueError: If it is no such number.
    """
    seconds = float(text)
    if not 0 <= seconds <= 86400:  # noqa: PLR2004  (a day)
        raise ValueError("must be a number of seconds from 0 to 86400")
    return seconds


def is_level(algorithm: str | None, level: int | None) -> bool:
    """Whether a compressor has a level.

    Args:
        algorithm: one of `COMPRESSORS`; None or empty for zstd.
        level: None for the default, which all have.
    """
    levels = COMPRESSORS[algorithm or "zstd"]
    return level is None or (levels is not None and levels[0] <= level <= levels[1])
