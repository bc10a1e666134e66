"""What programs of the mamba family share with others: their package cache and a list in HOME."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from condainer import files

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping

_LOCK = ".condainer-conda.lock"
_POLL = 0.1
_TRIES = 5


def home(environment: Mapping[str, str]) -> Path:
    """The home directory of a program with some variables."""
    return Path(environment.get("HOME") or Path.home())


def own_cache(environment: Mapping[str, str]) -> Path:
    """The directory of condainer for what can be made again."""
    caches = environment.get("XDG_CACHE_HOME", "")
    return (Path(caches) if caches.startswith("/") else home(environment) / ".cache") / "condainer"


@contextlib.asynccontextmanager
async def alone(
    caches: Iterable[Path], environment: Mapping[str, str], on_wait: Callable[[str], None]
) -> AsyncIterator[None]:
    """Wait until no other conda is at work for condainer on one of some package caches.

    conda itself does not: two of them spoil what the other has begun.

    Args:
        caches: those that there are.
        environment: the variables it runs with; a lock of this user's holds back where there is
            no cache yet.
        on_wait: told what is waited for.
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
    """A lock file in a directory; None where nothing can be written there."""
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
    except OSError:  # of file systems that have no locks
        return True
    return True


@contextlib.contextmanager
def unregistered(prefix: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """Take a prefix out of the list of environments afterwards: the staging directory goes.

    micromamba lists all that it makes, whatever it is told.
    """
    listed = home(environment) / ".conda/environments.txt"
    was_there = os.path.lexists(listed)
    unended = _unended(listed)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for _ in range(_TRIES):
                if _remove(listed.resolve(), os.fsencode(prefix), unended, was_there=was_there):
                    break


def _unended(path: Path) -> bytes:
    """The last line of a file, if it does not end; micromamba goes on in it."""
    try:
        return files.read(path).rpartition(b"\n")[2]
    except OSError:
        return b""


def _remove(path: Path, line: bytes, unended: bytes, *, was_there: bool) -> bool:
    """Remove a line from a file; tells whether it is gone, and not whether others wrote there.

    Args:
        path: of the file.
        line: that goes.
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
            now = path.stat()
            is_same = (now.st_ino, now.st_size, now.st_mtime_ns) == (
                *(status.st_ino, status.st_size, status.st_mtime_ns),
            )
            if is_same and (content or was_there):
                os.rename(part.name, path)  # noqa: PTH104
            elif is_same:
                path.unlink()
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part.name)  # noqa: PTH108
    return is_same
