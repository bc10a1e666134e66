"""Reads and writes small files, whatever others may have put in their place.

In place of a file there may be a pipe that nobody writes to, a device without an end, a link to
somewhere else, or more data than fits into memory. `exec` reads through this module, so it imports
nothing that takes long.
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
        within: a directory above it, such as a prefix or a mountpoint. Links below it are not
            followed, so that the file surely lies there. None to follow all links.
        most: bytes that it may have.

    Raises:
        OSError: If there is none, if it is no regular file, or if it is larger.
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
    """Read a file that a user wrote: in UTF-8, or in UTF-16 if it begins with a byte order mark.

    Args:
        path: the file.

    Raises:
        ConfigError: If it cannot be read, is too large for such a file, or has another encoding.
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
        within: as for `read`.
        most: as for `read`.
        most_values: as for `parse_json`.

    Raises:
        OSError: As `read` does.
        ValueError: As `parse_json` does.
    """
    return parse_json(read(path, within=within, most=most), most_values=most_values)


def parse_json(text: str | bytes, *, most_values: int = _MOST_VALUES) -> object:
    """Read a JSON document, with bounds on the memory and the time that it takes.

    Args:
        text: the document.
        most_values: number of values that it may have. An empty list has three bytes, and takes
            seventy in memory.

    Raises:
        ValueError: If it is no JSON, or if it has too many values, too long numbers, or too many
            lists and objects inside each other.
    """
    import json

    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if sum(data.count(mark) for mark in (b"[", b"{", b",", b":")) > most_values:
        raise ValueError(f"it has more than {most_values:,} values")
    try:
        document = json.loads(text, parse_int=_whole_number)
    except RecursionError:
        raise ValueError("its lists and objects are nested too deeply") from None
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
    raise ValueError("its lists and objects are nested too deeply")


def is_absent(path: str | Path) -> bool:
    """Whether nothing has this name. Something that cannot be looked at counts as present.

    Args:
        path: the name; if it is a link, the link itself is meant.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def is_missing(path: Path) -> bool:
    """Whether there is no such file. One that cannot be looked at counts as present.

    Args:
        path: the file; links are followed.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def write(path: Path, content: bytes, *, within: Path, mode: int = 0o644) -> None:
    """Write a new file in place of whatever has its name; never through a link.

    Args:
        path: the file; its directory must exist.
        content: what it is to hold.
        within: a directory above it; links below it are not followed.
        mode: its permissions, whatever the umask is.

    Raises:
        OSError: If it cannot be written.
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
    """Make a directory if there is none, without following a link.

    Args:
        path: the directory; the one above must exist.
        within: a directory above it; links below it are not followed.

    Raises:
        OSError: If it cannot be made, or if something else has its name.
    """
    directory, name = _parent(path, within)
    try:
        try:
            os.mkdir(name, 0o755, dir_fd=directory)
        except FileExistsError:
            os.close(enter(directory, name, str(path)))
    finally:
        os.close(directory)


def names(path: Path, *, within: Path) -> list[str]:
    """List a directory.

    Args:
        path: the directory.
        within: a directory above it; links below it are not followed.

    Returns:
        The names in it, sorted. None of them if there is no such directory, or if a link leads
        there.

    Raises:
        OSError: If it cannot be read.
    """
    try:
        directory = _descend(path, within)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
            return []
        raise
    try:
        return sorted(listed(directory))
    finally:
        os.close(directory)


def listed(directory: int) -> list[str]:
    """The names in a directory, in no order.

    Args:
        directory: descriptor of the directory, which need not be open for reading.

    Raises:
        OSError: If it cannot be read.
    """
    readable = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.listdir(readable)
    finally:
        os.close(readable)


def leads_out(path: str | Path, *, within: Path) -> bool:
    """Whether a path leads out of a directory, when all links are followed.

    Args:
        path: any path.
        within: the directory.
    """
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
    """Open the directory of a file; gives also the name of the file in it."""
    above, name = os.path.split(os.fspath(path))
    return _descend(above, within), name


def _descend(path: str | Path, within: Path) -> int:
    """Open a directory at or below another one, without following a link on the way.

    It goes from descriptor to descriptor, so that nobody can put a link there meanwhile.

    Raises:
        OSError: If there is none; with ELOOP if a link is in its place.
    """
    top, path = os.fspath(within), os.fspath(path)
    below = path[len(top) :].split("/")
    if f"{path}/"[: len(top) + 1] != f"{top}/" or ".." in below:
        raise OSError(errno.EXDEV, f"it is not in {top}", path)
    directory = open_directory(top)
    passed = top
    try:
        for name in below:
            if name in {"", "."}:
                continue
            passed = f"{passed}/{name}"
            inner = enter(directory, name, passed)
            os.close(directory)
            directory = inner
    except BaseException:
        os.close(directory)
        raise
    return directory


def open_directory(path: str) -> int:
    """Open a directory, following links, only to refer to it.

    Args:
        path: of the directory.

    Raises:
        OSError: If it cannot be opened.
    """
    return os.open(path, _DIRECTORY & ~os.O_NOFOLLOW)


def enter(directory: int, name: str, path: str) -> int:
    """Open a directory inside another one, unless a link is in its place.

    Args:
        directory: descriptor of the directory above.
        name: of the directory to open.
        path: of the directory to open, for messages.

    Raises:
        OSError: If it cannot be opened; with ELOOP if it is a link.
    """
    try:
        return os.open(name, _DIRECTORY, dir_fd=directory)
    except OSError as error:
        is_link = error.errno == errno.ENOTDIR and stat.S_ISLNK(
            os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
        )
        if is_link:
            raise OSError(errno.ELOOP, f"{path} is a symbolic link", path) from error
        raise OSError(error.errno, error.strerror, path) from error
