"""Shares the package cache and the list of environments with other programs of the mamba family."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from condainer.system import files

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping

_LOCK = ".condainer-conda.lock"
_POLL = 0.1
_TRIES = 5


def home(environment: Mapping[str, str]) -> Path:
    """Find the home directory of a program.

    Args:
        environment: its variables.
    """
    return Path(environment.get("HOME") or Path.home())


def own_cache(environment: Mapping[str, str]) -> Path:
    """Find condainer's directory for caches.

    Args:
        environment: the variables of a program.
    """
    caches = environment.get("XDG_CACHE_HOME", "")
    return (Path(caches) if caches.startswith("/") else home(environment) / ".cache") / "condainer"


@contextlib.asynccontextmanager
async def alone(
    caches: Iterable[Path], environment: Mapping[str, str], on_wait: Callable[[str], None]
) -> AsyncIterator[None]:
    """Wait until no other build runs conda on the same package caches.

    conda itself does not wait: two of them damage what the other has begun.

    Args:
        caches: those that conda may use.
        environment: the variables of conda. A lock of this user's is held as well, since there may
            be no cache yet.
        on_wait: takes a line that says what is waited for.
    """
    places = [own_cache(environment), *sorted(path for path in caches if path.is_dir())]
    with contextlib.ExitStack() as locks:
        for place in dict.fromkeys(places):
            descriptor = _open(place)
            if descriptor is None:
                continue
            locks.callback(os.close, descriptor)
            while not _take(descriptor):
                on_wait(f"waiting for another conda, which holds {place / _LOCK}")
                await anyio.sleep(_POLL)
        yield


def _open(place: Path) -> int | None:
    """Open the lock file in a directory; None if nothing can be written there."""
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    with contextlib.suppress(OSError):
        place.mkdir(parents=True, exist_ok=True)
    for access in (os.O_RDWR | os.O_CREAT, os.O_RDONLY):  # it may be another user's
        with contextlib.suppress(OSError):
            return os.open(place / _LOCK, flags | access, 0o666)
    return None


def _take(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some file systems have no locks
        return True
    return True


@contextlib.contextmanager
def unregistered(prefix: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """Remove a prefix from the user's list of environments at the end: it will not exist any more.

    micromamba lists every environment that it makes, whatever its options are.

    Args:
        prefix: the environment.
        environment: the variables of the program.
    """
    listed = home(environment) / ".conda/environments.txt"
    was_there = os.path.lexists(listed)
    unended = _unended(listed)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for _ in range(_TRIES):  # others may write there at the same time
                if _remove(listed.resolve(), os.fsencode(prefix), unended, was_there=was_there):
                    break


def _unended(path: Path) -> bytes:
    """The last line of a file if it has no newline; micromamba appends to that line."""
    try:
        return files.read(path).rpartition(b"\n")[2]
    except OSError:
        return b""


def _remove(path: Path, line: bytes, unended: bytes, *, was_there: bool) -> bool:
    """Remove a line from a file; returns False if somebody else has changed it meanwhile.

    Args:
        path: the file.
        line: the line to remove.
        unended: what may stand before it in the same line, and stays.
        was_there: whether the file stays if it is empty then.
    """
    status = path.stat()
    lines = files.read(path).splitlines(keepends=True)
    stays = {line: b"", unended + line: unended + b"\n"} if unended else {line: b""}
    kept = [stays.get(each.rstrip(b"\r\n"), each) for each in lines]
    if kept == lines:
        return True
    content = b"".join(kept)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as part:
        try:
            part.write(content)
            part.flush()
            os.fchmod(part.fileno(), stat.S_IMODE(status.st_mode))
            is_same = _stamp(path.stat()) == _stamp(status)
            if is_same and (content or was_there):
                os.rename(part.name, path)  # noqa: PTH104
            elif is_same:
                path.unlink()
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part.name)  # noqa: PTH108
    return is_same


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_ino, status.st_size, status.st_mtime_ns
