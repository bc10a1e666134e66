"""Finds packages that are unpacked while others are still fetched, and their final files.

All installers unpack a package in a cache. They link the files that hold no prefix from there, or
copy them if they cannot link. The mamba family reports nothing before the end, but `unpacked` can
find what it has unpacked. `overlap` sends the files.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from condainer.pipeline import tree
from condainer.pipeline.installers import unpacked
from condainer.pipeline.workplace import Final
from condainer.system import files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from condainer.pipeline.packages import Package
    from condainer.pipeline.workplace import OnReady

_POLL, _PAUSE = 0.1, 10
"""Seconds between two looks, and the least pause as a multiple of the time that a look takes."""
_FICLONE = 0x40049409
"""The ioctl that lets a file share another's blocks: ioctl_ficlone(2)."""


def site_packages(packages: Iterable[Package]) -> str:
    """Find the usual directory of Python modules, relative to the prefix.

    Args:
        packages: those of the environment.
    """
    version = next((package.version for package in packages if package.name == "python"), "")
    return f"lib/python{'.'.join(version.split('.')[:2])}/site-packages"


def can_link(cache: Path, directory: Path) -> bool:
    """Whether a file can have hard links in two directories.

    It is tried: one file system may be mounted twice.

    Args:
        cache: one of them.
        directory: the other.

    Raises:
        OSError: If nothing can be written to the first.
    """
    with tempfile.NamedTemporaryFile(prefix=".condainer-", dir=cache) as file:
        link = directory / Path(file.name).name
        try:
            link.hardlink_to(file.name)
        except OSError:
            return False
        link.unlink()
    return True


def is_linked(cache: Path, prefix: Path) -> bool:
    """Whether rattler makes hard links in a prefix: it does so if it cannot make reflinks.

    Args:
        cache: where packages are unpacked.
        prefix: where they are linked.

    Raises:
        OSError: If nothing can be written there.
    """
    if not can_link(cache, prefix):
        return False
    with tempfile.TemporaryFile(dir=cache) as source, tempfile.TemporaryFile(dir=prefix) as target:
        source.write(b"x" * 4096)
        source.flush()
        try:
            fcntl.ioctl(target.fileno(), _FICLONE, source.fileno())
        except OSError:
            return True
    return False


def cached(directory: Path, python: str, *, is_linked: bool) -> Iterator[Final]:
    """List the files of an unpacked package that will be in the prefix unchanged.

    Files that cannot be read are left out: the prefix itself is compared in the end.

    Args:
        directory: the package in the package cache.
        python: directory of the environment's Python modules, relative to the prefix.
        is_linked: whether they will be hard links; otherwise copies, with the same times.
    """
    index = entries(directory, "info/index.json")
    is_for_any = bool(index) and index[0].get("noarch") == "python"
    listed = entries(directory, "info/paths.json", "paths")
    replaced = {str(e.get("_path"))[:-3] for e in listed if e.get("prefix_placeholder")}
    known: dict[str, bool] = {}
    for entry in listed:
        name, checksum = entry.get("_path"), entry.get("sha256")
        is_plain = entry.get("path_type") == "hardlink" and not entry.get("no_link")
        if not isinstance(name, str) or not is_below(name) or not is_plain:
            continue
        if entry.get("prefix_placeholder") or _source_of(name) in replaced:
            continue
        if is_for_any and not name.startswith("site-packages/"):
            continue
        above = os.path.dirname(name)  # noqa: PTH120  (thousands)
        if above not in known:
            known[above] = files.leads_out(directory / above, within=directory)
        if known[above]:
            continue
        path = f"{directory}/{name}"
        name = f"{python}{name.removeprefix('site-packages')}" if is_for_any else name
        yield Final(name, path, checksum if isinstance(checksum, str) else "", not is_linked)


def _source_of(name: str) -> str:
    """The module of a `.pyc`, without `.py`; of another file its own name."""
    directory, _, last = name.rpartition("__pycache__/")
    return f"{directory}{last.rsplit('.', 2)[0]}" if last.endswith(".pyc") else name


def entries(within: Path, file: str, *keys: str) -> list[dict[str, Any]]:
    """Read the objects of a list in a JSON file, or a single object; none in all other cases.

    Args:
        within: the directory of the package.
        file: relative to it.
        keys: that lead to the list.
    """
    try:
        document = files.read_json(within / file, within=within)
    except (OSError, ValueError):
        return []
    for key in keys:
        document = document.get(key) if isinstance(document, dict) else None
    listed = document if isinstance(document, list) else [document]
    return [entry for entry in listed if isinstance(entry, dict)]


def is_below(name: str) -> bool:
    """Whether a path is in the shortest form, and one below the prefix that packages may own.

    Args:
        name: the path, relative to the prefix.
    """
    apart = ("/", "../", "conda-meta/", "__clobbers__/")
    return not name.startswith(apart) and os.path.normpath(name) == name


class CacheWatch:
    """Finds packages in package caches when they have been unpacked.

    Args:
        caches: directories that may be the cache.
        prefix: where the packages will be linked.
        packages: that are being installed.
        to_fetch: the stems of those that are not in the cache yet; None if not known.
        on_ready: takes each package that is unpacked and will be linked from there.
    """

    def __init__(
        self,
        caches: Iterable[Path],
        prefix: Path,
        packages: Sequence[Package],
        to_fetch: frozenset[str] | None,
        on_ready: OnReady,
    ) -> None:
        self._prefix = prefix
        self._search = unpacked.Search(caches, packages)
        self._to_fetch = to_fetch
        self._on_ready = on_ready
        self._python = site_packages(packages)
        self._found: dict[str, list[unpacked.Found]] = {}
        self._told: set[str] = set()
        self._links: dict[Path, bool] = {}

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            start = time.monotonic()
            await anyio.to_thread.run_sync(self.look)
            # Looking at a large cache on a slow file system must not take all the time.
            await anyio.sleep(max(_POLL, _PAUSE * (time.monotonic() - start)))

    def look(self, *, is_over: bool = False) -> None:
        """Announce the packages that have come since the last look.

        Args:
            is_over: whether all are linked, which shows from where.
        """
        search = self._search.look_well if is_over else self._search.look
        for found in search():
            self._found.setdefault(found.package.name, []).append(found)
        for name, some in self._found.items():
            directory = None if name in self._told else self._source(some, is_over=is_over)
            if directory is not None and self._can_link(directory.parent):
                self._told.add(name)
                tree.close_own(directory)
                self._on_ready(name, self._listing(directory))

    def close(self) -> None:
        """Take write permission from others, since files come from here into other environments."""
        for some in self._found.values():
            for found in some:
                tree.close_own(found.directory)

    def kept(self) -> dict[Package, list[Path]]:
        """List the packages that were in a cache before, and where; records there describe them.

        They are looked for again afterwards, since a damaged one may be removed.
        """
        kept: dict[Package, list[Path]] = {}
        for found in self._search.look_well():
            noted = unpacked.noted(found.directory, found.package)
            kept.setdefault(noted, []).append(found.directory)
        self._search.forget()
        return kept

    def places(self, package: Package) -> list[Path]:
        """Find where a package was linked from, when all are linked; several if that is not known.

        Args:
            package: which.
        """
        some = self._found.get(package.name, [])
        source = self._source(some, is_over=True)
        return [source] if source else [found.directory for found in some]

    def _source(self, some: Sequence[unpacked.Found], *, is_over: bool) -> Path | None:
        """Where a package is linked from, as far as that is certain.

        That is a directory that has come since the start. It is also one that was there before, if
        the package is not fetched and this is the only one: two versions of an installer may each
        keep a package in one cache.
        """
        for found in some:
            if found.is_new or (is_over and self._is_linked_from(found.directory)):
                return found.directory
        if len(some) == 1 and self._to_fetch is not None and self._search.is_thorough:
            is_fetched = some[0].package.stem in self._to_fetch
            return None if is_fetched else some[0].directory
        return None

    def _can_link(self, place: Path) -> bool:
        if place not in self._links:
            try:
                self._links[place] = can_link(place, self._prefix.parent)
            except OSError:
                self._links[place] = False
        return self._links[place]

    def _listing(self, directory: Path) -> Callable[[], Iterator[Final]]:
        return partial(cached, directory, self._python, is_linked=True)

    def _is_linked_from(self, directory: Path) -> bool:
        for final in self._listing(directory)():
            with contextlib.suppress(OSError, ValueError):
                return os.path.samestat(os.lstat(final.path), os.lstat(self._prefix / final.name))
        return False


def caches(environment: Mapping[str, str], executable: Path) -> list[Path]:
    """List the directories where an executable of the mamba family may keep packages.

    To ask the executable would take about a second.

    Args:
        environment: the variables that it runs with.
        executable: its path.
    """
    named = environment.get("CONDA_PKGS_DIRS", "").replace(":", ",").split(",")
    if any(named):
        return [Path(name).absolute() for name in named if name]
    home = Path(environment.get("HOME") or Path.home())
    root = environment.get("MAMBA_ROOT_PREFIX")
    roots = [
        *([Path(root)] if root else []),
        *(home / name for name in (".local/share/mamba", "micromamba", ".conda")),
        executable.resolve().parent.parent,
    ]
    return [each / "pkgs" for each in roots]
