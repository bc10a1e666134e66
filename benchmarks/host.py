"""The machine: what it is, which tools it has, and its page cache.

Everything is asked of the system itself, and goes into `results.json` as text.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import condainer
from condainer.errors import ToolError
from condainer.system import process, tools
from condainer.units import human

if TYPE_CHECKING:
    from collections.abc import Mapping

_CACHES = Path("/proc/sys/vm/drop_caches")
_PROGRAMS = {
    "mksquashfs": "-version",
    "squashfuse": "--help",
    "squashfuse_ll": "--help",
    "fusermount3": "--version",
    "micromamba": "--version",
    "conda-pack": "--version",
    "strace": "--version",
}
"""How each says its version."""
MACHINE = ("CPU", "processors", "memory", "virtualisation")
"""What has to be the same for times to be compared."""


def describe(directory: Path) -> dict[str, str]:
    """What a reader has to know of this machine.

    Args:
        directory: where environment and images lie meanwhile.
    """
    return {
        "host": platform.node(),
        "CPU": _cpu(),
        "processors": str(len(os.sched_getaffinity(0))),
        "memory": human(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        "virtualisation": _virtualisation(),
        "system": _system(),
        "kernel": platform.release(),
        "file system": file_system(directory),
        "user": "root" if os.getuid() == 0 else "an ordinary user",
        "page caches": "dropped before first starts and first reads"
        if may_drop_caches()
        else "dropped before first starts and first reads as far as an ordinary user may: contents "
        "of files, not their names and attributes",
        "load before": " ".join(f"{load:.1f}" for load in os.getloadavg()),
        **_versions(),
    }


def now() -> str:
    """The time, as it stands in results."""
    return dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds")


def may_drop_caches() -> bool:
    """Whether page caches can be dropped."""
    return os.access(_CACHES, os.W_OK) and os.getuid() == 0


def drop_caches(*paths: Path) -> str:
    """Have the kernel forget what it keeps of files, as far as that is permitted.

    Args:
        paths: of which at least the contents are to be forgotten: files, or directories with all
            that is in them. Anybody may do that; names and attributes stay known then.

    Returns:
        what came of it.
    """
    os.sync()  # what is not on disk yet cannot be forgotten
    if may_drop_caches():
        with contextlib.suppress(OSError):  # as in containers, whatever the mode says
            _CACHES.write_text("3")
            return "dropped"
    for path in paths:
        for file in path.rglob("*") if path.is_dir() else [path]:
            if file.is_file() and not file.is_symlink():
                _drop(file)
    return "contents dropped, names kept" if paths else "kept"


def _drop(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def file_system(directory: Path) -> str:
    """The kind of file system that holds a directory, and how large it is."""
    command = ["df", "--output=fstype", str(directory)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    found = os.statvfs(directory)
    return f"{answer.stdout.split()[-1]}, {human(found.f_frsize * found.f_blocks)}"


def _cpu() -> str:
    fields = _fields(Path("/proc/cpuinfo"), ":")
    return fields.get("model name") or fields.get("cpu model") or platform.machine()


def _virtualisation() -> str:
    flags = _fields(Path("/proc/cpuinfo"), ":").get("flags", "").split()
    return "a virtual machine" if "hypervisor" in flags else "none that is seen"


def _system() -> str:
    return _fields(Path("/etc/os-release"), "=").get("PRETTY_NAME", platform.system()).strip('"')


def _fields(path: Path, separator: str) -> Mapping[str, str]:
    """The lines `name SEPARATOR value` of a file; empty where there is none."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    pairs = [line.partition(separator) for line in lines]
    return {name.strip(): value.strip() for name, _, value in reversed(pairs)}


def _versions() -> dict[str, str]:
    """What takes part, and in which version."""
    found = {"condainer": condainer.__version__, "python": platform.python_version()}
    found |= {name: _version(name, option) for name, option in _PROGRAMS.items()}
    with contextlib.suppress(metadata.PackageNotFoundError):
        found["py-rattler"] = metadata.version("py-rattler")
    return found


def _version(name: str, option: str) -> str:
    """What a program says of its version: the first thing that looks like one."""
    beside = Path(sys.executable).with_name(name)
    path = tools.which(name) or (beside if beside.exists() else None)
    if path is None:
        return "none"
    try:
        answer = process.call([str(path), option])
    except ToolError as error:
        return str(error)
    match = re.search(r"\b\d+\.\d[\w.]*", answer.stdout + answer.stderr)
    return match[0] if match else "does not say its version"
