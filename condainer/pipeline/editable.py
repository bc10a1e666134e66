"""Turns editable requirements (`-e X`) into copies: an image must not need other directories."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from condainer.errors import BuildError
from condainer.pipeline import credentials
from condainer.pipeline.requirements import rewritten
from condainer.system import files

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from condainer.pipeline.lockfile import PipPackage

_EDITABLE = re.compile(r"\s*(?:-e|--editable(?=[\s=]))\s*=?\s*(?P<what>\S.*)")
_WITH_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*[:@]|\$\{")
_FINDER = re.compile(r"__editable___(?P<name>.+)_finder\.py")
"""A file that setuptools writes for an editable package."""
_QUOTED = re.compile(r"([\"'])(?P<path>/[^\"']+)\1")
_ADVICE = "build a wheel of it ('pip wheel --no-deps DIR') and list that file instead"


def without(
    requirements: Path, cwd: Path, directory: Path, variables: Mapping[str, str]
) -> tuple[Path, tuple[str, ...]]:
    """Take `-e` out of a requirements file, and of the files on this machine that it names by `-r`.

    Args:
        requirements: the file.
        cwd: the directory that paths of packages count from.
        directory: where changed files are written; only this user may enter it.
        variables: the values for `${NAME}`, which pip would fill in.

    Returns:
        A file without `-e`, which is the same one if it has none; and what was editable, without
        credentials.

    Raises:
        ConfigError: If a file cannot be read.
    """
    found: list[str] = []

    def change(line: str) -> str:
        editable = _EDITABLE.fullmatch(line)
        if editable is None:
            return line
        found.append(_plain(editable["what"], cwd))
        return found[-1]

    changed = rewritten(requirements, directory, variables, change)
    return changed, tuple(map(credentials.without, found))


def _plain(what: str, cwd: Path) -> str:
    """What pip is asked for instead; a path becomes absolute."""
    what = re.sub(r"\s+#.*", "", what).strip()
    if what[0] in "\"'":
        what = " ".join(shlex.split(what))
    return what if _WITH_SCHEME.match(what) else str(cwd / what)


def check(prefix: Path) -> None:
    """Check that no installed package needs a directory outside of the environment.

    Args:
        prefix: the environment.

    Raises:
        BuildError: If one does; the message has the directory if it is known.
    """
    for site in prefix.glob("lib/py*/site-packages"):
        if files.leads_out(site, within=prefix):
            continue
        for name in files.names(site, within=prefix):
            package = _editable_package(site / name, prefix)
            if package:
                raise _needs(package)
            if name.endswith(".pth") and (site / name).is_file():
                _check_path_file(site / name, prefix)


def _editable_package(path: Path, prefix: Path) -> str:
    """The editable package that a file or directory in site-packages belongs to, if any."""
    finder = _FINDER.fullmatch(path.name)
    if finder:
        return finder["name"]
    if path.suffix == ".egg-link":
        return path.stem
    about = "direct_url.json"  # https://packaging.python.org/en/latest/specifications/direct-url/
    if path.suffix != ".dist-info" or about not in files.names(path, within=prefix):
        return ""
    return path.stem if _is_editable(files.read(path / about, within=prefix)) else ""


def _check_path_file(path: Path, prefix: Path) -> None:
    """Check that a `.pth` file, by which Python finds modules, names no directory outside.

    What does not exist is skipped, as Python skips it.

    Raises:
        BuildError: If it names one.
    """
    real = Path(os.path.realpath(path))
    named = [str(real)]
    if not files.leads_out(real, within=prefix):
        text = files.read(real, within=Path(os.path.realpath(prefix)))
        for line in text.decode("utf-8-sig", "surrogateescape").splitlines():
            named += _named(line, path.parent)
    for place in named:
        if os.path.exists(place) and files.leads_out(place, within=prefix):  # noqa: PTH110
            raise BuildError(
                f"{path} makes Python look for modules in {os.path.normpath(place)}, which would "
                "not be in the image",
                "install the package without -e: then a copy goes into the image; for code that "
                "you still change, set keep_python_path in condainer.yml and use PYTHONPATH",
            )


def _named(line: str, base: Path) -> list[str]:
    """The paths in a line of a `.pth` file (https://docs.python.org/3/library/site.html)."""
    if line.startswith(("import ", "import\t")):
        return [match["path"] for match in _QUOTED.finditer(line)]
    is_path = line.strip() and not line.startswith("#")
    return [os.path.join(base, line.rstrip())] if is_path else []  # noqa: PTH118


def _is_editable(text: bytes) -> bool:
    try:
        return bool(json.loads(text)["dir_info"]["editable"])
    except (ValueError, TypeError, KeyError):
        return False


def _needs(name: str) -> BuildError:
    return BuildError(
        f"the package {name} is editable: it needs its directory, which would not be in the image",
        "list it without -e, also in files that a requirements file names by URL: then a copy goes "
        "into the image",
    )


def unlockable(packages: Iterable[PipPackage]) -> list[str]:
    """List what a lock file cannot install again: directories, which have no checksum.

    Args:
        packages: pip's.
    """
    return [
        f"{package.name} ({package.url})"
        for package in packages
        if package.url.startswith("file:") and not package.sha256
    ]


def note(packages: Iterable[PipPackage]) -> str:
    """Say which packages `--locked` will refuse; empty if there are none.

    Args:
        packages: pip's.
    """
    names = ", ".join(unlockable(packages))
    return f"'build --locked' cannot install {names} again: {_ADVICE}" if names else ""


def check_lock(packages: Iterable[PipPackage]) -> None:
    """Refuse a lock file that names directories.

    Args:
        packages: pip's, of the lock file.

    Raises:
        BuildError: If there are any.
    """
    names = ", ".join(unlockable(packages))
    if names:
        raise BuildError(
            f"the lock file lists a directory, which may have changed: {names}", _ADVICE
        )
