"""Writes an image from a directory with mksquashfs, and checks it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from condainer.errors import BuildError, ImageError, ToolError
from condainer.project import image
from condainer.system import tools

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from anyio import Event

    from condainer.pipeline.installers import Workplace
    from condainer.pipeline.parts import Part
    from condainer.pipeline.tree import Tree
    from condainer.project.config import Config
    from condainer.squashfs import Superblock
    from condainer.system.tools import Mksquashfs

PREFERENCE = ("zstd", "gzip")
"""Which algorithm is taken where the project names none, by what mksquashfs has."""

DEFAULT_LEVELS = {"zstd": 6}
"""Levels taken where the project names none; the others keep mksquashfs's own.

`python -m benchmarks build` measures it: with blocks of 256K, an eighth of the time that gzip takes
and 5 % smaller, at no cost for a cold start.
"""

REPACK_LEVELS = {"zstd": 15}
"""The same for an image that is made anew for the sake of its size and its cold starts alone: a
twelfth smaller, in four times the time."""

_BAR = re.compile(r"\[.*?\]\s*(\d+)/(\d+)\s+\d+%")
_MEMORY, _BLOCKS = 256, 8
"""MiB that mksquashfs may hold in its queues, and blocks for each processor, if that is more. Its
own default is a quarter of the machine; with much it is a few percent slower than with little."""

_LAST_LINES = 8

# The directory itself is closed while it is a staging directory; an application that somebody else
# has installed may be as it likes, but its image is not. `chmod` is a newer name of `mode`.
_MODES = [
    *("-action", "mode(755)@depth(0)"),
    *("-action", "mode(a-s,a-t,go-w)@! type(l)"),
]
"""What mksquashfs does with the permissions in a directory: as `tree.KEPT`."""


@dataclass(frozen=True)
class Compression:
    """How an image is compressed.

    Attributes:
        algorithm: its name.
        level: None where the algorithm has none, or mksquashfs's own is taken.
        block_size: bytes.
    """

    algorithm: str
    level: int | None
    block_size: int

    @property
    def arguments(self) -> list[str]:
        """For mksquashfs."""
        arguments = ["-comp", self.algorithm, "-b", str(self.block_size)]
        if self.level is not None:
            arguments += ["-Xcompression-level", str(self.level)]
        return arguments


def choose_compression(
    config: Config, mksquashfs: Mksquashfs, levels: Mapping[str, int]
) -> Compression:
    """What the project asks for, or the best that this mksquashfs has.

    Args:
        config: of the project.
        mksquashfs: what compresses.
        levels: by algorithm, where the project names none.

    Raises:
        ToolError: where the project asks for what this mksquashfs does not have.
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
        level = None  # it was meant for zstd
    return Compression(algorithm, level, config.block_size)


def reads_archives(mksquashfs: Mksquashfs) -> bool:
    """Whether it can make an image of an archive that it reads from a pipe."""
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
    """Compress a directory into a new image, or what comes through a pipe.

    Everything in it belongs to root, so that an image is the same whoever built it.

    Args:
        mksquashfs: what compresses.
        source: the directory, or the descriptor of a pipe with a tar archive, which is closed.
        target: the image.
        compression: how.
        workplace: where it runs.
        order: of a directory: a file that says which files come first.
        aside: until this is set, mksquashfs stands back for what installs: that comes to its end
            first, and then all processors compress.

    Raises:
        BuildError: with mksquashfs's last lines.
    """
    own = ["-tar", "-root-mode", "755"] if isinstance(source, int) else _MODES
    own = [*own, "-sort", str(order)] if order is not None else own
    workplace = replace(workplace, pass_fds=[*workplace.pass_fds, target.descriptor])

    def take(line: str) -> None:
        bar = _BAR.match(line)
        if bar:
            workplace.on_progress(int(bar[1]), int(bar[2]), "")
        else:
            workplace.on_line(line)

    answer = await workplace.run(
        [
            str(mksquashfs.path),
            "-" if isinstance(source, int) else str(source),
            *(str(target.content), "-noappend", *own),
            *compression.arguments,
            *("-processors", str(workplace.processors), "-mem", _memory(compression, workplace)),
            *("-all-root", "-no-xattrs", "-no-recovery"),
            "-exit-on-error",  # or it puts an empty file where it cannot read one, and goes on
        ],
        on_line=take,
        stdin=source if isinstance(source, int) else None,
        terminal=True,
        aside=aside,
    )
    if answer.returncode != 0:
        lines = [line for line in answer.tail if not _BAR.match(line)][-_LAST_LINES:]
        last = "\n".join(f"  {line}" for line in lines)
        raise BuildError(f"mksquashfs failed ({answer.verdict}):\n{last}")


def _memory(compression: Compression, workplace: Workplace) -> str:
    needed = _BLOCKS * workplace.processors * compression.block_size >> 20
    return f"{max(_MEMORY, needed)}M"


async def unpack(source: Path, directory: Path, workplace: Workplace) -> None:
    """Unpack an image into an empty directory.

    Raises:
        ToolError: where there is no unsquashfs, which comes with mksquashfs.
        BuildError: with its last lines.
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
        last = "\n".join(f"  {line}" for line in answer.tail[-_LAST_LINES:])
        raise BuildError(f"unsquashfs failed ({answer.verdict}):\n{last}")


def verify(path: Path, tree: Tree) -> Superblock:
    """See that an image is whole and holds what was to go into it.

    Raises:
        BuildError: where it does not.
    """
    try:
        superblock = image.read_superblock(path)
        if superblock.compression not in {"lzo", "lz4"}:  # not readable with the standard parts
            image.read_manifest(path)
    except ImageError as error:
        raise BuildError(f"the new image is not what it should be: {error.message}") from error
    if not tree.inodes <= superblock.inodes <= tree.inodes + tree.links_again:
        raise BuildError(
            f"the new image holds {superblock.inodes} inodes instead of {tree.inodes}",
            "something changed the staging directory meanwhile; build again",
        )
    return superblock
