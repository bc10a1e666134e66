"""Editable requirements (`-e X`) become copies, since an image has to stand by itself."""

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
"""What setuptools writes for an editable package."""
_QUOTED = re.compile(r"([\"'])(?P<path>/[^\"']+)\1")
_ADVICE = "build a wheel of it ('pip wheel --no-deps DIR') and list that file instead"


def without(
    requirements: Path, cwd: Path, directory: Path, variables: Mapping[str, str]
) -> tuple[Path, tuple[str, ...]]:
    """Take `-e` out of a requirements file, and of those on this machine that it names by `-r`.

    Args:
        requirements: the file.
        cwd: what the paths of packages count from.
        directory: where changed files are written; nobody else's.
        variables: what pip fills in for `${NAME}`.

    Returns:
        a file without, which is the same one where it has none; and what was editable, without
        credentials.

    Raises:
        ConfigError: where a file cannot be read.
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
    """See that no installed package needs a directory outside of the environment.

    Raises:
        BuildError: names the package, and the directory where that is known.
    """
    for site in prefix.glob("lib/py*/site-packages"):
        if files.leads_out(site, within=prefix):
            continue
        for name in files.names(site, within=prefix):
            inside = site / name
            if name.endswith(".dist-info") and "direct_url.json" in files.names(
                inside, within=prefix
            ):
                text = files.read(inside / "direct_url.json", within=prefix)
                if _is_editable(text):
                    raise _needs(name.removesuffix(".dist-info"))
            elif name.endswith(".egg-link"):
                raise _needs(name.removesuffix(".egg-link"))
            elif finder := _FINDER.fullmatch(name):
                raise _needs(finder["name"])
            elif name.endswith(".pth") and inside.is_file():
                _check_path_file(inside, prefix)


def _check_path_file(path: Path, prefix: Path) -> None:
    """See that a file by which Python finds modules names no directory that is elsewhere.

    What is not there counts for nothing, as Python passes over it.

    Raises:
        BuildError: names it.
    """
    real = Path(os.path.realpath(path))
    named = [str(real)]
    if not files.leads_out(real, within=prefix):
        text = files.read(real, within=Path(os.path.realpath(prefix)))
        for line in text.decode("utf-8-sig", "surrogateescape").splitlines():
            if line.startswith(("import ", "import\t")):
                named += [match["path"] for match in _QUOTED.finditer(line)]
            elif line.strip() and not line.startswith("#"):
                named.append(os.path.join(path.parent, line.rstrip()))  # noqa: PTH118
    for place in named:
        if os.path.exists(place) and files.leads_out(place, within=prefix):  # noqa: PTH110
            raise BuildError(
                f"{path} makes Python look for modules in {os.path.normpath(place)}: "
                "the image would need that outside of it",
                "install the package without -e: a copy goes into the image; code of your own can "
                "live over the image with keep_python_path in condainer.yml and PYTHONPATH",
            )


def _is_editable(text: bytes) -> bool:
    try:
        return bool(json.loads(text)["dir_info"]["editable"])
    except (ValueError, TypeError, KeyError):
        return False


def _needs(name: str) -> BuildError:
    return BuildError(
        f"the package {name} is installed as editable: the image would need its directory",
        "list it without -e, also in files that a requirements file names by URL: a copy goes "
        "into the image",
    )


def unlockable(packages: Iterable[PipPackage]) -> list[str]:
    """What cannot be installed again from a lock file: directories, which have no checksum."""
    return [
        f"{package.name} ({package.url})"
        for package in packages
        if package.url.startswith("file:") and not package.sha256
    ]


def note(packages: Iterable[PipPackage]) -> str:
    """What to say of packages that `--locked` will refuse; empty where there are none."""
    names = ", ".join(unlockable(packages))
    return f"'build --locked' cannot install {names} again: {_ADVICE}" if names else ""


def check_lock(packages: Iterable[PipPackage]) -> None:
    """Refuse a lock file that names directories.

    Raises:
        BuildError: names them.
    """
    names = ", ".join(unlockable(packages))
    if names:
        raise BuildError(
            f"the lock file names a directory, which may have changed: {names}", _ADVICE
        )
