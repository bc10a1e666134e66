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

MOST = 64_000_000
"""Bytes: more than any file has that condainer or an installer writes."""

_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
"""What a file in UTF-16 begins with; editors of Windows write it, and conda reads it."""

_MOST_OF_PEOPLE = 4_000_000
"""Bytes of a file that people write: larger ones are something else, and take long to parse."""


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
    """Read a file a user wrote: in UTF-8, or in UTF-16 where it begins with the mark of that.

    Raises:
        ConfigError: where it cannot be read, is too large for one, or is neither.
    """
    try:
        content = read(path, most=_MOST_OF_PEOPLE)
        return content.decode("utf-16" if content[:2] in _UTF_16 else "utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file in UTF-8 (byte {error.start})") from error


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
