"""Files beside a project that have another name until they are complete.

The name says which process on which machine writes the file, so that what a killed build left
can be told from what another build is writing.
"""

from __future__ import annotations

import contextlib
import glob
import os
import platform
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from condainer.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def part_of(path: Path) -> Path:
    """The name of a file of this process until it is complete."""
    return path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.part")


def check_replaceable(path: Path) -> None:
    """See that a path is free, or that of a file.

    Raises:
        BuildError: where a file cannot be put in its place.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
        raise BuildError(f"{path}: it is {kind}, and build writes a file there", "move it away")


def behind_link(path: Path) -> Path:
    """Where a file is written: people keep images on other disks, with a link beside the project.

    Raises:
        BuildError: where the link leads to no directory that can be written to.
    """
    if not path.is_symlink():
        return path
    target = path.resolve()
    if not os.access(target.parent, os.W_OK | os.X_OK) or not target.parent.is_dir():
        raise BuildError(
            f"{path} is a link to {target}, and {target.parent} is no directory you can write to",
            "make that directory, or let the link lead elsewhere",
        )
    return target


def publish(texts: Mapping[Path, str], mode: int, last: tuple[Path, Path]) -> None:
    """Write some files and put all of them in place, or none.

    Args:
        texts: what each is to hold.
        mode: their permissions.
        last: a file that is complete, and the name it gets after all the others.
    """
    parts = {path: part_of(path) for path in texts}
    try:
        for path, text in texts.items():
            parts[path].write_text(text, encoding="utf-8")
            parts[path].chmod(mode)
        part, final = last
        part.chmod(mode)
        # From here on nothing can run full.
        for path, written in parts.items():
            written.rename(path)
        part.rename(final)
    finally:
        for written in parts.values():
            written.unlink(missing_ok=True)


def remove_stale(paths: Iterable[Path]) -> None:
    """Remove the parts of some files that were left by processes of this machine."""
    node = glob.escape(platform.node())
    for path in paths:
        for part in path.parent.glob(f".{glob.escape(path.name)}.{node}.*.part"):
            process = part.name.rsplit(".", 2)[1]
            if process.isdigit() and not Path("/proc", process).exists():
                with contextlib.suppress(OSError):
                    part.unlink()
