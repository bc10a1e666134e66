"""Reads and writes small files where others may have put something, and believes nothing of it.

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

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
"""What a file in UTF-16 begins with; editors of Windows write it, and conda reads it."""

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
    with os.fdopen(_open(path, within), "rb") as file:
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


def write(path: Path, content: bytes, *, within: Path, mode: int = 0o644) -> None:
    """Write a file anew, in the place of whatever else has its name; never through a link.

    Args:
        path: the file; its directory must be there.
        content: what it is to hold.
        within: a directory above it, below which no link is followed.
        mode: its permissions, whatever the umask.

    Raises:
        OSError: where that cannot be done.
    """
    directory, name = _parent(path, within)
    try:
        try:
            os.unlink(name, dir_fd=directory)  # maybe a hard link, into a package cache
        except FileNotFoundError:
            pass
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, 0o600, dir_fd=directory)
    finally:
        os.close(directory)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(content)


def make_directory(path: Path, *, within: Path) -> None:
    """Make a directory where there is none, with no link on the way.

    Raises:
        OSError: where that cannot be done, or something else is there.
    """
    directory, name = _parent(path, within)
    try:
        try:
            os.mkdir(name, 0o755, dir_fd=directory)
        except FileExistsError:
            os.close(_enter(directory, name, str(path)))
    finally:
        os.close(directory)


def names(path: Path, *, within: Path) -> list[str]:
    """What is in a directory, by name.

    Args:
        path: the directory.
        within: a directory above it.

    Returns:
        the names; none where there is no such directory, or only by way of a link.

    Raises:
        OSError: where it cannot be read.
    """
    try:
        directory = _descend(path, within)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
            return []
        raise
    try:
        readable = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    finally:
        os.close(directory)
    try:
        return sorted(os.listdir(readable))
    finally:
        os.close(readable)


def leads_out(path: str | Path, *, within: Path) -> bool:
    """Whether a path leads out of a directory, all links followed."""
    top = os.path.realpath(within)
    return not f"{os.path.realpath(path)}/".startswith(f"{top}/")


def _open(path: str | Path, within: Path | None) -> int:
    # A pipe or a device is not to keep us waiting, nor to become the controlling terminal.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    if within is None:
        return os.open(path, flags)
    directory, name = _parent(path, within)
    try:
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=directory)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, f"{path} is a symbolic link", str(path)) from error
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(directory)


def _parent(path: str | Path, within: Path) -> tuple[int, str]:
    """The directory of a file, opened, and the file's name in it."""
    above, name = os.path.split(os.fspath(path))
    return _descend(above, within), name


def _descend(path: str | Path, within: Path) -> int:
    """Open a directory at or below another one, with no link on the way, not even meanwhile.

    Raises:
        OSError: where there is none; with ELOOP where a link stands in its place.
    """
    top, path = os.fspath(within), os.fspath(path)
    below = path[len(top) :].split("/")
    if f"{path}/"[: len(top) + 1] != f"{top}/" or ".." in below:
        raise OSError(errno.EXDEV, f"it is not in {top}", path)
    directory = os.open(top, _DIRECTORY & ~os.O_NOFOLLOW)
    passed = top
    try:
        for name in below:
            if name in {"", "."}:
                continue
            passed = f"{passed}/{name}"
            inner = _enter(directory, name, passed)
            os.close(directory)
            directory = inner
    except BaseException:
        os.close(directory)
        raise
    return directory


def _enter(directory: int, name: str, path: str) -> int:
    try:
        return os.open(name, _DIRECTORY, dir_fd=directory)
    except OSError as error:
        is_link = error.errno == errno.ENOTDIR and stat.S_ISLNK(
            os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
        )
        if is_link:
            raise OSError(errno.ELOOP, f"{path} is a symbolic link", path) from error
        raise OSError(error.errno, error.strerror, path) from error
