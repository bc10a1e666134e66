"""Which packages are there while others are being fetched, and which of their files stay.

All installers unpack a package in a cache and link from there what holds no prefix, or copy it
where they cannot link. The mamba family says nothing before the end; but it writes
`info/repodata_record.json` there when a package is unpacked. What comes of the files is the
business of `overlap`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from condainer import files
from condainer.pipeline.installers import Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from condainer.pipeline.installers import OnReady, Package

_POLL = 0.1
_FICLONE = 0x40049409
"""The request that makes a file share another's blocks: ioctl_ficlone(2)."""
_DONE = "info/repodata_record.json"


def site_packages(packages: Iterable[Package]) -> str:
    """The directory of the environment's Python modules below the prefix, as usual."""
    version = next((package.version for package in packages if package.name == "python"), "")
    return f"lib/python{'.'.join(version.split('.')[:2])}/site-packages"


def can_link(cache: Path, directory: Path) -> bool:
    """Whether a file can have a name in both: also one file system may be mounted twice.

    Raises:
        OSError: where nothing can be written in the first.
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
    """Whether rattler puts hard links into a prefix: it does where it can do nothing better.

    Raises:
        OSError: where nothing can be written there.
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


def cached(unpacked: Path, python: str, *, is_linked: bool) -> Iterator[Final]:
    """The files of an unpacked package that will be in the prefix as they are.

    What cannot be read is not listed: whoever asks looks at the prefix itself in the end.

    Args:
        unpacked: the package in the package cache.
        python: directory of the environment's Python modules below the prefix, where packages for
            any Python put theirs.
        is_linked: whether they will be hard links; otherwise copies, with the same times.
    """
    index = _entries(unpacked, "info/index.json")
    is_for_any = bool(index) and index[0].get("noarch") == "python"
    entries = _entries(unpacked, "info/paths.json", "paths")
    replaced = {str(e.get("_path"))[:-3] for e in entries if e.get("prefix_placeholder")}
    for entry in entries:
        name, checksum = entry.get("_path"), entry.get("sha256")
        is_plain = entry.get("path_type") == "hardlink" and not entry.get("no_link")
        if not isinstance(name, str) or not _is_below(name) or not is_plain:
            continue
        if entry.get("prefix_placeholder") or _source_of(name) in replaced:
            continue
        if is_for_any and not name.startswith("site-packages/"):
            continue
        path = f"{unpacked}/{name}"
        name = f"{python}{name.removeprefix('site-packages')}" if is_for_any else name
        yield Final(name, path, checksum if isinstance(checksum, str) else "", not is_linked)


def _source_of(name: str) -> str:
    """The module that a `.pyc` is of, without `.py`; another file's own name."""
    directory, _, last = name.rpartition("__pycache__/")
    return f"{directory}{last.rsplit('.', 2)[0]}" if last.endswith(".pyc") else name


def _entries(within: Path, file: str, *keys: str) -> list[dict[str, Any]]:
    """The objects in a list of a JSON file, or the object that it is itself; none in any other."""
    try:
        document = files.read_json(within / file, within=within)
    except (OSError, ValueError):
        return []
    for key in keys:
        document = document.get(key) if isinstance(document, dict) else None
    listed = document if isinstance(document, list) else [document]
    return [entry for entry in listed if isinstance(entry, dict)]


def _is_below(name: str) -> bool:
    """Whether it is a path below the prefix that packages own, as short as it can be."""
    apart = ("/", "../", "conda-meta/", "__clobbers__/")
    return not name.startswith(apart) and os.path.normpath(name) == name


class CacheWatch:
    """Looks which packages have been unpacked in a package cache.

    Args:
        caches: directories of which one is the cache: where there are several, that into which
            something comes.
        prefix: what is linked from there has to be on the same file system.
        packages: that are being installed.
        on_ready: is told of each that is there.
    """

    def __init__(
        self, caches: Sequence[Path], prefix: Path, packages: Sequence[Package], on_ready: OnReady
    ) -> None:
        self._prefix = prefix
        self._waiting = {package.stem: package for package in packages}
        self._on_ready = on_ready
        self._python = site_packages(packages)
        self._before = {cache: set(self._there(cache)) for cache in caches}
        self._cache = caches[0] if len(caches) == 1 else None
        self._is_linked: bool | None = None

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await anyio.to_thread.run_sync(self.look)
            await anyio.sleep(_POLL)

    def look(self, *, is_over: bool = False) -> None:
        """Tell of those that have come since the last time.

        Args:
            is_over: whether all are linked, and so it can be seen from where.
        """
        self._cache = self._cache or self._find(is_over=is_over)
        if self._cache is None or not self._waiting:
            return
        there = list(self._there(self._cache))
        if there and self._is_linked is None:
            try:
                self._is_linked = can_link(self._cache, self._prefix.parent)
            except OSError:
                self._is_linked = False
        for stem in there if self._is_linked else ():
            listing = self._listing(self._cache, stem)
            self._on_ready(self._waiting.pop(stem).name, listing)

    def _there(self, cache: Path) -> Iterator[str]:
        """Those that are waited for, and have been unpacked in a cache."""
        for stem, package in list(self._waiting.items()):
            if _is_there(package, cache / stem):
                yield stem

    def _listing(self, cache: Path, stem: str) -> Callable[[], Iterator[Final]]:
        return partial(cached, cache / stem, self._python, is_linked=True)

    def _find(self, *, is_over: bool) -> Path | None:
        for cache, before in self._before.items():
            there = list(self._there(cache))
            if any(stem not in before for stem in there):
                return cache
            if is_over and any(self._is_linked_from(cache, stem) for stem in there):
                return cache
        return None

    def _is_linked_from(self, cache: Path, stem: str) -> bool:
        for final in self._listing(cache, stem)():
            with contextlib.suppress(OSError, ValueError):
                return os.path.samestat(os.lstat(final.path), os.lstat(self._prefix / final.name))
        return False


def _is_there(package: Package, unpacked: Path) -> bool:
    """Whether a package, and not another of its name, has been unpacked."""
    if not os.path.lexists(unpacked / _DONE):
        return False
    record = next(iter(_entries(unpacked, _DONE)), {})
    known = [(record.get(key), getattr(package, key)) for key in ("sha256", "md5", "url")]
    return all(noted == wanted for noted, wanted in known if noted and wanted)


def caches(environment: Mapping[str, str], executable: Path) -> list[Path]:
    """Where an executable of the mamba family may keep packages, by its variables and its place.

    To ask it would take a second of some.

    Args:
        environment: the variables it runs with.
        executable: the program.
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
