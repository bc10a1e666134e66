"""Channels in a cache directory: built once, published whole.

This module owns the cache: its layout, its lock, and what makes a cached channel out of date. The
recipes say what is in a channel.

A finished channel is `CACHE/KIND-DIGEST`, where the digest covers the interpreter, the machine,
the requirements and the text of this package, so that any change gives another directory. Old
ones stay until somebody removes the cache. Downloaded wheels are kept in `CACHE/wheels-DIGEST`,
which a change to this package leaves valid.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rattler.index import index_fs

from tests.localchannel import hardcases, interpreter, wheels
from tests.localchannel.package import Package, Recipe, subdir, write

if TYPE_CHECKING:
    from collections.abc import Iterator

Kind = Literal["basic", "scientific", "hard", "big", "badchecksum"]
"""The channels that there are."""

_PINS = Path(__file__).parents[2] / "requirements"
"""Has `channel-KIND.txt`, the pinned wheels of a channel."""


def ensure(kind: Kind) -> Path:
    """Return a channel's directory, building it if this is its first use.

    Callers in other processes wait for the one that builds. A failure, or an interruption, leaves
    nothing behind but the lock file and the wheels.

    Args:
        kind: `basic` has python, pip, numpy and pandas; `scientific` adds scipy, matplotlib and
            scikit-learn; `hard` has python and the packages of `hardcases`, and needs no network,
            nor do `big` and `badchecksum`, which have one package each.

    Raises:
        RuntimeError: if the wheels cannot be had, or this interpreter cannot be packaged.
    """
    cache = _cache_directory()
    channel = cache / f"{kind}-{_digest(_sources(), _requirements(kind))}"
    if channel.is_dir():
        return channel
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f"{kind}.lock"):
        if not channel.is_dir():
            scratch = cache / f".{kind}"
            shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed
            scratch.mkdir()
            try:
                _build(kind, scratch, channel)
            finally:
                shutil.rmtree(scratch)
    return channel


def package_names(channel: Path) -> list[str]:
    """List the archives in a channel, without their suffixes."""
    archives = [*channel.glob("*/*.conda"), *channel.glob("*/*.tar.bz2")]
    return sorted(file.name.removesuffix(".conda").removesuffix(".tar.bz2") for file in archives)


def _cache_directory() -> Path:
    if "CONDAINER_TEST_CACHE" in os.environ:
        return Path(os.environ["CONDAINER_TEST_CACHE"]).absolute()
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "condainer-channel"


def _digest(*parts: str) -> str:
    """Digest what a cached directory depends on, the interpreter included."""
    whole = json.dumps([sys.version, sys.base_prefix, platform.machine(), *parts])
    return hashlib.sha256(whole.encode()).hexdigest()[:12]


def _pins(kind: Kind) -> Path:
    return _PINS / f"channel-{kind}.txt"


def _requirements(kind: Kind) -> str:
    """What a channel is made of besides the interpreter and what is made here."""
    return _pins(kind).read_text() if kind in {"basic", "scientific"} else ""


def _sources() -> str:
    return "\0".join(file.read_text() for file in sorted(Path(__file__).parent.glob("*.py")))


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold a lock, which the kernel drops however this process ends."""
    with file.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(kind: Kind, scratch: Path, channel: Path) -> None:
    """Build a channel in a scratch directory and publish it by a rename."""
    draft = scratch / "channel"
    for name in (subdir(), "noarch"):
        (draft / name).mkdir(parents=True)
    recipes = _recipes(kind, scratch)
    # Threads do: compressing and hashing release the interpreter lock, and compiling to .pyc has
    # processes of its own. And threads, unlike processes, can be started from any test.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(lambda recipe: _make(recipe, scratch, draft), recipes):
            pass
        # In a thread because the caller may have an event loop.
        pool.submit(asyncio.run, _index(draft)).result()
    if kind == "badchecksum":
        _spoil_checksums(draft)
    _let_everybody_read(draft)
    draft.rename(channel)


def _recipes(kind: Kind, scratch: Path) -> list[Recipe]:
    """Say what is in a channel."""
    if kind == "big":
        return [hardcases.big]
    if kind == "badchecksum":
        return [hardcases.badchecksum]
    if kind == "hard":
        return [interpreter.python, *hardcases.RECIPES]
    directory = _wheels(kind, scratch)
    return [interpreter.python, *wheels.recipes(directory)]


def _wheels(kind: Kind, scratch: Path) -> Path:
    """Return the directory with the wheels of a channel, downloading them on first use."""
    directory = _cache_directory() / f"wheels-{_digest(_requirements(kind))}"
    if not directory.is_dir():
        with _announced(f"downloading the wheels of {kind}"):
            draft = scratch / "wheels"
            wheels.download(_pins(kind), draft, scratch)
            draft.rename(directory)
    return directory


def _make(recipe: Recipe, scratch: Path, draft: Path) -> Package:
    """Make one package."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        tree = Path(directory)
        package = recipe(tree)
        write(package, tree, draft)
    _report(package.distribution, start)
    return package


async def _index(draft: Path) -> None:
    await index_fs(draft, write_shards=False)


def _spoil_checksums(draft: Path) -> None:
    """Promise other checksums than the archives have; the sizes stay right."""
    for file in draft.glob("*/repodata.json"):
        repodata = json.loads(file.read_text())
        for record in repodata["packages.conda"].values():
            record |= {"sha256": "0" * 64, "md5": "0" * 32}
        file.write_text(json.dumps(repodata))
        file.with_suffix(".json.zst").unlink()


def _let_everybody_read(directory: Path) -> None:
    """Set modes so that another user can install from the channel."""
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


@contextlib.contextmanager
def _announced(step: str) -> Iterator[None]:
    """Name a long step before it starts, and say afterwards how long it took."""
    sys.stderr.write(f"localchannel: {step}\n")
    start = time.monotonic()
    yield
    _report(step, start)


def _report(step: str, start: float) -> None:
    """Say how long a step took, if anybody will have noticed."""
    seconds = time.monotonic() - start
    if seconds > 1:
        sys.stderr.write(f"localchannel: {step}: {seconds:.1f} s\n")
