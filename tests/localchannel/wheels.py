"""Conda packages made from ordinary wheels.

A pure wheel becomes a `noarch: python` package, any other one a package of this machine's
architecture. This module owns where the parts of a wheel go; `requirements` translates what it
depends on.
"""

from __future__ import annotations

import configparser
import email.parser
import functools
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name, parse_wheel_filename

from tests.localchannel import requirements
from tests.localchannel.package import (
    PLACEHOLDER,
    SITE_PACKAGES,
    Package,
    Recipe,
    compile_tree,
    put,
)

if TYPE_CHECKING:
    from email.message import Message
    from pathlib import Path

_MAJOR, _MINOR = sys.version_info[:2]
_SHEBANG = f"#!{PLACEHOLDER}/bin/python{_MAJOR}.{_MINOR}\n"
_ENTRY_POINT = """\
{shebang}import sys

from {module} import {name}

if __name__ == "__main__":
    sys.exit({function}())
"""
_LONGEST_LICENSE = 80


@dataclass(frozen=True, kw_only=True)
class _Wheel:
    """A wheel file and what it says about itself."""

    file: Path
    metadata: Message
    entry_points: tuple[str, ...]
    pure: bool

    @property
    def site_packages(self) -> str:
        return "site-packages" if self.pure else SITE_PACKAGES

    @property
    def scripts(self) -> str:
        return "python-scripts" if self.pure else "bin"


def download(pins: Path, directory: Path, scratch: Path) -> None:
    """Fetch wheels for this interpreter.

    Args:
        pins: A file that names them all, with their hashes.
        directory: Where the wheels go.
        scratch: A directory for pip's temporary files.

    Raises:
        RuntimeError: if pip could not get them all.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-cache-dir", "--only-binary", ":all:", "--require-hashes"]
    command += ["--requirement", str(pins), "--dest", str(directory)]
    done = subprocess.run(
        command,
        env=os.environ | {"TMPDIR": str(scratch)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"pip download failed\n{done.stderr}")


def recipes(directory: Path) -> list[Recipe]:
    """Make a recipe of every wheel in a directory."""
    return [functools.partial(_repack, file) for file in sorted(directory.glob("*.whl"))]


def _repack(file: Path, tree: Path) -> Package:
    """Recipe of one wheel's package."""
    wheel = _read(file)
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if not member.is_dir():
                _place(wheel, member, archive.read(member), tree)
    if not wheel.pure:
        for entry_point in wheel.entry_points:
            _write_entry_point(entry_point, tree)
        compile_tree(tree, SITE_PACKAGES)
    return _describe(wheel)


def _read(file: Path) -> _Wheel:
    """Read a wheel's metadata."""
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        (info,) = {
            name.split("/")[0] for name in names if name.split("/")[0].endswith(".dist-info")
        }
        parser = email.parser.Parser()
        metadata = parser.parsestr(archive.read(f"{info}/METADATA").decode())
        entry_points: tuple[str, ...] = ()
        if f"{info}/entry_points.txt" in names:
            entry_points = _scripts(archive.read(f"{info}/entry_points.txt").decode())
    _name, _version, _build, tags = parse_wheel_filename(file.name)
    # Headers belong to one version of Python, so a wheel that brings some is not for all of them.
    pure = all(tag.platform == "any" for tag in tags) and not any(
        ".data/headers/" in name for name in names
    )
    return _Wheel(file=file, metadata=metadata, entry_points=entry_points, pure=pure)


def _scripts(text: str) -> tuple[str, ...]:
    """Read the commands from an `entry_points.txt`, without the extras that they ask for."""
    parser = configparser.ConfigParser(delimiters="=", interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    return tuple(
        f"{name} = {target.partition('[')[0].strip()}"
        for section in ("console_scripts", "gui_scripts")
        if parser.has_section(section)
        for name, target in parser.items(section)
    )


def _place(wheel: _Wheel, member: zipfile.ZipInfo, content: bytes, tree: Path) -> None:
    """Write one file of a wheel where it belongs."""
    mode = 0o755 if member.external_attr >> 16 & 0o100 else 0o644
    top, _, rest = member.filename.partition("/")
    if not top.endswith(".data"):
        put(tree, f"{wheel.site_packages}/{member.filename}", content, mode)
        if rest == "METADATA" and top.endswith(".dist-info"):
            put(tree, f"{wheel.site_packages}/{top}/INSTALLER", "conda\n")
        return
    scheme, _, path = rest.partition("/")
    if scheme == "scripts":
        content = re.sub(rb"\A#!pythonw?[^\n]*\n", _SHEBANG.encode(), content)
        put(tree, f"{wheel.scripts}/{path}", content, 0o755)
        return
    project = canonicalize_name(wheel.metadata["Name"])
    roots = {
        "purelib": wheel.site_packages,
        "platlib": wheel.site_packages,
        "headers": f"include/python{_MAJOR}.{_MINOR}/{project}",
        "data": ".",
    }
    put(tree, f"{roots[scheme]}/{path}", content, mode)


def _write_entry_point(entry_point: str, tree: Path) -> None:
    """Write the script of a command, as an installer does for a `noarch` package."""
    command, _, target = (part.strip() for part in entry_point.partition("="))
    module, _, function = (part.strip() for part in target.partition(":"))
    script = _ENTRY_POINT.format(
        shebang=_SHEBANG, module=module, name=function.split(".")[0], function=function
    )
    put(tree, f"bin/{command}", script, 0o755)


def _describe(wheel: _Wheel) -> Package:
    """Say what package a wheel becomes."""
    metadata = wheel.metadata
    name = canonicalize_name(metadata["Name"])
    needed = requirements.depends(metadata.get_all("Requires-Dist", []))
    if name == "pip":
        needed = ("setuptools", "wheel")  # as conda-forge has it
    if wheel.pure:
        accepted = SpecifierSet(metadata.get("Requires-Python", ""))
        interpreter = requirements.match_spec("python", accepted)
    else:
        interpreter = f"python >={_MAJOR}.{_MINOR},<{_MAJOR}.{_MINOR + 1}"
    return Package(
        name=name,
        version=metadata["Version"],
        build="pyh_0" if wheel.pure else f"py{_MAJOR}{_MINOR}_0",
        depends=(interpreter, *needed),
        noarch="python" if wheel.pure else None,
        license=_license(metadata),
        summary=metadata.get("Summary", ""),
        entry_points=wheel.entry_points if wheel.pure else (),
    )


def _license(metadata: Message) -> str:
    """Find a licence that fits on a line; the field may hold the whole text."""
    stated = [metadata.get("License-Expression"), metadata.get("License")]
    classified = [
        classifier.rpartition(" :: ")[2]
        for classifier in metadata.get_all("Classifier", [])
        if classifier.startswith("License :: ")
    ]
    short = [text for text in stated if text and "\n" not in text and len(text) < _LONGEST_LICENSE]
    return (short + classified + ["see the package"])[0]
