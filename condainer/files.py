"""Reads small files that others may have put there, and believes nothing of what stands there.

Where a file is expected there may be a pipe that nobody ever writes to, a device without an end,
a link to somewhere else, or more than fits into memory. `exec` reads through this room, too, so it
imports nothing heavy.
"""

from __future__ import annotations

import errno
import os
import stat

from condainer.errors import ConfigError

TYPE_CHECKING = False  # importing `typing` takes as long as all of this does
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

MOST = 64_000_000
"""Bytes: more than any file has that condainer or an installer writes."""

_MOST_OF_PEOPLE = 4_000_000
"""Bytes of a file that people write: larger ones are something else, and take long to parse."""

_MOST_VALUES = 4_000_000
"""Values of a JSON document: the record of a package with 300,000 files has as many."""

_DEEPEST = 100
"""Lists and objects in one another: a document that is written again needs more of the stack."""

_LONGEST_NUMBER = 400
"""Digits: more than those of the largest fraction."""


def read(path: str | Path, *, within: Path | None = None, most: int = MOST) -> bytes:
    """Read a small regular file.

    Args:
        path: the file.
        within: a directory above it, such as a prefix or a mountpoint. Below it no link is
            followed, so that what is read lies there; without it links are followed as usual.
        most: the bytes it may have.

    Raises:
        OSError: where there is none, where it is something else than a regular file, or larger.
    """
    # A pipe or a device is not to keep us waiting, nor to become the controlling terminal.
    further = os.O_NONBLOCK | os.O_NOCTTY
    if within is not None:
        _refuse_links(within, path)
        further |= os.O_NOFOLLOW
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | further)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        content = b"" if status.st_size > most else file.read(most + 1)
        if status.st_size > most or len(content) > most:
            from condainer.units import human

            raise OSError(errno.EFBIG, f"it is larger than {human(most)}", str(path))
    return content


def read_text(path: Path) -> str:
    """Read a file a user wrote.

    Raises:
        ConfigError: where it cannot be read, is too large for one, or is not UTF-8.
    """
    try:
        return read(path, most=_MOST_OF_PEOPLE).decode()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file in UTF-8 (byte {error.start})") from error


def read_json(
    path: str | Path,
    *,
    within: Path | None = None,
    most: int = MOST,
    most_values: int = _MOST_VALUES,
) -> object:
    """Read a small JSON file.

    Args:
        path: the file.
        within: as in `read`.
        most: as in `read`.
        most_values: as in `parse_json`.

    Raises:
        OSError: as `read` does.
        ValueError: where it is no JSON, or more than a program can take.
    """
    return parse_json(read(path, within=within, most=most), most_values=most_values)


def parse_json(text: str | bytes, *, most_values: int = _MOST_VALUES) -> object:
    """Read a JSON document that costs no more memory and no more time than its like should.

    Args:
        text: the document.
        most_values: that it may have; an empty list of three bytes takes seventy in memory.

    Raises:
        ValueError: where it is no JSON, has too many values, too long numbers, or too many lists
            and objects in one another.
    """
    import json

    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if sum(data.count(mark) for mark in (b"[", b"{", b",", b":")) > most_values:
        raise ValueError(f"it has more than {most_values:,} values")
    try:
        document = json.loads(text, parse_int=_whole_number)
    except RecursionError:
        raise ValueError("its lists and objects are too deep in one another") from None
    _check_depth(document)
    return document


def _whole_number(digits: str) -> int:
    if len(digits) > _LONGEST_NUMBER:
        raise ValueError("a number in it is too long")
    return int(digits)


def _check_depth(document: object) -> None:
    level: list[Any] = [document] if isinstance(document, (dict, list)) else []
    for _ in range(_DEEPEST):
        level = [
            value
            for holder in level
            for value in (holder.values() if isinstance(holder, dict) else holder)
            if isinstance(value, (dict, list))
        ]
        if not level:
            return
    raise ValueError("its lists and objects are too deep in one another")


def is_absent(path: str | Path) -> bool:
    """Whether there is nothing of that name; what nobody may look at counts as there."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def is_missing(path: Path) -> bool:
    """Whether there is no such file; one that nobody may look at counts as there."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _refuse_links(top: Path, path: str | Path) -> None:
    part = os.fspath(path)
    while part not in {os.fspath(top), os.path.dirname(part)}:
        if os.path.islink(part):
            raise OSError(errno.ELOOP, f"{part} is a symbolic link", str(path))
        part = os.path.dirname(part)
