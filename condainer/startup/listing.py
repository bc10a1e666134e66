"""The list of the files that a program reads when it starts, which a build puts side by side.

`condainer profile` writes the list into the project. A build sorts the image by it, and notes
behind the image where these files lie (see `note`).
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from condainer.errors import BuildError
from condainer.project import image
from condainer.startup import note
from condainer.system import files, process

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from condainer.pipeline.parts import Part
    from condainer.pipeline.workplace import Workplace

_HIGHEST = 32767
"""The highest priority that mksquashfs can give a file."""
_MOST = 2 * _HIGHEST
"""Files in a list: mksquashfs knows so many priorities."""
_LONGEST_LIST = 3_900_000
"""Bytes of a list."""


def read(path: Path) -> tuple[str, ...]:
    """The list that is kept in a project; empty if there is none.

    Args:
        path: of the list.

    Raises:
        CondainerError: If it cannot be read.
    """
    if files.is_missing(path):
        return ()
    lines = (line.strip() for line in files.read_text(path).splitlines())
    names = (line for line in lines if line and not line.startswith(("#", "/")))
    return tuple(dict.fromkeys(name for name in names if ".." not in name.split("/")))


def joined(before: Sequence[str], names: Sequence[str]) -> list[str]:
    """A list, with the files behind it that another command has read.

    Args:
        before: the list.
        names: files that the other command has read, in that order.

    Returns:
        as many of both as `read` and a build accept.
    """
    kept: list[str] = []
    left = _LONGEST_LIST
    for name in dict.fromkeys((*before, *names)):
        left -= len(os.fsencode(name)) + 1
        if left < 0 or len(kept) == _MOST:
            break
        kept.append(name)
    return kept


def write_order(names: Sequence[str], prefix: Path, directory: Path | None) -> Path | None:
    """Write a file that tells mksquashfs which files come first.

    Args:
        names: their paths below the prefix, in their order.
        prefix: the environment.
        directory: where to write it.

    Returns:
        the file; None if nothing comes first.
    """
    if not names or directory is None:
        return None
    path = directory / "order"
    with path.open("w", encoding="utf-8", errors="surrogateescape") as file:
        for place, name in enumerate(names[:_MOST]):
            if not any(letter.isspace() for letter in name) and os.path.lexists(prefix / name):
                file.write(f"{prefix / name} {_HIGHEST - place}\n")
    return path


async def mark(part: Part, names: Sequence[str], workplace: Workplace) -> None:
    """Note behind an image which part of it holds some files.

    Args:
        part: the image that is being made.
        names: the files' paths below the prefix.
        workplace: of the build, where the program that looks runs.

    Raises:
        BuildError: If the image cannot be read.
    """
    place = replace(workplace, pass_fds=[*workplace.pass_fds, part.descriptor])
    answer = await place.run(
        process.own_program("condainer.startup.locate", str(part.content)),
        stdin=b"\0".join(os.fsencode(name) for name in names),
        capture=True,
    )
    if answer.returncode != 0:
        last = answer.tail[-1] if answer.tail else answer.verdict
        raise BuildError(f"cannot see where files lie in {part.path}: {last}")
    start, end = map(int, answer.stdout.split())
    if start < end:
        superblock = image.read_superblock(part.content)
        with part.content.open("r+b") as file:
            note.write(file.fileno(), superblock, start, end)
