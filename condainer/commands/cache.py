"""`cache`: reads the image once, so that this node has it in memory when programs start."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from condainer.commands import console
from condainer.mounting import use
from condainer.project import image
from condainer.project import project as project_module
from condainer.startup import note
from condainer.units import human

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from pathlib import Path

EXAMPLES = """\
  condainer cache && condainer exec -- python script.py
  srun --ntasks-per-node=1 condainer -d /project/env cache    once on each node
"""

_CHUNK = 4 << 20
"""Bytes that are read at once."""


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """Add nothing: the command has no arguments of its own."""


def run(arguments: argparse.Namespace) -> int:
    """Read the image of a project.

    Args:
        arguments: the parsed command line.

    Returns:
        The exit status.
    """
    project = project_module.open_project(arguments.directory)
    use.check_image(project)
    if arguments.dry_run:
        console.inform(arguments, f"would read {project.image}")
        return 0
    live = console.is_live(arguments)

    def show(done: int, total: int) -> None:
        if live:
            console.redraw(f"{human(done)} of {human(total)} ")

    size = _read_all(project.image, show)
    if live:
        console.redraw("")
    console.inform(arguments, f"read {human(size)} of {project.image}")
    return 0


def _read_all(path: Path, on_progress: Callable[[int, int], None]) -> int:
    """Read a file from its beginning to its end.

    Args:
        path: the file.
        on_progress: called with the bytes read so far and the bytes in total.

    Returns:
        The bytes in total. Holes count as read, whatever their size.

    Raises:
        ImageError: If it is not an image, or cannot be read.
    """
    superblock = image.read_superblock(path)
    done = 0
    with image.opened(path) as descriptor:
        total = os.fstat(descriptor).st_size
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        note.read_ahead(descriptor, superblock)  # what programs need first
        buffer = bytearray(_CHUNK)
        while done < total:
            done = _next_data(descriptor, done, total)
            done += os.readv(descriptor, [buffer]) or total - done  # the file has become shorter
            on_progress(done, total)
    return done


def _next_data(descriptor: int, place: int, total: int) -> int:
    """Seek over a hole: to the next data of a file, or to its end if only a hole follows."""
    try:
        return os.lseek(descriptor, place, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return os.lseek(descriptor, total, os.SEEK_SET)
        return os.lseek(descriptor, place, os.SEEK_SET)  # not every file system can tell
