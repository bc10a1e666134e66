"""Finds executables, and asks them for their versions and abilities.

Whether mounting really works here is for `prereq` to test.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from condainer.errors import ToolError
from condainer.system import process

if TYPE_CHECKING:
    from collections.abc import Iterator

MAMBA_FAMILY = ("micromamba", "mamba", "conda")
"""The names by which installers of the mamba family go, in the order they are tried."""

PACKAGE_HINTS = {
    "mksquashfs": "squashfs-tools (Debian, Ubuntu, Fedora, RHEL, conda-forge)",
    "squashfuse": "squashfuse (Debian, Ubuntu, Fedora, EPEL for RHEL, conda-forge)",
    "fusermount": "fuse3 (Debian, Ubuntu, Fedora, RHEL)",
}
"""Which package of which distribution holds a program."""


@dataclass(frozen=True)
class Mksquashfs:
    """The program that writes images.

    Attributes:
        path: of the program.
        version: major and minor.
        compressors: the compressors that it knows.
    """

    path: Path
    version: tuple[int, int]
    compressors: tuple[str, ...]


def which(name: str) -> Path | None:
    """Find a program on PATH, or in the system directories that PATH often lacks.

    Args:
        name: of the program.

    Returns:
        Its path; None if there is none.
    """
    return next(_each(name), None)


def _each(name: str) -> Iterator[Path]:
    """All programs of that name there."""
    places = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"
    for place in places.split(":"):
        found = shutil.which(name, path=place)
        if found:
            yield Path(found)


def find_mksquashfs() -> Mksquashfs:
    """Find mksquashfs, and ask what it can do.

    Raises:
        ToolError: If there is none.
    """
    path = which("mksquashfs")
    if path is None:
        raise ToolError(
            "mksquashfs was not found",
            f"install or load {PACKAGE_HINTS['mksquashfs']}",
        )
    version = process.call([str(path), "-version"])
    match = re.search(r"version ([0-9]{1,9})\.([0-9]{1,9})", version.stdout + version.stderr)
    if not match:
        raise ToolError(f"{path} does not say its version", "is it really squashfs-tools?")
    return Mksquashfs(path, (int(match[1]), int(match[2])), _compressors(path))


def _compressors(path: Path) -> tuple[str, ...]:
    """The compressors that `mksquashfs -help` lists.

    4.x lists them at the end of the help, each on a line of its own below a heading. 4.7 lists them
    on a page of their own.
    """
    for option in ("-help", "-help-all", "-help-comp all"):
        answer = process.call([str(path), *option.split()])
        text = answer.stdout + answer.stderr
        _, heading, listing = text.partition("ompressors available")
        names = re.findall(r"^\s+(gzip|lzma|lzo|lz4|xz|zstd)\b", listing, re.MULTILINE)
        if heading and names:
            return tuple(dict.fromkeys(names))
    return ("gzip",)


def find_fusermount() -> Path | None:
    """Find the program that lets ordinary users mount with FUSE; None if there is none.

    One that is not setuid comes last: an active conda environment may have such a one on PATH.
    """
    found = [path for name in ("fusermount3", "fusermount") for path in _each(name)]
    return min(found, key=lambda path: not is_setuid(path), default=None)


def is_setuid(path: Path) -> bool:
    """Whether a program runs as root, whoever starts it.

    Args:
        path: of the program.
    """
    status = path.stat()
    return status.st_uid == 0 and bool(status.st_mode & stat.S_ISUID)


def version_of(path: Path) -> str:
    """The first line that a program prints for --version; empty if it prints none.

    Args:
        path: of the program.
    """
    try:
        answer = process.call([str(path), "--version"], timeout=20)
    except ToolError:
        return ""
    text = (answer.stdout.strip() or answer.stderr.strip()).splitlines()
    return text[0].strip() if text else ""
