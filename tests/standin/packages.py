"""Packages: solving for them, fetching, checking, unpacking and linking them, with py-rattler.

Packages lie unpacked in the package cache where the real program has them (`place`), with
`info/repodata_record.json` written last. rattler links from there because it is shown a cache of
its own kind, of soft links. Everything that comes after linking a package is in `finishing`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from rattler import (
    Client,
    Gateway,
    MatchSpec,
    PackageRecord,
    RepoDataRecord,
    Subdir,
    install,
    solve,
)
from rattler.channel import ChannelPriority
from rattler.exceptions import GatewayError, InstallerError, InvalidMatchSpecError, SolverError
from rattler.package_streaming import download_to_path, extract
from rattler.repo_data.gateway import SourceConfig
from rattler.virtual_package import VirtualPackage, VirtualPackageOverrides

from tests.standin.errors import CriticalError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.standin.request import Archive, Request

SUBDIR = str(Subdir.current())
"""The channel directory of this machine."""

_TOKEN = re.compile(r"/t/[^/]+")
_SECRET = re.compile(r"/t/[^/]+|(?<=://)[^/]+@")
_FULL = "os error 28"
_UNSOLVED = "Could not solve for environment specs"
_UNSATISFIED = r"─ (\S+) (\S+) would require\n.*─ (.+), which cannot be installed"
_NOT_LOADED = """\
Multiple errors occurred:
Download error (37) Couldn't read a file:// file [{url}/repodata.json]
Couldn't open file {path}/repodata.json
Subdir {url} not loaded!
If you run into this error repeatedly, your package cache may be corrupted.
Please try running `mamba clean -a` to remove this cache before retrying the operation.

If you still are having issues, please report the error on `mamba-org/mamba`'s issue tracker:
https://github.com/mamba-org/mamba/issues/new?assignees=&labels=&projects=&template=bug.yml"""


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package to be installed.

    Attributes:
        url: Where its archive is.
        record: What the channel says about it; None for one of an explicit list.
        checks: What its archive has to be: `size`, and digests by algorithm.
    """

    url: str
    record: RepoDataRecord | None
    checks: dict[str, Any]

    @property
    def file_name(self) -> str:
        """The archive's name."""
        return self.url.rpartition("/")[2]

    @property
    def distribution(self) -> str:
        """The archive's name without its suffix."""
        return self.file_name.removesuffix(".conda").removesuffix(".tar.bz2")

    @property
    def name_version_build(self) -> tuple[str, str, str]:
        """The three parts of the archive's name."""
        name, version, build = self.distribution.rsplit("-", 2)
        return name, version, build

    @property
    def channel(self) -> str:
        """The channel's URL."""
        return self.url.rsplit("/", 2)[0]

    @property
    def size(self) -> int:
        """The archive's size, 0 if it is not known before it is fetched."""
        return self.checks.get("size", 0)  # type: ignore[no-any-return]

    def document(self) -> dict[str, Any]:
        """Describe the package as `--json` does."""
        known = json.loads(self.record.to_json()) if self.record else {}
        name, version, build = self.name_version_build
        document = {
            "build": build,
            "build_number": known.get("build_number", 0),
            "build_string": build,
            "channel": self.channel,
            "constrains": known.get("constrains", []),
            "depends": known.get("depends", []),
            "fn": self.file_name,
            "license": known.get("license", ""),
            "md5": self.checks.get("md5", ""),
            "name": name,
            "sha256": self.checks.get("sha256", ""),
            "size": self.size,
            "subdir": self.url.rsplit("/", 2)[1],
            "timestamp": known.get("timestamp", 0) // 1000,
            "track_features": known.get("track_features", ""),
            "url": self.url,
            "version": version,
        }
        return document | ({"noarch": known["noarch"]} if "noarch" in known else {})


def check_channels(urls: Iterable[str]) -> None:
    """Look for the repodata of channels in directories.

    Raises:
        CriticalError: if there is none. A space in the path is enough for that.
    """
    for url in urls:
        path = unquote(urlsplit(url).path)
        if url.startswith("file://") and not Path(path, "repodata.json").exists():
            raise CriticalError(_NOT_LOADED.format(url=url, path=path))


def place(url: str, cache: Path, layout: str) -> Path:
    """The directory that a package's archive comes into, and its own beside it.

    Args:
        url: of the archive.
        cache: the package cache.
        layout: `hierarchical`, as of micromamba since 2.6; `flat`, as of those before and of conda;
            `digest`, as of none that is known.
    """
    address = urlsplit(url)
    if layout == "flat":
        return cache
    if layout == "digest":
        return cache / "store" / hashlib.sha256(url.encode()).hexdigest()[:2]
    host = (address.netloc.rpartition("@")[2]).replace(":", "_")
    path = _TOKEN.sub("", unquote(address.path)).rpartition("/")[0]
    return cache / address.scheme / f"{host}{path}".strip("/")


def unpacked(package: Package, cache: Path, layout: str) -> Path:
    """The directory that a package is unpacked in."""
    name = package.distribution
    if layout == "digest":
        name = hashlib.sha256(name.encode()).hexdigest()
    return place(package.url, cache, layout) / name


def check_specs(specs: Iterable[str]) -> None:
    """Read specs without solving.

    Raises:
        CriticalError: if one is not a spec.
    """
    for spec in specs:
        _check_spec(spec)


async def find(request: Request, cache: Path, *, offline: bool, stars: bool) -> list[Package]:
    """Solve, and put what is found in the order in which it has to be linked.

    Lists of channels are kept in the package cache.

    Args:
        request: What there is to install.
        cache: The package cache.
        offline: Nothing comes over the network.
        stars: A token in a URL is lost on the way, and the group may write to what is kept of
            channels, as with libmamba.

    Raises:
        CriticalError: if there is no solution.
    """
    specs = _as_solved(request) if stars else request.specs
    lists = cache / "cache"
    if stars:
        lists.mkdir(parents=True, exist_ok=True)
        lists.chmod(0o2775)
    how = SourceConfig(cache_action="force-cache-only" if offline else "cache-or-fetch")
    try:
        records = await solve(
            request.channels,
            [MatchSpec(spec) for spec in specs],
            gateway=Gateway(cache_dir=lists, default_config=how),
            virtual_packages=VirtualPackage.detect(VirtualPackageOverrides.from_env()),
            channel_priority=ChannelPriority[request.priority.capitalize()],
        )
    except GatewayError as error:
        raise CriticalError(str(error)) from error
    except SolverError as error:
        raise _unsolved(str(error)) from error
    by_name = {record.name.normalized: record for record in records}
    order = PackageRecord.sort_topologically(list(records))
    if stars:
        for found in records:
            found.url = _TOKEN.sub("/t/*****", found.url)
    return [_package(by_name[record.name.normalized]) for record in order]


def listed(archives: Sequence[Archive]) -> list[Package]:
    """Take the packages of an explicit list, which need no solving."""
    return [
        Package(
            url=archive.url,
            record=None,
            checks={archive.algorithm: archive.digest} if archive.digest else {},
        )
        for archive in archives
    ]


def cached(package: Package, cache: Path, layout: str) -> bool:
    """Say whether a package, and not another of its name, is unpacked in the cache already."""
    note = _note(package, cache, layout)
    if not note.exists():
        return False
    known = json.loads(note.read_text())
    return all(known.get(check) == expected for check, expected in package.checks.items())


async def fetch(
    package: Package, cache: Path, layout: str, *, trusts_files: bool, offline: bool
) -> RepoDataRecord:
    """Bring a package to the cache, unpacked.

    Args:
        package: Which.
        cache: The package cache.
        layout: Of the cache, see `place`.
        offline: Nothing comes over the network.
        trusts_files: What a channel in a directory holds is not compared with its checksum.

    Returns:
        Its record, which an explicit list does not have.

    Raises:
        CriticalError: if the archive is not the one that was expected.
    """
    archive = place(package.url, cache, layout) / package.file_name
    directory = unpacked(package, cache, layout)
    fresh = not cached(package, cache, layout)
    if fresh:
        shutil.rmtree(directory, ignore_errors=True)
        if offline and not package.url.startswith("file:"):
            raise CriticalError(f"Download error (7) Could not connect to server [{package.url}]")
        await _download(package.url, archive)
        if not (trusts_files and package.url.startswith("file:")):
            _check(package, archive, cache)
        await asyncio.to_thread(extract, archive, directory)
    record = package.record or await RepoDataRecord.from_package_archive(archive)
    record.url = package.url
    record.channel = package.channel
    if fresh:
        _note(package, cache, layout).write_text(record.to_json())
    return record


async def link(
    records: list[RepoDataRecord], prefix: Path, places: Sequence[Path], *, keeps_errno: bool
) -> None:
    """Link packages into a prefix.

    Args:
        records: The packages.
        prefix: The environment.
        places: Where each is unpacked.
        keeps_errno: Say so where no space is left, which libmamba does not.

    Raises:
        CriticalError: if a package cannot be linked.
    """
    with tempfile.TemporaryDirectory() as view:
        for record, path in zip(records, places, strict=True):
            name = f"{record.name.normalized}-{record.version}-{record.build}"
            Path(view, name).symlink_to(path)
        try:
            await install(records, prefix, cache_dir=Path(view), show_progress=False)
        except InstallerError as error:
            if _FULL not in str(error) or keeps_errno:
                raise CriticalError(str(error)) from error
            shutil.rmtree(prefix)  # libmamba takes all back
            words = f"filesystem error: cannot copy: Input/output error [{prefix}]"
            raise CriticalError(words) from error
    for note in (prefix / "conda-meta").glob("*.json"):
        note.chmod(0o644)  # rattler closes them to everybody else
    # rattler's own additions to a prefix
    (prefix / "CACHEDIR.TAG").unlink(missing_ok=True)
    shutil.rmtree(prefix / "__clobbers__", ignore_errors=True)


def _note(package: Package, cache: Path, layout: str) -> Path:
    """Name the file that says that a package is unpacked, and what it is."""
    return unpacked(package, cache, layout) / "info/repodata_record.json"


def _check_spec(spec: str) -> None:
    try:
        MatchSpec(spec)
    except InvalidMatchSpecError:
        # libmamba has read one operator before it gives up.
        version = re.sub(r"^[\w.-]*.", "", spec)
        problem = f"Version contains invalid characters in {version}."
        raise CriticalError(f'Error parsing version "{version}". {problem}') from None


def _as_solved(request: Request) -> list[str]:
    """The specs as rattler compares them with channels; libmamba leaves out secrets for that.

    Raises:
        CriticalError: if one has a token, for which libmamba finds nothing.
    """
    full = {_SECRET.sub("", channel): channel for channel in request.channels}
    specs = []
    for spec in request.specs:
        channel, separator, rest = spec.rpartition("::")
        if _TOKEN.search(channel):
            raise _unsolved(f" because of: No candidates were found for {rest} *.")
        specs.append(f"{full.get(channel, channel)}{separator}{rest}")
    return specs


def _package(record: RepoDataRecord) -> Package:
    checks: dict[str, Any] = {}
    if record.size is not None:  # nothing is known of an archive that is in no channel
        checks["size"] = record.size
    if record.sha256:
        checks["sha256"] = record.sha256.hex()
    if record.md5:
        checks["md5"] = record.md5.hex()
    return Package(url=record.url, record=record, checks=checks)


def _unsolved(message: str) -> CriticalError:
    """Say that there is no solution, and why.

    The tree of reasons is rattler's: of the same kind as libmamba's, in other words.
    """
    reason = message.partition(" because of: ")[2].strip()
    if reason.startswith("No candidates were found for "):
        spec = reason.removeprefix("No candidates were found for ").rstrip(".")
        name, _, version = spec.partition(" ")
        shown = f"{name} =* *" if version == "*" else f"{name} {version} *"
        missing = f"└─ {shown} does not exist (perhaps a typo or a missing channel)."
        reason = f"The following package could not be installed\n{missing}"
        problems = [f"nothing provides requested {name}"]
    else:
        problems = [
            f"package {name}-{version} requires {needed}, "
            "but none of the providers can be installed"
            for name, version, needed in re.findall(_UNSATISFIED, reason)
        ]
    return CriticalError(
        _UNSOLVED,
        error=f"{_UNSOLVED}\n{reason}",
        document={"solver_problems": problems, "success": False},
    )


async def _download(url: str, archive: Path) -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    if url.startswith("file://"):
        await asyncio.to_thread(shutil.copyfile, unquote(urlsplit(url).path), archive)
    else:
        try:
            await download_to_path(Client.default_client(), url, archive)
        except (OSError, RuntimeError) as error:  # it has no types of its own for that
            raise CriticalError(f"Download error: {error} [{url}]") from error


def _check(package: Package, archive: Path, cache: Path) -> None:
    """Compare an archive with what is known about it; it does not survive a difference."""
    content = archive.read_bytes()
    found = {
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "md5": hashlib.md5(content, usedforsecurity=False).hexdigest(),
    }
    words = {
        "size": ("file size", "size"),
        "sha256": ("SHA256 sum", "SHA256"),
        "md5": ("MD5", "MD5"),
    }
    for check, expected in package.checks.items():
        if found[check] == expected:
            continue
        archive.unlink()
        scheme, _, rest = package.url.partition("://")
        long_name, short_name = words[check]
        raise CriticalError(
            "Found incorrect downloads. Aborting",
            error=f"File not valid: {long_name} doesn't match expectation "
            f'"{cache}/{scheme}/{rest}"\nExpected: {expected}\nActual: {found[check]}\n',
            say=f"{package.file_name} tarball has incorrect {short_name}\n",
        )
