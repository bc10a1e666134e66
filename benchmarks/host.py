"""The machine: what it is, which tools it has, and its page cache.

Everything is asked of the system itself, and goes into `results.json` as text.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import condainer
from condainer import process, tools
from condainer.errors import ToolError
from condainer.units import human

if TYPE_CHECKING:
    from collections.abc import Mapping

_CACHES = Path("/proc/sys/vm/drop_caches")
_PROGRAMS = ("fusermount3", "micromamba", "conda-pack", "strace")
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
        "page caches": "dropped before what is named cold or first"
        if may_drop_caches()
        else "not dropped (only root may)",
        "load before": " ".join(f"{load:.1f}" for load in os.getloadavg()),
        **_versions(),
    }


def now() -> str:
    """The time, as it stands in results."""
    return dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds")


def may_drop_caches() -> bool:
    """Whether page caches can be dropped."""
    return os.access(_CACHES, os.W_OK) and os.getuid() == 0


def drop_caches() -> str:
    """Have the kernel forget what it keeps of files, where permitted; says what came of it."""
    if may_drop_caches():
        os.sync()
        with contextlib.suppress(OSError):  # as in containers, whatever the mode says
            _CACHES.write_text("3")
            return "dropped"
    return "kept"


def file_system(directory: Path) -> str:
    """The kind of file system that holds a directory, and how large it is."""
    answer = subprocess.run(
        ["stat", "-f", "-c", "%T", str(directory)], capture_output=True, text=True, check=True
    )
    found = os.statvfs(directory)
    return f"{answer.stdout.strip()}, {human(found.f_frsize * found.f_blocks)}"


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
    for name in ("mksquashfs", "squashfuse", "squashfuse_ll"):
        found[name] = _answer(name, "-version" if name == "mksquashfs" else "--help")
    for name in _PROGRAMS:
        path = tools.which(name) or tools.which(str(Path(sys.executable).with_name(name)))
        found[name] = (tools.version_of(path) or "without a version") if path else "none"
    with contextlib.suppress(metadata.PackageNotFoundError):
        found["py-rattler"] = metadata.version("py-rattler")
    return found


def _answer(name: str, option: str) -> str:
    """The first line that a program prints, without its copyright."""
    path = tools.which(name)
    if path is None:
        return "none"
    try:
        answer = process.call([str(path), option])
    except ToolError as error:
        return str(error)
    lines = (answer.stdout + answer.stderr).strip().splitlines()
    return lines[0].partition(" (c)")[0].removeprefix(f"{name} ") if lines else "without a version"
