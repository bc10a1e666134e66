"""Has rattler link packages, and follows it by its callbacks.

They tell how far it is and which packages are ready, and stop it before it links a package that
would write outside of the prefix.
"""

from __future__ import annotations

import contextlib
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import rattler
from rattler.install import InstallerReporter

from condainer.errors import BuildError, CondainerError
from condainer.pipeline import tree
from condainer.pipeline.installers import kept, network, patience, ready, solver
from condainer.system import removal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rattler import RepoDataRecord

    from condainer.pipeline.installers import contents
    from condainer.pipeline.packages import Package
    from condainer.pipeline.workplace import Workplace


class Announcer:
    """Announces each package once, as soon as it is in the package cache.

    It waits until it knows where `noarch: python` packages put their modules.

    Args:
        workplace: its `on_ready` is told.
        prefix: where the packages will be linked.
        cache: where they are unpacked.

    Attributes:
        workplace: as above.
        cache: as above.
    """

    def __init__(self, workplace: Workplace, prefix: Path, cache: Path) -> None:
        self.workplace = workplace
        self.cache = cache
        self._site_packages = ""
        self._prefix = prefix
        self._is_linked: bool | None = None
        self._told: set[str] = set()
        self._waiting: list[Package] = []

    def know(self, site_packages: str) -> None:
        """Set where modules are put.

        Args:
            site_packages: the directory, relative to the prefix; empty if it is not known yet.
        """
        self._site_packages = site_packages
        if site_packages:
            waiting, self._waiting = self._waiting, []
            for package in waiting:
                self.tell(package)

    def tell(self, package: Package) -> None:
        """Take note that a package is in the cache.

        Args:
            package: which.
        """
        unpacked = self.cache / package.stem
        if not self._site_packages:
            self._waiting.append(package)
            if package.name == "python":
                self.know(kept.site_packages(package, unpacked))
        elif package.name not in self._told:
            self._told.add(package.name)
            listing = partial(ready.cached, unpacked, self._site_packages, is_linked=self._links())
            self.workplace.on_ready(package.name, listing)

    def _links(self) -> bool:
        """Whether packages are linked; found out once, before rattler writes into the prefix."""
        if self._is_linked is None:
            try:
                self._is_linked = ready.is_linked(self.cache, self._prefix)
            except OSError:
                self._is_linked = False
        return self._is_linked


class _Reporter(InstallerReporter):
    """Receives rattler's callbacks, which come from its own threads.

    rattler hands the value that a callback returns to the later callbacks of the same operation:
    here always the number of the operation.

    Args:
        packages: what is installed.
        announcer: is told of packages that are ready.
        seen: the contents that have been checked.

    Attributes:
        refused: says which package must not be linked; None if all may.
    """

    def __init__(
        self, packages: Sequence[Package], announcer: Announcer, seen: contents.Contents
    ) -> None:
        self.refused: BuildError | None = None
        self._seen = seen
        self._workplace = announcer.workplace
        self._cache = announcer.cache
        self._announcer = announcer
        self._total = len(packages)
        self._linked = 0
        self._names: dict[int, str] = {}
        self._packages = {package.name: package for package in packages}
        self._fetched: dict[int, int] = {}
        self._to_fetch: dict[int, int] = {}
        self._fetching: set[int] = set()

    def signs(self) -> object:
        """A value that changes when bytes have come, and always if nothing is being fetched."""
        return dict(self._fetched) if self._fetching else object()

    def source(self) -> str:
        """The URLs that are being fetched."""
        names = (self._names.get(entry, "") for entry in sorted(self._fetching))
        return " or ".join(self._packages[name].url for name in names if name in self._packages)

    def on_populate_cache_start(self, operation: int, package_name: str) -> int:
        self._names[operation] = package_name
        return operation

    def on_download_start(self, cache_entry: int) -> int:
        self._fetching.add(cache_entry)
        self._to_fetch[cache_entry] = self._packages[self._names[cache_entry]].size
        return cache_entry

    def on_download_progress(self, download_idx: int, progress: int, total: int | None) -> None:
        self._fetched[download_idx] = progress
        if total:
            self._to_fetch[download_idx] = total
        self._tell(f"fetching {self._names.get(download_idx, '')}")

    def on_download_completed(self, download_idx: int) -> None:
        self._fetching.discard(download_idx)
        self._workplace.on_line(f"fetched {self._names.get(download_idx, '')}")

    def on_populate_cache_complete(self, cache_entry: int) -> None:
        """Check a package before rattler links it, which it does next.

        A callback cannot stop rattler. But rattler cannot link a package that is gone, so one that
        is refused is moved out of the cache.
        """
        package = self._packages[self._names[cache_entry]]
        try:
            check_contents(self._seen, [package], self._cache)
        except (BuildError, OSError) as error:
            self.refused = BuildError(f"the package {package.stem} cannot be read: {error}")
            if isinstance(error, BuildError):
                self.refused = error
            put_aside(self._cache / package.stem)
        else:
            self._announcer.tell(package)

    def on_link_start(self, operation: int, package_name: str) -> int:
        self._names[operation] = package_name
        return operation

    def on_link_complete(self, index: int) -> None:
        self._linked += 1
        text = f"linked {self._names.get(index, '')}"
        self._workplace.on_line(text)
        self._tell(text)

    def _tell(self, text: str) -> None:
        self._workplace.on_progress(
            self._linked,
            self._total,
            text,
            bytes_done=sum(self._fetched.values()),
            bytes_total=sum(self._to_fetch.values()),
        )


async def link(
    records: list[RepoDataRecord],
    packages: Sequence[Package],
    prefix: Path,
    announcer: Announcer,
    seen: contents.Contents,
) -> None:
    """Have rattler link packages, and fetch those that are not in the cache.

    Args:
        records: the packages, each after those it depends on.
        packages: the same ones.
        prefix: where to link them.
        announcer: is told of packages that are ready.
        seen: the contents that have been checked.

    Raises:
        BuildError: If rattler fails, or a package was refused.
    """
    # The callbacks of the base class do nothing.
    reporter = _Reporter(packages, announcer, seen)  # type: ignore[abstract]
    work = rattler.install(
        records,
        target_prefix=prefix,
        cache_dir=announcer.cache,
        installed_packages=[],
        execute_link_scripts=False,
        show_progress=False,
        client=network.client(),
        reporter=reporter,
    )
    try:
        await patience.unless_silent(work, reporter.signs, reporter.source)
    except BuildError:
        raise
    except Exception as error:  # as in `solver.find`
        failure = BuildError(f"rattler failed to install:\n{solver.explanation(error)}")
        raise (reporter.refused or failure) from error
    if reporter.refused is not None:
        raise reporter.refused


def check_contents(seen: contents.Contents, packages: Iterable[Package], cache: Path) -> None:
    """Check that packages write nothing outside of the prefix, as far as that is known by now.

    It also takes write permission from others: files come from the cache into other environments.

    Args:
        seen: the contents that have been checked; these are added.
        packages: those to check; what is not in the cache is skipped.
        cache: where they are unpacked.

    Raises:
        BuildError: If one would write outside. That one is moved out of the cache.
    """
    for package in packages:
        directory = cache / package.stem
        # Of a package that was in the cache before, rattler has read the list already.
        if directory.exists() and not seen.knows(package.stem, directory):
            try:
                seen.add(package.stem, directory)
            except BuildError:
                put_aside(directory)
                raise
            tree.close_own(directory)
    seen.check()


def put_aside(directory: Path) -> None:
    """Move a package out of the cache at once, or at least the part that rattler needs to link it.

    Args:
        directory: where it is unpacked.
    """
    for path in (directory, directory / "info"):
        with (
            contextlib.suppress(OSError),
            tempfile.TemporaryDirectory(prefix=".refused.", dir=path.parent) as aside,
        ):
            path.rename(Path(aside, "package"))
            with contextlib.suppress(CondainerError):
                removal.remove_tree(Path(aside, "package"))
            return
