"""The installer that comes with condainer: the rattler engine, in this process.

It solves and links, but runs no link scripts and compiles nothing: the pipeline's own stages do
that for every installer alike. https://conda.github.io/rattler/py-rattler/
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio.to_thread
import rattler
from rattler.install import InstallerReporter

from condainer.errors import BuildError, CondainerError
from condainer.pipeline import credentials, tree
from condainer.pipeline.installers import (
    checking,
    contents,
    fetching,
    kept,
    network,
    patience,
    ready,
    solver,
    unpacked,
)
from condainer.pipeline.installers.interface import Request, Solution
from condainer.pipeline.packages import Package
from condainer.system import removal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rattler import RepoDataRecord

    from condainer.pipeline.workplace import Workplace


class Rattler:
    """The rattler engine."""

    vouches_for_scripts = False

    @property
    def description(self) -> str:
        """Name and version."""
        return f"rattler {rattler.__version__}"

    def check(self, request: Request) -> None:
        """It can do all that is asked."""

    async def solve(self, request: Request, workplace: Workplace) -> Solution:
        """Find the packages with rattler's solver; those of a lock file are known."""
        if request.locked:
            return await anyio.to_thread.run_sync(_of_request, request)
        workplace.on_line(f"{self.description}: solving for {', '.join(request.specs)}")
        ordered = _in_order(await solver.find(request))
        packages = tuple([await _package(record) for record in ordered])
        for package in packages:
            workplace.on_line(f"  {package.stem}  {package.url}")
        return Solution(
            packages,
            to_fetch=await solver.bytes_to_fetch(request, ordered),
            cache=solver.cache_of(request).packages,
            records=ordered,
        )

    async def install(
        self, request: Request, solution: Solution, workplace: Workplace
    ) -> frozenset[str]:
        """Fetch and link the packages of a solution."""
        cache = solver.cache_of(request).packages
        is_locked = bool(request.locked)
        there = _There(workplace, request.prefix, cache)
        before = {p: [cache / p.stem] for p in solution.packages if (cache / p.stem).is_dir()}
        sound = await checking.mend(before, workplace, is_locked=is_locked)
        urls = solver.locations(request) if is_locked else _urls(solution)
        fetch = fetching.Fetching(request, urls, cache, workplace, there.tell)
        there.know(_place_of_modules(solution, cache, fetch.missing))
        await patience.unless_silent(fetch.run(), fetch.signs, fetch.source)
        records = _of_lock(urls, fetch, cache) if is_locked else _completed(solution, fetch)
        _check_places(records)
        site_packages = _site_packages(records, solution.packages)
        there.know(site_packages)
        seen = contents.Contents(site_packages)
        await anyio.to_thread.run_sync(_look_at, seen, solution.packages, cache)
        workplace.check()
        # The base class does nothing in the callbacks that are left to it.
        reporter = _Reporter(  # type: ignore[abstract]
            workplace, solution.packages, cache, there, seen
        )
        work = rattler.install(
            records,
            target_prefix=request.prefix,
            cache_dir=cache,
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
        places = {p: cache / p.stem for p in solution.packages if p not in fetch.missing}
        left = {p: [place] for p, place in places.items() if place not in sound}
        await checking.check(left, workplace, is_locked=is_locked)
        await anyio.to_thread.run_sync(_tidy, request.prefix, workplace)
        return frozenset()


class _There:
    """Tells once of each package that is in the cache, and from there goes into the prefix.

    It waits with that until it knows where packages for any Python put their modules.

    Args:
        workplace: is told.
        prefix: where it goes.
        cache: where it is unpacked.
    """

    def __init__(self, workplace: Workplace, prefix: Path, cache: Path) -> None:
        self._workplace = workplace
        self._cache = cache
        self._site_packages = ""
        self._prefix = prefix
        self._is_linked: bool | None = None
        self._told: set[str] = set()
        self._waiting: list[Package] = []

    def know(self, site_packages: str) -> None:
        """Where modules are put, below the prefix; empty where that is not known yet."""
        self._site_packages = site_packages
        if site_packages:
            waiting, self._waiting = self._waiting, []
            for package in waiting:
                self.tell(package)

    def tell(self, package: Package) -> None:
        """A package is in the cache."""
        unpacked = self._cache / package.stem
        if not self._site_packages:
            self._waiting.append(package)
            if package.name == "python":
                self.know(kept.site_packages(package, unpacked))
        elif package.name not in self._told:
            self._told.add(package.name)
            if self._is_linked is None:  # before anything is linked: it writes into the prefix
                try:
                    self._is_linked = ready.is_linked(self._cache, self._prefix)
                except OSError:
                    self._is_linked = False
            site_packages, is_linked = self._site_packages, self._is_linked
            listing = partial(ready.cached, unpacked, site_packages, is_linked=is_linked)
            self._workplace.on_ready(package.name, listing)


class _Reporter(InstallerReporter):
    """Passes rattler's callbacks on, which come from its own threads.

    The tokens that rattler hands back are the number of the operation, for every kind of callback.

    Args:
        workplace: takes them.
        packages: what is installed.
        cache: where they are unpacked.
        there: is told of those that are.
        seen: what has been looked at, and may be linked.

    Attributes:
        refused: says which package must not be linked.
    """

    def __init__(
        self,
        workplace: Workplace,
        packages: tuple[Package, ...],
        cache: Path,
        there: _There,
        seen: contents.Contents,
    ) -> None:
        self.refused: BuildError | None = None
        self._seen = seen
        self._workplace = workplace
        self._cache = cache
        self._there = there
        self._total = len(packages)
        self._linked = 0
        self._names: dict[int, str] = {}
        self._packages = {package.name: package for package in packages}
        self._fetched: dict[int, int] = {}
        self._to_fetch: dict[int, int] = {}
        self._fetching: set[int] = set()

    def signs(self) -> object:
        """What changes when something has come; or always, while nothing is being fetched."""
        return dict(self._fetched) if self._fetching else object()

    def source(self) -> str:
        """What is being fetched."""
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
        """See whether a package may be linked, which rattler does next.

        It takes no "no" for an answer, but it cannot link what is no longer there.
        """
        package = self._packages[self._names[cache_entry]]
        try:
            _look_at(self._seen, [package], self._cache)
        except (BuildError, OSError) as error:
            self.refused = BuildError(f"the package {package.stem} cannot be read: {error}")
            if isinstance(error, BuildError):
                self.refused = error
            put_aside(self._cache / package.stem)
        else:
            self._there.tell(package)

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


def _urls(solution: Solution) -> dict[Package, str]:
    """Where the packages that the solver has found are, with the credentials of their channels."""
    records = _records(solution)
    return {p: record.url for p, record in zip(solution.packages, records, strict=True)}


def _records(solution: Solution) -> list[RepoDataRecord]:
    assert isinstance(solution.records, list)  # noqa: S101  (what `solve` gave)
    return solution.records


def _of_request(request: Request) -> Solution:
    """The packages of a lock file, and how much is not in the package cache yet."""
    cache, packages = solver.cache_of(request).packages, request.locked
    missing = [p for p in packages if not kept.is_there(p, cache / p.stem, is_locked=True)]
    return Solution(packages, to_fetch=sum(package.size for package in missing), cache=cache)


def _of_lock(
    urls: Mapping[Package, str], fetch: fetching.Fetching, cache: Path
) -> list[RepoDataRecord]:
    """The records of the packages of a lock file, which are all in the cache now.

    They say the same whether a package has just been fetched or not: what the lock file leaves out
    is filled in only of those that are fetched each time.
    """
    records = []
    for package, url in urls.items():
        directory = cache / package.stem
        sha256, md5 = fetch.digests.get(package, ("", ""))
        sha256 = package.sha256 or sha256
        size = package.size or (0 if package.sha256 else fetch.sizes.get(package, 0))
        if unpacked.archive_of(directory) != sha256:
            raise BuildError(
                f"another program uses another {package.stem} in the package cache {cache}",
                "build again when it has ended, or have another cache with the key package_cache",
            )
        md5 = package.md5 or ("" if package.sha256 else md5)
        package = replace(package, sha256=sha256, md5=md5, size=size)  # noqa: PLW2901
        records.append(kept.record(package, url, directory))
    return _in_order(records)


def _completed(solution: Solution, fetch: fetching.Fetching) -> list[RepoDataRecord]:
    """The records of the solver, with checksum and size of archives that no channel lists."""
    records = _records(solution)
    for record, package in zip(records, solution.packages, strict=True):
        if not (record.sha256 or record.md5):
            digests = fetch.digests.get(package, (package.sha256, package.md5))
            sha256, md5 = map(bytes.fromhex, digests)
            record.sha256, record.md5 = sha256 or None, md5 or None
            record.size = fetch.sizes.get(package, package.size) or None
    return records


def _place_of_modules(solution: Solution, cache: Path, missing: Iterable[Package]) -> str:
    """Where packages for any Python put their modules, below the prefix.

    Empty where a Python that is not there yet has to tell.
    """
    if solution.records is not None:
        return _site_packages(_records(solution), solution.packages)
    python = next((package for package in solution.packages if package.name == "python"), None)
    if python is None:
        return ready.site_packages(solution.packages)
    return "" if python in missing else kept.site_packages(python, cache / python.stem)


def _site_packages(records: Iterable[RepoDataRecord], packages: Iterable[Package]) -> str:
    named = (record.python_site_packages_path for record in records)
    return next(filter(None, named), "") or ready.site_packages(packages)


def _in_order(records: Iterable[RepoDataRecord]) -> list[RepoDataRecord]:
    """The records, each after those it depends on."""
    by_name = {record.name.normalized: record for record in records}
    order = rattler.PackageRecord.sort_topologically(list(by_name.values()))
    return [by_name[record.name.normalized] for record in order]


def _check_places(records: Iterable[RepoDataRecord]) -> None:
    """See that the channel has modules put below the prefix.

    Raises:
        BuildError: where it does not.
    """
    for record in records:
        package = f"{record.name.normalized}-{record.version}-{record.build}"
        contents.check_path(package, Path(record.python_site_packages_path or ""))


def _look_at(seen: contents.Contents, packages: Iterable[Package], cache: Path) -> None:
    """See that nothing will be written outside of the prefix, as far as that is known by now.

    Of a package that is in the cache already rattler has read the list before it tells of it. And
    let nobody else write to what is there: from there it comes into other environments.

    Raises:
        BuildError: where something would be.
    """
    for package in packages:
        directory = cache / package.stem
        if directory.exists() and not seen.knows(package.stem, directory):
            try:
                seen.add(package.stem, directory)
            except BuildError:
                put_aside(directory)
                raise
            tree.close_own(directory)
    seen.check()


def put_aside(directory: Path) -> None:
    """Take a package out of the cache at once, or at least what rattler cannot link it without."""
    for path in (directory, directory / "info"):
        with (
            contextlib.suppress(OSError),
            tempfile.TemporaryDirectory(prefix=".refused.", dir=path.parent) as aside,
        ):
            path.rename(Path(aside, "package"))
            with contextlib.suppress(CondainerError):
                removal.remove_tree(Path(aside, "package"))
            return


def _tidy(prefix: Path, workplace: Workplace) -> None:
    """Take out of a prefix what rattler leaves there and no other installer does."""
    # A mark for backup programs to skip the directory.
    (prefix / "CACHEDIR.TAG").unlink(missing_ok=True)
    # The losers where two packages own one path.
    losers = prefix / "__clobbers__"
    if not losers.is_symlink() and losers.is_dir():
        for path in sorted(
            e.path for e in tree.walk(losers) if not e.is_dir(follow_symlinks=False)
        ):
            package, _, name = path[len(str(losers)) + 1 :].partition("/")
            workplace.on_line(f"warning: {name} of {package} is left out: another has it")
    if os.path.lexists(losers):
        removal.remove_tree(losers)


async def _package(record: RepoDataRecord) -> Package:
    package = Package(
        name=record.name.normalized,
        version=str(record.version),
        build=str(record.build),
        build_number=record.build_number,
        channel=credentials.without(record.channel or "").rstrip("/"),
        subdir=record.subdir,
        url=credentials.without(record.url),
        md5=solver.hexadecimal(record.md5),
        sha256=solver.hexadecimal(record.sha256),
        size=record.size or 0,
    )
    return await anyio.to_thread.run_sync(checking.completed, package)
