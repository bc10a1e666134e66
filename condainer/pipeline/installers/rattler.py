"""The installer that comes with condainer: the rattler engine, in this process.

It solves and links, but runs no link scripts and compiles nothing: the pipeline's own stages do
that for every installer alike. https://conda.github.io/rattler/py-rattler/
"""

from __future__ import annotations

import hashlib
import re
import shutil
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING

import anyio.to_thread
import rattler
from anyio import from_thread
from rattler.install import InstallerReporter

from condainer.errors import BuildError
from condainer.pipeline.installers import Package, Request, Solution, Workplace

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rattler import MatchSpec, RepoDataRecord

DEFAULT_CHANNELS = ("conda-forge",)
"""Where environment.yml names no channel."""

_DEFAULTS = ("https://repo.anaconda.com/pkgs/main", "https://repo.anaconda.com/pkgs/r")
"""What conda means by the channel called `defaults`."""

_LISTS = "rattler-repodata"
"""Where the lists of channels go in the package cache, away from those of other programs."""

_ARCHIVES = (".conda", ".tar.bz2")
_EXPLANATION_LINES = 25


class Rattler:
    """The rattler engine."""

    runs_link_scripts = False
    makes_prefix = False

    @property
    def description(self) -> str:
        """Name and version."""
        return f"rattler {rattler.__version__}"

    def check(self, request: Request) -> None:
        """It can do all that is asked."""

    async def solve(self, request: Request, workplace: Workplace) -> Solution:
        """Find the packages with rattler's solver."""
        workplace.on_line(f"{self.description}: solving for {', '.join(request.specs)}")
        try:
            if request.locked:
                records = await _locked(request)
            else:
                specs, channels = _parsed(request)
                records = await rattler.solve(
                    sources=[rattler.Channel(channel) for channel in channels],
                    specs=specs,
                    gateway=_gateway(request),
                    virtual_packages=rattler.VirtualPackage.detect(
                        rattler.VirtualPackageOverrides.from_env()  # CONDA_OVERRIDE_CUDA and others
                    ),
                )
        except BuildError:
            raise
        except Exception as error:  # rattler raises two dozen unrelated types
            raise BuildError(f"rattler found no solution:\n{explanation(error)}") from error
        ordered = _in_order(records)
        packages = tuple(_package(record) for record in ordered)
        for package in packages:
            workplace.on_line(f"  {package.stem}  {package.url}")
        return Solution(packages, ordered)

    async def install(self, request: Request, solution: Solution, workplace: Workplace) -> None:
        """Fetch and link the packages of a solution."""
        records = solution.records
        assert isinstance(records, list)  # noqa: S101  (what `solve` gave)
        await anyio.to_thread.run_sync(_verify_local, solution.packages)
        # The base class does nothing in the callbacks that are left to it.
        reporter = _Reporter(workplace, solution.packages)  # type: ignore[abstract]
        try:
            await rattler.install(
                records,
                target_prefix=request.prefix,
                cache_dir=request.package_cache,
                installed_packages=[],
                execute_link_scripts=False,
                show_progress=False,
                reporter=reporter,
            )
        except Exception as error:  # as above
            raise BuildError(f"rattler failed to install:\n{explanation(error)}") from error
        await anyio.to_thread.run_sync(_tidy, request.prefix, workplace)


class _Reporter(InstallerReporter):
    """Passes rattler's callbacks on, which come from its own threads.

    The tokens that rattler hands back are the number of the operation, for every kind of callback.
    """

    def __init__(self, workplace: Workplace, packages: tuple[Package, ...]) -> None:
        self._workplace = workplace
        self._total = len(packages)
        self._linked = 0
        self._names: dict[int, str] = {}
        self._sizes = {package.name: package.size for package in packages}
        self._fetched: dict[int, int] = {}
        self._to_fetch: dict[int, int] = {}

    def on_populate_cache_start(self, operation: int, package_name: str) -> int:
        self._names[operation] = package_name
        return operation

    def on_download_start(self, cache_entry: int) -> int:
        self._to_fetch[cache_entry] = self._sizes.get(self._names.get(cache_entry, ""), 0)
        return cache_entry

    def on_download_progress(self, download_idx: int, progress: int, total: int | None) -> None:
        self._fetched[download_idx] = progress
        if total:
            self._to_fetch[download_idx] = total
        self._tell(f"fetching {self._names.get(download_idx, '')}")

    def on_download_completed(self, download_idx: int) -> None:
        self._workplace.on_line(f"fetched {self._names.get(download_idx, '')}")

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


def explanation(error: Exception) -> str:
    """What matters of an error of rattler's."""
    kept: list[str] = []
    for line in str(error).splitlines():
        text = line.rstrip()
        if text and text not in kept:
            kept.append(text)
    return "\n".join(f"  {line}" for line in kept[:_EXPLANATION_LINES] or [type(error).__name__])


def _parsed(request: Request) -> tuple[list[MatchSpec], tuple[str, ...]]:
    """The specs in rattler's form, and all channels to look in.

    Raises:
        BuildError: where rattler cannot read a spec.
    """
    specs = []
    channels: list[str] = []
    for channel in request.channels or DEFAULT_CHANNELS:
        channels += _DEFAULTS if channel == "defaults" else [channel]
    for text in request.specs:
        is_url = re.match(r"[a-z]+://", text) and text.partition("#")[0].endswith(_ARCHIVES)
        try:
            spec = rattler.MatchSpec.from_url(text) if is_url else rattler.MatchSpec(text)
        except Exception as error:  # as in Rattler
            raise BuildError(f"cannot read the specification '{text}': {error}") from error
        if spec.channel is not None:
            channels.append(spec.channel.base_url)
        specs.append(spec)
    return specs, tuple(dict.fromkeys(channel.rstrip("/") for channel in channels))


def _gateway(request: Request) -> rattler.Gateway:
    """What reads the lists of channels; it keeps copies of them."""
    cache = request.package_cache
    return rattler.Gateway(cache_dir=cache / _LISTS) if cache else rattler.Gateway()


async def _locked(request: Request) -> list[RepoDataRecord]:
    """The records of the exact packages of a lock file.

    Raises:
        BuildError: where a channel has another file under a locked URL, or no such file.
    """
    wanted = {package.url: package for package in request.locked}
    found: dict[str, RepoDataRecord] = {}
    lists = await _gateway(request).query(
        [rattler.Channel(channel) for channel in {p.channel: None for p in wanted.values()}],
        [rattler.Subdir.current(), "noarch"],
        list({package.name: None for package in wanted.values()}),
        recursive=False,
    )
    for record in (record for records in lists for record in records):
        package = wanted.get(record.url)
        if package is not None:
            same = _hex(record.md5) == package.md5 if package.md5 else True
            if not same or (package.sha256 and _hex(record.sha256) != package.sha256):
                raise BuildError(f"{record.url} is no longer the file that was locked")
            found[record.url] = record
    missing = [url for url in wanted if url not in found]
    if missing:
        raise BuildError(f"no longer in its channel: {', '.join(missing)}")
    return list(found.values())


def _in_order(records: Iterable[RepoDataRecord]) -> list[RepoDataRecord]:
    """The records, each after those it depends on."""
    by_name = {record.name.normalized: record for record in records}
    order = rattler.PackageRecord.sort_topologically(list(by_name.values()))
    return [by_name[record.name.normalized] for record in order]


def _verify_local(packages: Iterable[Package]) -> None:
    """Compare packages of file:// channels with their checksums, which rattler does not.

    Raises:
        BuildError: where one is not what its channel says.
    """
    for package in packages:
        address = urllib.parse.urlsplit(package.url)
        path = Path(urllib.parse.unquote(address.path))
        if address.scheme != "file" or not package.sha256 or not path.exists():
            continue
        from_thread.check_cancelled()
        found = _sha256(path)
        if found != package.sha256:
            raise BuildError(
                f"{path} is not the file that its channel lists: "
                f"SHA256 {found[:16]}… instead of {package.sha256[:16]}…",
                "the channel is damaged: index it again, or fetch it again",
            )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _tidy(prefix: Path, workplace: Workplace) -> None:
    """Take out of a prefix what rattler leaves there and no other installer does."""
    # A mark for backup programs to skip the directory.
    (prefix / "CACHEDIR.TAG").unlink(missing_ok=True)
    # Its records are closed to everybody else, which an image that others use must not be.
    for record in (prefix / "conda-meta").glob("*.json"):
        if not record.is_symlink():  # a package may hold anything there
            record.chmod(0o644)
    # The losers where two packages own one path.
    losers = prefix / "__clobbers__"
    for loser in sorted(losers.glob("*/**/*")):
        if not loser.is_dir() or loser.is_symlink():
            package, *path = loser.relative_to(losers).parts
            workplace.on_line(f"warning: {'/'.join(path)} of {package} is left out: another has it")
    shutil.rmtree(losers, ignore_errors=True)


def _package(record: RepoDataRecord) -> Package:
    return Package(
        name=record.name.normalized,
        version=str(record.version),
        build=str(record.build),
        build_number=record.build_number,
        channel=(record.channel or "").rstrip("/"),
        subdir=record.subdir,
        url=record.url,
        md5=_hex(record.md5),
        sha256=_hex(record.sha256),
        size=record.size or 0,
    )


def _hex(digest: bytes | None) -> str:
    return digest.hex() if digest else ""
