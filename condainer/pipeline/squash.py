"""Runs mksquashfs and unsquashfs, and checks new images."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from condainer.errors import BuildError, ImageError, ToolError
from condainer.pipeline.workplace import last_lines
from condainer.project import image
from condainer.system import tools

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from anyio import Event

    from condainer.pipeline.parts import Part
    from condainer.pipeline.tree import Tree
    from condainer.pipeline.workplace import Workplace
    from condainer.project.config import Config
    from condainer.squashfs import Superblock
    from condainer.system.tools import Mksquashfs

PREFERENCE = ("zstd", "gzip")
"""The algorithms if the project names none; the first that mksquashfs has is taken."""

DEFAULT_LEVELS = {"zstd": 6}
"""Levels by algorithm, if the project names none; other algorithms keep the level of mksquashfs.

`python -m benchmarks build` measures it: with blocks of 256K, an eighth of the time that gzip takes
and 5 % smaller, and a cold start takes as long.
"""

REPACK_LEVELS = {"zstd": 15}
"""The same for `--repack`, which is only for size and cold starts: a twelfth smaller, in four times
the time."""

_BAR = re.compile(r"\[.*?\]\s*(\d+)/(\d+)\s+\d+%")
_MEMORY, _BLOCKS = 256, 8
"""MiB that mksquashfs may use, or so many blocks for each processor, if that is more.

Its own default is a quarter of the machine, which makes it a few percent slower.
"""


_MODES = [
    *("-action", "mode(755)@depth(0)"),
    *("-action", "mode(a-s,a-t,go-w)@! type(l)"),
]
"""The permissions in an image, as `tree.KEPT`.

`mode` is an older name of `chmod`. The staging directory itself has mode 0700, and an application
that somebody else has installed may have any mode, but the image has 0755.
"""


@dataclass(frozen=True)
class Compression:
    """How an image is compressed.

    Attributes:
        algorithm: its name.
        level: None if the algorithm has none, or keeps that of mksquashfs.
        block_size: bytes.
    """

    algorithm: str
    level: int | None
    block_size: int

    @property
    def arguments(self) -> list[str]:
        """Arguments for mksquashfs."""
        arguments = ["-comp", self.algorithm, "-b", str(self.block_size)]
        if self.level is not None:
            arguments += ["-Xcompression-level", str(self.level)]
        return arguments


def choose_compression(
    config: Config, mksquashfs: Mksquashfs, levels: Mapping[str, int]
) -> Compression:
    """Choose what the project asks for, or the best that this mksquashfs has.

    Args:
        config: of the project.
        mksquashfs: the program.
        levels: by algorithm, if the project names none.

    Raises:
        ToolError: If this mksquashfs does not have what the project asks for.
    """
    algorithm = config.compression
    if not algorithm:
        algorithm = next((a for a in PREFERENCE if a in mksquashfs.compressors), "gzip")
    elif algorithm not in mksquashfs.compressors:
        raise ToolError(
            f"{mksquashfs.path} cannot compress with {algorithm}",
            f"it has {', '.join(mksquashfs.compressors)}; change the key compression",
        )
    level = config.compression_level
    if level is None:
        level = levels.get(algorithm)
    elif not config.compression and algorithm != "zstd":
        level = None  # the level was meant for zstd
    return Compression(algorithm, level, config.block_size)


def reads_archives(mksquashfs: Mksquashfs) -> bool:
    """Whether a mksquashfs makes images from a tar archive that it reads from a pipe.

    Args:
        mksquashfs: the program.
    """
    return mksquashfs.version >= (4, 5)


async def write(
    mksquashfs: Mksquashfs,
    source: Path | int,
    target: Part,
    compression: Compression,
    workplace: Workplace,
    order: Path | None = None,
    aside: Event | None = None,
) -> None:
    """Compress a directory, or a tar archive that comes through a pipe, into a new image.

    Everything in it belongs to root, so that an image is the same whoever built it.

    Args:
        mksquashfs: the program.
        source: the directory, or the descriptor of the pipe, which is closed here.
        target: the image file.
        compression: how to compress.
        workplace: where mksquashfs runs.
        order: a file for `-sort`, which says which files of a directory come first; or None.
        aside: until this is set, mksquashfs has the lowest priority, so that the installation
            ends first; then it has all processors. None if nothing else runs meanwhile.

    Raises:
        BuildError: If mksquashfs fails; the message has its last lines.
    """

    def take(line: str) -> None:
        bar = _BAR.match(line)
        if bar:
            workplace.on_progress(int(bar[1]), int(bar[2]), "")
        else:
            workplace.on_line(line)

    answer = await replace(workplace, pass_fds=[*workplace.pass_fds, target.descriptor]).run(
        _command(mksquashfs, source, target, compression, workplace.processors, order),
        on_line=take,
        stdin=source if isinstance(source, int) else None,
        terminal=True,
        aside=aside,
    )
    if answer.returncode != 0:
        last = last_lines([line for line in answer.tail if not _BAR.match(line)])
        raise BuildError(f"mksquashfs failed ({answer.verdict}):\n{last}")


def _command(
    mksquashfs: Mksquashfs,
    source: Path | int,
    target: Part,
    compression: Compression,
    processors: int,
    order: Path | None,
) -> list[str]:
    is_archive = isinstance(source, int)
    memory = max(_MEMORY, _BLOCKS * processors * compression.block_size >> 20)
    return [
        *(str(mksquashfs.path), "-" if is_archive else str(source)),
        *(str(target.content), "-noappend"),
        *(("-tar", "-root-mode", "755") if is_archive else _MODES),
        *(["-sort", str(order)] if order is not None else []),
        *compression.arguments,
        *("-processors", str(processors), "-mem", f"{memory}M"),
        *("-all-root", "-no-xattrs", "-no-recovery"),
        "-exit-on-error",  # without it, a file that cannot be read becomes an empty one
    ]


async def unpack(source: Path, directory: Path, workplace: Workplace) -> None:
    """Unpack an image into an empty directory.

    Args:
        source: the image.
        directory: where to.
        workplace: where unsquashfs runs.

    Raises:
        ToolError: If there is no unsquashfs, which comes with mksquashfs.
        BuildError: If it fails; the message has its last lines.
    """
    unsquashfs = tools.which("unsquashfs")
    if unsquashfs is None:
        raise ToolError(
            "unsquashfs was not found", f"install or load {tools.PACKAGE_HINTS['mksquashfs']}"
        )
    answer = await workplace.run(
        [
            *(str(unsquashfs), "-force", "-no-xattrs", "-no-progress"),
            *("-processors", str(workplace.processors), "-dest", str(directory), str(source)),
        ]
    )
    if answer.returncode != 0:
        raise BuildError(f"unsquashfs failed ({answer.verdict}):\n{last_lines(answer.tail)}")


def verify(path: Path, tree: Tree) -> Superblock:
    """Check that an image is complete and holds what was sent.

    Args:
        path: the image.
        tree: the size of what it is to hold.

    Raises:
        BuildError: If it does not.
    """
    try:
        superblock = image.read_superblock(path)
        if superblock.compression not in {"lzo", "lz4"}:  # Python cannot read these
            image.read_manifest(path)
    except ImageError as error:
        raise BuildError(f"the new image is damaged: {error.message}") from error
    if not tree.inodes <= superblock.inodes <= tree.inodes + tree.links_again:
        raise BuildError(
            f"the new image holds {superblock.inodes} inodes instead of {tree.inodes}",
            "something has changed the staging directory meanwhile; build again",
        )
    return superblock
