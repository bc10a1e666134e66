"""Reads and writes the lock file beside an image: the exact packages, for conda and for pip.

conda's part is an @EXPLICIT list of URLs with checksums, in the form that `conda list --explicit
--md5` writes; each package comes after those it depends on, and conda can install from it. Comments
before a URL hold size and SHA256: no conda reads the size, and older condas do not read the SHA256.
pip's part is in comments as well, `# pip NAME @ URL --hash=sha256:…`, a form that conda-lock uses,
too.
"""

from __future__ import annotations

import datetime as dt
import platform
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import unquote

from condainer.errors import BuildError
from condainer.pipeline.installers import channels
from condainer.pipeline.packages import Package
from condainer.system import files

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_PIP = "# pip "
_SHA256 = "# sha256 "
_SIZE = "# size "
_PLATFORM = "# platform: "
_CREATED = "# created: "
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_LONG_AGO = 315532800  # 1980-01-01: zip files hold no earlier time
"""The time of a lock file that has none."""
_NO_ARCH = "noarch"
_SUBDIRS = {"x86_64": "linux-64", "i686": "linux-32", "i386": "linux-32"}
"""conda's names of machines, if they differ from the kernel's."""
_URL = re.compile(
    r"(?P<channel>.+)/(?P<subdir>[^/]+)/"
    r"(?P<name>[^/]+)-(?P<version>[^-/]+)-(?P<build>[^-/]+)\.(conda|tar\.bz2)"
)
_PIP_LINE = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(\[[^\]]*\])?(\s*==\s*(?P<version>[^\s@]+))?"
    r"(\s*@\s*(?P<url>\S+))?(\s+--hash=sha256:(?P<sha256>[0-9a-f]{64}))?\s*"
)
_IN_URL = "sha256="
"""Comes before a checksum in the fragment of a URL, as pip writes it."""
_SIZE_LINE = re.compile(rf"{_SIZE}([0-9]{{1,15}})")
_CHECKSUM = re.compile(r"[0-9a-f]{32}|(sha256:)?[0-9a-f]{64}")


@dataclass(frozen=True)
class PipPackage:
    """A package that pip has installed.

    Attributes:
        name: as pip writes it.
        version: what was installed.
        url: where it came from, with the commit if that is a version control system.
        sha256: of the file; empty if it was not one file.
    """

    name: str
    version: str
    url: str
    sha256: str

    @property
    def requirement(self) -> str:
        """A line for `pip install -r` that installs exactly the same again."""
        if not self.url:
            checksum = f" --hash=sha256:{self.sha256}" if self.sha256 else ""
            return f"{self.name}=={self.version}{checksum}"
        if not self.sha256:
            return f"{self.name} @ {self.url}"
        return f"{self.name} @ {self.url}{'&' if '#' in self.url else '#'}{_IN_URL}{self.sha256}"


@dataclass(frozen=True)
class Lock:
    """The content of a lock file.

    Attributes:
        packages: conda's.
        pip: pip's.
        created: when it was made, in seconds since 1970.
    """

    packages: tuple[Package, ...]
    pip: tuple[PipPackage, ...]
    created: int


def render(packages: Iterable[Package], pip: Iterable[PipPackage], created: int) -> str:
    """Make the text of a lock file.

    Args:
        packages: conda's, each after those it depends on.
        pip: pip's.
        created: when the packages were found, in seconds since 1970.
    """
    when = dt.datetime.fromtimestamp(created, dt.timezone.utc)
    packages = list(packages)
    subdir = next((p.subdir for p in packages if p.subdir not in {"", _NO_ARCH}), _NO_ARCH)
    lines = [
        "# The exact packages of the image; 'condainer build --locked' installs them again,",
        "# and so does 'conda create --file FILE' (without those of pip).",
        f"{_PLATFORM}{subdir}",
        f"{_CREATED}{when:{_TIME}}",
        "@EXPLICIT",
    ]
    for package, line in zip(packages, explicit_lines(packages), strict=True):
        lines += [f"{_SIZE}{package.size}"] if package.size else []
        lines += [f"{_SHA256}{package.sha256}"] if package.sha256 else []
        lines.append(line)
    for added in pip:
        checksum = f" --hash=sha256:{added.sha256}" if added.sha256 else ""
        where = f" @ {added.url}" if added.url else ""
        lines.append(f"{_PIP}{added.name}=={added.version}{where}{checksum}")
    return "\n".join(lines) + "\n"


def explicit_lines(packages: Iterable[Package]) -> list[str]:
    """List URL and checksum of each package, in the form that every conda reads.

    Args:
        packages: conda's.
    """
    lines = []
    for package in packages:
        checksum = package.md5 or (f"sha256:{package.sha256}" if package.sha256 else "")
        lines.append(f"{package.url}#{checksum}" if checksum else package.url)
    return lines


def read(path: Path) -> Lock:
    """Read a lock file.

    Args:
        path: of the file.

    Raises:
        BuildError: If there is none, it is for other machines, or a line is wrong.
    """
    try:
        text = files.read(path).decode()
    except FileNotFoundError:
        raise BuildError(
            f"there is no lock file {path}", "build once without --locked: that writes it"
        ) from None
    except OSError as error:
        raise BuildError(f"cannot read the lock file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BuildError(f"cannot read the lock file {path}: {error}") from error
    lines = [line.strip() for line in text.splitlines()]
    if "@EXPLICIT" not in lines:
        raise BuildError(f"{path} is not a lock file: it has no line @EXPLICIT")
    pip = [_pip_package(line.removeprefix(_PIP)) for line in lines if line.startswith(_PIP)]
    packages: dict[str, Package] = {}
    sha256, size = "", 0
    for line in lines:
        if line.startswith(_SHA256):
            sha256 = line.removeprefix(_SHA256)
        elif found := _SIZE_LINE.fullmatch(line):
            size = int(found[1])
        elif line and not line.startswith(("#", "@")):
            package = package_from_line(line)
            package = replace(package, sha256=package.sha256 or sha256, size=size)
            if packages.setdefault(package.name, package) != package:
                raise BuildError(f"the lock file {path} lists two packages {package.name}")
            sha256, size = "", 0
    named = {line.removeprefix(_PLATFORM) for line in lines if line.startswith(_PLATFORM)}
    _check_platforms(path, named | {package.subdir for package in packages.values()})
    return Lock(tuple(packages.values()), tuple(pip), _created(path, lines))


def _created(path: Path, lines: Iterable[str]) -> int:
    found = (line.removeprefix(_CREATED) for line in lines if line.startswith(_CREATED))
    text = next(found, None)
    if text is None:
        return _LONG_AGO
    try:
        when = dt.datetime.strptime(text, _TIME).replace(tzinfo=dt.timezone.utc)
    except ValueError:
        message = f"the lock file {path} was made '{text}', which is not a time"
        raise BuildError(message) from None
    return max(int(when.timestamp()), 0)


def package_from_line(line: str) -> Package:
    """Make a package of a line of a lock file.

    The line is CHANNEL/SUBDIR/NAME-VERSION-BUILD.conda#CHECKSUM. A directory that is not part of a
    channel may take the place of CHANNEL/SUBDIR.

    Args:
        line: an URL and maybe a checksum.

    Raises:
        BuildError: If it is something else.
    """
    url, _, checksum = line.partition("#")
    match = _URL.fullmatch(url)
    if match is None or (checksum and not _CHECKSUM.fullmatch(checksum)):
        raise BuildError(f"'{line}' in the lock file is not a URL of a conda package")
    name, version, build = (unquote(match[part]) for part in ("name", "version", "build"))
    is_of_channel = channels.is_subdir(match["subdir"])
    number = re.search(r"([0-9]{1,9})$", build)
    is_md5 = len(checksum) == 32  # noqa: PLR2004  (hexadecimal digits of an MD5)
    return Package(
        name=name,
        version=version,
        build=build,
        build_number=int(number[1]) if number else 0,
        channel=match["channel"] if is_of_channel else url.rpartition("/")[0],
        subdir=match["subdir"] if is_of_channel else "",
        url=url,
        md5=checksum if is_md5 else "",
        sha256="" if is_md5 else checksum.removeprefix("sha256:"),
        size=0,
    )


def _check_platforms(path: Path, platforms: set[str]) -> None:
    machine = platform.machine()
    own = _SUBDIRS.get(machine, f"linux-{machine}")
    foreign = platforms - {own, _NO_ARCH, ""}
    if foreign:
        raise BuildError(
            f"the lock file {path} is for {', '.join(sorted(foreign))}, this machine is {own}",
            "build without --locked: that writes a lock file for this kind of machine",
        )


def _pip_package(line: str) -> PipPackage:
    """Make a package of pip's of a line as we, conda-lock, or pip write it."""
    match = _PIP_LINE.fullmatch(line)
    if match is None or not (match["version"] or match["url"]):
        raise BuildError(f"'{_PIP}{line}' in the lock file is not a package for pip")
    url, _, fragment = (match["url"] or "").partition("#")
    parts = [part for part in fragment.split("&") if part]
    hashes = {part.removeprefix(_IN_URL) for part in parts if part.startswith(_IN_URL)}
    hashes |= {match["sha256"]} if match["sha256"] else set()
    if len(hashes) > 1:
        raise BuildError(f"'{_PIP}{line}' in the lock file has two checksums")
    rest = "&".join(part for part in parts if not part.startswith(_IN_URL))
    return PipPackage(
        match["name"],
        match["version"] or "",
        f"{url}#{rest}" if rest else url,
        hashes.pop() if hashes else "",
    )
