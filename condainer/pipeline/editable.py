"""Editable requirements (`-e X`) become copies, since an image has to stand by itself."""

from __future__ import annotations

import json
import re
import shlex
from typing import TYPE_CHECKING

from condainer import files
from condainer.errors import BuildError
from condainer.pipeline import credentials, pip

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from condainer.pipeline.lockfile import PipPackage

_EDITABLE = re.compile(r"\s*(?:-e|--editable(?=[\s=]))\s*=?\s*(?P<what>\S.*)")
_NESTED = re.compile(r"(?:-r|--requirement) (?P<file>.+)")
_WITH_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*[:@]|\$\{")
_ADVICE = "build a wheel of it ('pip wheel --no-deps DIR') and list that file instead"


def without(requirements: Path, cwd: Path, directory: Path) -> tuple[Path, tuple[str, ...]]:
    """Take `-e` out of a requirements file, and of those that it names by `-r`.

    Args:
        requirements: the file.
        cwd: what the paths of packages count from.
        directory: where changed files are written; nobody else's.

    Returns:
        a file without, which is the same one where it has none; and what was editable, without
        credentials.

    Raises:
        ConfigError: where a file cannot be read.
    """
    found: list[str] = []
    copies: dict[Path, Path] = {}

    def copy(source: Path) -> Path:
        if source in copies:
            return copies[source]
        target = copies[source] = directory / f"copied-{len(copies)}-{requirements.name}"
        text = re.sub(r"\\\r?\n", " ", files.read_text(source))
        lines = []
        for line in text.splitlines():
            editable = _EDITABLE.fullmatch(line)
            changed = pip.absolute(line.strip(), source.parent)
            nested = _NESTED.fullmatch(changed)
            if editable:
                what = _plain(editable["what"], cwd)
                found.append(what)
                changed = what
            elif nested and not re.match(r"'?([a-z+]+:|.*\$\{)", nested["file"]):
                path = source.parent / shlex.split(nested["file"])[0]
                if path.is_file():  # pip itself says what is wrong with any other
                    changed = f"-r {shlex.quote(str(copy(path)))}"
            lines.append(f"{changed}\n")
        target.touch(0o600)
        target.write_text("".join(lines), encoding="utf-8")
        return target

    first = copy(requirements)
    return (first if found else requirements), tuple(map(credentials.without, found))


def _plain(what: str, cwd: Path) -> str:
    """What pip is asked for instead; a path becomes absolute."""
    what = re.sub(r"\s+#.*", "", what).strip()
    if what[0] in "\"'":
        what = " ".join(shlex.split(what))
    return what if _WITH_SCHEME.match(what) else str(cwd / what)


def check(prefix: Path) -> None:
    """See that no installed package needs a directory outside of the environment.

    Raises:
        BuildError: names the package.
    """
    for site in prefix.glob("lib/python3*/site-packages"):
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


def _is_editable(text: bytes) -> bool:
    try:
        return bool(json.loads(text)["dir_info"]["editable"])
    except (ValueError, TypeError, KeyError):
        return False


def _needs(name: str) -> BuildError:
    return BuildError(
        f"the package {name} is installed as editable: the image would need its directory",
        "list it without -e: a copy goes into the image",
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
