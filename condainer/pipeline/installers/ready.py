"""Which packages are there while others are being fetched, and which of their files stay.

All installers unpack a package in a cache and link from there what holds no prefix, or copy it
where they cannot link. The mamba family says nothing before the end; but it writes
`info/repodata_record.json` there when a package is unpacked. What comes of the files is the
business of `overlap`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
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
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from condainer.pipeline.installers import OnReady, Package

_POLL = 0.1
_FICLONE = 0x40049409
"""The request that makes a file share another's blocks: ioctl_ficlone(2)."""
_DONE = "info/repodata_record.json"


def site_packages(packages: Iterable[Package]) -> str:
    """The directory of the environment's Python modules below the prefix, as usual."""
    version = next((package.version for package in packages if package.name == "python"), "")
    return f"lib/python{'.'.join(version.split('.')[:2])}/site-packages"


def is_linked(cache: Path, prefix: Path) -> bool:
    """Whether rattler puts hard links into a prefix: it does where it can do nothing better.

    Raises:
        OSError: where nothing can be written there.
    """
    if cache.stat().st_dev != prefix.stat().st_dev:
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
        document = json.loads(files.read(within / file, within=within))
    except (OSError, ValueError, RecursionError):
        return []
    for key in keys:
        document = document.get(key) if isinstance(document, dict) else None
    listed = document if isinstance(document, list) else [document]
    return [entry for entry in listed if isinstance(entry, dict)]


def _is_below(name: str) -> bool:
    apart = ("/", "conda-meta/", "__clobbers__/")
    return not name.startswith(apart) and ".." not in name.split("/")


class CacheWatch:
    """Looks which packages have been unpacked in a package cache.

    Args:
        caches: directories that may be the cache; those that are not there are passed over.
        prefix: what is linked from there has to be on the same file system.
        packages: that are being installed.
        on_ready: is told of each that is there.
    """

    def __init__(
        self, caches: Sequence[Path], prefix: Path, packages: Sequence[Package], on_ready: OnReady
    ) -> None:
        self._caches = caches
        self._device = prefix.parent.stat().st_dev
        self._waiting = {package.stem: package for package in packages}
        self._on_ready = on_ready
        self._python = site_packages(packages)

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await anyio.to_thread.run_sync(self.look)
            await anyio.sleep(_POLL)

    def look(self) -> None:
        """Tell of those that have come since the last time."""
        for cache in self._caches:
            for stem, package in list(self._waiting.items()):
                unpacked = cache / stem
                if _is_there(package, unpacked):
                    del self._waiting[stem]
                    with contextlib.suppress(FileNotFoundError):  # it is unpacked anew
                        if unpacked.stat().st_dev == self._device:
                            listing = partial(cached, unpacked, self._python, is_linked=True)
                            self._on_ready(package.name, listing)


def _is_there(package: Package, unpacked: Path) -> bool:
    """Whether a package, and not another of its name, has been unpacked."""
    if not os.path.lexists(unpacked / _DONE):
        return False
    record = next(iter(_entries(unpacked, _DONE)), {})
    known = [(record.get(key), getattr(package, key)) for key in ("sha256", "md5", "url")]
    return all(noted == wanted for noted, wanted in known if noted and wanted)


def caches(environment: Mapping[str, str], executable: Path) -> list[Path]:
    """Where an executable of the mamba family may keep packages, by its variables and its place.

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
