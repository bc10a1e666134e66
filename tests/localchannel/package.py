"""The conda package format: a directory tree in, one `.conda` or `.tar.bz2` archive out.

This module owns everything that is written into an archive: `info/index.json`,
`info/paths.json` and their companions, the prefix placeholder, modes and times. It does not know
where a tree comes from; that is what the recipes in the neighbouring modules are for.

The same tree always gives the same bytes: names are sorted, owners are dropped, and a file has
the time `EPOCH` unless its package says otherwise.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import shlex
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import zstandard

EPOCH = 1_704_067_200
"""The modification time of every packaged file: the first second of 2024, in UTC."""

PLACEHOLDER = ("/opt/anaconda1anaconda2anaconda3" + "_placehold" * 30)[:255]
"""What stands for the prefix in a packaged file, as long as conda-build makes it."""

SITE_PACKAGES = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
"""Where an architecture's package puts its modules, relative to the prefix."""

_ZSTD_LEVEL = 3  # a test waits for this: a few per cent of size are worth less than the time
_MACHINES = {"x86_64": "64", "aarch64": "aarch64"}


def subdir() -> str:
    """Name this machine's channel directory, such as `linux-64`.

    Raises:
        RuntimeError: if conda has no name here for the machine.
    """
    machine = platform.machine()
    if machine not in _MACHINES:
        raise RuntimeError(f"no conda subdir is known for the machine {machine}")
    return f"linux-{_MACHINES[machine]}"


@dataclass(frozen=True, kw_only=True)
class Package:
    """What a package says about itself.

    Attributes:
        name: The name that specs use.
        version: The version.
        build: The build string; its last part is the build number by convention.
        build_number: The build number.
        depends: Match specs of the packages that this one needs.
        noarch: `python`, `generic`, or None for a package of this machine's architecture.
        license: A short licence identifier.
        summary: One line for `info/about.json`.
        entry_points: `NAME = MODULE:FUNCTION` lines of a `noarch: python` package.
        mtimes: Modification times that differ from `EPOCH`, by path.
        suffix: The archive format.
        info: Files of the `info` directory in place of those made of the tree, for packages that
            are not what they should be; None leaves one out.
    """

    name: str
    version: str
    build: str = "0"
    build_number: int = 0
    depends: tuple[str, ...] = ()
    noarch: Literal["python", "generic"] | None = None
    license: str = "MIT"
    summary: str = ""
    entry_points: tuple[str, ...] = ()
    mtimes: Mapping[str, int] = field(default_factory=dict)
    suffix: Literal[".conda", ".tar.bz2"] = ".conda"
    info: Mapping[str, bytes | None] = field(default_factory=dict)

    @property
    def distribution(self) -> str:
        """The archive's name without its suffix."""
        return f"{self.name}-{self.version}-{self.build}"

    @property
    def subdir(self) -> str:
        """The channel directory that the archive belongs in."""
        return "noarch" if self.noarch else subdir()


Recipe = Callable[[Path], Package]
"""Fills an empty directory with a package's files and says what package that is."""


def put(tree: Path, path: str, content: str | bytes, mode: int = 0o644) -> None:
    """Write one file of a package's tree.

    Args:
        tree: The directory that stands for the prefix.
        path: The file's path below it.
        content: What the file holds.
        mode: Its permissions, whatever the umask.
    """
    file = tree / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    file.chmod(mode)


def compile_tree(tree: Path, path: str) -> None:
    """Add the `.pyc` files that stay valid after the package is linked.

    The interpreter compares the time and the size of a source with those noted in the `.pyc`, so
    the sources get the time that the archive will give them. One new interpreter compiles one
    package because marshalled code depends on what the process has interned before; a fixed hash
    seed keeps sets in order.

    Args:
        tree: The directory that stands for the prefix.
        path: The directory below it to compile.
    """
    for source in (tree / path).rglob("*.py"):
        os.utime(source, (EPOCH, EPOCH))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    command = [sys.executable, "-S", "-W", "ignore", "-m", "compileall", "-qq"]
    command += ["--invalidation-mode", "timestamp", "-s", str(tree), str(tree / path)]
    # Some wheels carry templates and examples that are not valid Python: not an error.
    seeded = environment | {"PYTHONHASHSEED": "0"}
    subprocess.run(command, env=seeded, umask=0o022, check=False)


def write(package: Package, tree: Path, channel: Path) -> Path:
    """Pack a tree.

    Args:
        package: What the package says about itself.
        tree: The directory that stands for the prefix.
        channel: The channel's directory; its sub-directory is made if need be.

    Returns:
        The archive.
    """
    directory = channel / package.subdir
    directory.mkdir(parents=True, exist_ok=True)
    archive = directory / (package.distribution + package.suffix)
    paths = sorted(_members(tree), key=os.fsencode)
    info = _info(package, tree, paths)

    def add_info(tar: tarfile.TarFile) -> None:
        for name, content in sorted(info.items()):
            _add_info(tar, f"info/{name}", content)

    def add_files(tar: tarfile.TarFile) -> None:
        for path in paths:
            _add_file(tar, tree / path, path, package.mtimes.get(path, EPOCH))

    if package.suffix == ".tar.bz2":
        with tarfile.open(archive, "w:bz2", format=tarfile.PAX_FORMAT) as tar:
            add_info(tar)
            add_files(tar)
        return archive
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as outer:
        outer.writestr(zipfile.ZipInfo("metadata.json"), '{"conda_pkg_format_version": 2}')
        _add_part(outer, f"pkg-{package.distribution}.tar.zst", add_files)
        _add_part(outer, f"info-{package.distribution}.tar.zst", add_info)
    return archive


def _members(tree: Path) -> Iterator[str]:
    """Yield the files, links and empty directories of a tree, relative to it."""
    for directory, subdirectories, files in os.walk(tree):
        here = Path(directory)
        links = [name for name in subdirectories if (here / name).is_symlink()]
        for name in files + links:
            yield str((here / name).relative_to(tree))
        if not files and not subdirectories and here != tree:
            yield str(here.relative_to(tree))


def _info(package: Package, tree: Path, paths: list[str]) -> dict[str, bytes]:
    """Write the files of the `info` directory, by name."""
    # An empty directory is in the archive alone: installers take every path for a file.
    files = [path for path in paths if (tree / path).is_symlink() or not (tree / path).is_dir()]
    entries = [_paths_entry(tree / path, path) for path in files]
    about = {"license": package.license, "summary": package.summary}
    info = {
        "index.json": _json(_index(package)),
        "paths.json": _json({"paths": entries, "paths_version": 1}),
        "about.json": _json(about),
        "files": "".join(f"{path}\n" for path in files).encode(),
    }
    prefixed = [entry for entry in entries if "prefix_placeholder" in entry]
    if prefixed:
        info["has_prefix"] = "".join(
            f"{PLACEHOLDER} {entry['file_mode']} {shlex.quote(entry['_path'])}\n"
            for entry in prefixed
        ).encode()
    if package.noarch == "python":
        noarch = {"type": "python", "entry_points": list(package.entry_points)}
        info["link.json"] = _json({"noarch": noarch, "package_metadata_version": 1})
    given = {**info, **package.info}
    return {name: content for name, content in given.items() if content is not None}


def _index(package: Package) -> dict[str, Any]:
    index: dict[str, Any] = {
        "arch": None if package.noarch else platform.machine(),
        "build": package.build,
        "build_number": package.build_number,
        "depends": list(package.depends),
        "license": package.license,
        "name": package.name,
        "platform": None if package.noarch else "linux",
        "subdir": package.subdir,
        "timestamp": EPOCH * 1000,
        "version": package.version,
    }
    return index | ({"noarch": package.noarch} if package.noarch else {})


def _paths_entry(file: Path, path: str) -> dict[str, Any]:
    """Describe one file for `info/paths.json`."""
    if file.is_symlink():
        # libmamba reads no package of which it does not know all sizes.
        return {"_path": path, "path_type": "softlink", "size_in_bytes": file.lstat().st_size}
    content = file.read_bytes()
    entry = {
        "_path": path,
        "path_type": "hardlink",
        "sha256": hashlib.sha256(content).hexdigest(),
        "size_in_bytes": len(content),
    }
    if PLACEHOLDER.encode() not in content:
        return entry
    mode = "binary" if b"\0" in content else "text"
    return entry | {"prefix_placeholder": PLACEHOLDER, "file_mode": mode}


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=2, sort_keys=True).encode()


def _add_part(outer: zipfile.ZipFile, name: str, fill: Callable[[tarfile.TarFile], None]) -> None:
    """Add one of the two compressed tar files that a `.conda` archive consists of."""
    compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
    with (
        outer.open(zipfile.ZipInfo(name), "w", force_zip64=True) as member,
        compressor.stream_writer(member, closefd=False) as compressed,
        tarfile.open(fileobj=compressed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        fill(tar)


def _add_info(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    member.mtime = EPOCH
    tar.addfile(member, io.BytesIO(content))


def _add_file(tar: tarfile.TarFile, file: Path, path: str, mtime: int) -> None:
    status = file.lstat()
    member = tarfile.TarInfo(path)
    member.mtime = mtime
    member.mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISREG(status.st_mode):
        member.size = status.st_size
        with file.open("rb") as content:
            tar.addfile(member, content)
        return
    if stat.S_ISLNK(status.st_mode):
        member.type = tarfile.SYMTYPE
        member.linkname = str(file.readlink())
    else:
        member.type = tarfile.DIRTYPE
    tar.addfile(member)
