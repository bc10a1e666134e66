"""The installer that comes with condainer: the rattler engine, in this process.

It solves and links, but runs no scripts and compiles nothing, which the pipeline's own stages do
for every installer. https://conda.github.io/rattler/py-rattler/
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import anyio.to_thread
import rattler

from condainer.errors import BuildError
from condainer.pipeline import credentials, tree
from condainer.pipeline.installers import (
    checking,
    contents,
    fetching,
    kept,
    linking,
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
        """Do nothing: it can do all that can be asked.

        Args:
            request: what to install.
        """

    async def solve(self, request: Request, workplace: Workplace) -> Solution:
        """Find the packages with rattler's solver; those of a lock file are known already.

        Args:
            request: what to install.
            workplace: takes lines for the log.

        Raises:
            BuildError: If there is no solution.
        """
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
        """Fetch and link the packages of a solution.

        Args:
            request: what to install.
            solution: what `solve` returned.
            workplace: takes progress, and packages that are ready.

        Returns:
            No names: rattler runs no scripts here.

        Raises:
            BuildError: If a package cannot be fetched, is damaged, or would write outside.
        """
        cache = solver.cache_of(request).packages
        is_locked = bool(request.locked)
        announcer = linking.Announcer(workplace, request.prefix, cache)
        before = {p: [cache / p.stem] for p in solution.packages if (cache / p.stem).is_dir()}
        sound = await checking.mend(before, workplace, is_locked=is_locked)
        urls = solver.locations(request) if is_locked else _urls(solution)
        fetch = fetching.Fetching(request, urls, cache, workplace, announcer.tell)
        announcer.know(_place_of_modules(solution, cache, fetch.missing))
        await patience.unless_silent(fetch.run(), fetch.signs, fetch.source)
        records = _of_lock(urls, fetch, cache) if is_locked else _completed(solution, fetch)
        _check_places(records)
        site_packages = _site_packages(records, solution.packages)
        announcer.know(site_packages)
        seen = contents.Contents(site_packages)
        await anyio.to_thread.run_sync(linking.check_contents, seen, solution.packages, cache)
        workplace.check()
        await linking.link(records, solution.packages, request.prefix, announcer, seen)
        places = {p: cache / p.stem for p in solution.packages if p not in fetch.missing}
        left = {p: [place] for p, place in places.items() if place not in sound}
        await checking.check(left, workplace, is_locked=is_locked)
        await anyio.to_thread.run_sync(_tidy, request.prefix, workplace)
        return frozenset()


def _urls(solution: Solution) -> dict[Package, str]:
    """Where the packages of the solver are, with the credentials of their channels."""
    records = _records(solution)
    return {p: record.url for p, record in zip(solution.packages, records, strict=True)}


def _records(solution: Solution) -> list[RepoDataRecord]:
    assert isinstance(solution.records, list)  # noqa: S101  (what `solve` gave)
    return solution.records


def _of_request(request: Request) -> Solution:
    """The packages of a lock file, and how much of them is missing in the package cache."""
    cache, packages = solver.cache_of(request).packages, request.locked
    missing = [p for p in packages if not kept.is_there(p, cache / p.stem, is_locked=True)]
    return Solution(packages, to_fetch=sum(package.size for package in missing), cache=cache)


def _of_lock(
    urls: Mapping[Package, str], fetch: fetching.Fetching, cache: Path
) -> list[RepoDataRecord]:
    """The records of the packages of a lock file, which are all in the cache now.

    They are the same whether a package was just fetched or not: what the lock file leaves out is
    only filled in for packages that are fetched each time.
    """
    records = []
    for package, url in urls.items():
        directory = cache / package.stem
        sha256, md5 = fetch.digests.get(package, ("", ""))
        sha256 = package.sha256 or sha256
        size = package.size or (0 if package.sha256 else fetch.sizes.get(package, 0))
        if unpacked.archive_of(directory) != sha256:
            raise BuildError(
                f"another program uses a different {package.stem} in the package cache {cache}",
                "build again when it has ended, or choose another cache with the key package_cache",
            )
        md5 = package.md5 or ("" if package.sha256 else md5)
        package = replace(package, sha256=sha256, md5=md5, size=size)  # noqa: PLW2901
        records.append(kept.record(package, url, directory))
    return _in_order(records)


def _completed(solution: Solution, fetch: fetching.Fetching) -> list[RepoDataRecord]:
    """The records of the solver, with checksum and size of archives if no channel lists them."""
    records = _records(solution)
    for record, package in zip(records, solution.packages, strict=True):
        if not (record.sha256 or record.md5):
            digests = fetch.digests.get(package, (package.sha256, package.md5))
            sha256, md5 = map(bytes.fromhex, digests)
            record.sha256, record.md5 = sha256 or None, md5 or None
            record.size = fetch.sizes.get(package, package.size) or None
    return records


def _place_of_modules(solution: Solution, cache: Path, missing: Iterable[Package]) -> str:
    """Where `noarch: python` packages put their modules, relative to the prefix.

    Empty if a Python that is not in the cache yet has to tell.
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
    """Sort the records, each after those it depends on."""
    by_name = {record.name.normalized: record for record in records}
    order = rattler.PackageRecord.sort_topologically(list(by_name.values()))
    return [by_name[record.name.normalized] for record in order]


def _check_places(records: Iterable[RepoDataRecord]) -> None:
    """Check that the channel has modules put below the prefix.

    Raises:
        BuildError: If it does not.
    """
    for record in records:
        package = f"{record.name.normalized}-{record.version}-{record.build}"
        contents.check_path(package, Path(record.python_site_packages_path or ""))


def _tidy(prefix: Path, workplace: Workplace) -> None:
    """Remove from a prefix what rattler leaves there and no other installer does."""
    # It tells backup programs to skip the directory.
    (prefix / "CACHEDIR.TAG").unlink(missing_ok=True)
    # If two packages own a path, one of the two files is put here.
    losers = prefix / "__clobbers__"
    if not losers.is_symlink() and losers.is_dir():
        for path in sorted(
            e.path for e in tree.walk(losers) if not e.is_dir(follow_symlinks=False)
        ):
            package, _, name = path[len(str(losers)) + 1 :].partition("/")
            workplace.on_line(f"warning: {name} of {package} is left out: another package has it")
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
