"""Files beside a project that have another name until they are complete.

The name says which process on which machine writes the file: so a build can tell what a killed
build has left from what another build is writing. Its end is random, and the file is always created
anew: if others may write to the project's directory, a link that they put there is not followed.
For the same reason the file is written and read by its descriptor, not by its name.
"""

from __future__ import annotations

import contextlib
import glob
import os
import platform
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from condainer.errors import BuildError
from condainer.project import image
from condainer.system.trust import user_name

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping


@dataclass(frozen=True)
class Part:
    """A file that is not complete yet, and has another name until then.

    Attributes:
        path: that name.
        descriptor: for writing; nobody else can read the file before it is published.
    """

    path: Path
    descriptor: int

    @property
    def content(self) -> Path:
        """A path to the file itself, for this process and those that inherit the descriptor."""
        return Path(f"/proc/self/fd/{self.descriptor}")

    @property
    def size(self) -> int:
        """Its size, in bytes."""
        return os.fstat(self.descriptor).st_size

    def publish(self, final: Path, mode: int) -> None:
        """Rename the file to its final name.

        Args:
            final: the name.
            mode: its permissions from then on.

        Raises:
            BuildError: If somebody has put something else in its place.
        """
        os.fchmod(self.descriptor, mode)
        there = self.path.lstat() if os.path.lexists(self.path) else None
        if there is None or not os.path.samestat(there, os.fstat(self.descriptor)):
            raise BuildError(
                f"{self.path} has been replaced while it was being written: {final} stays as it is",
                f"see who may write to {final.parent}",
            )
        self.path.rename(final)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Part]:
    """Create a file that will get a final name; it is removed if it does not.

    Args:
        path: the final name.
    """
    name = f".{path.name}.{platform.node()}.{os.getpid()}.{secrets.token_hex(8)}.part"
    part = path.with_name(name)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(part, flags, 0o600)
    try:
        yield Part(part, descriptor)
    finally:
        os.close(descriptor)
        part.unlink(missing_ok=True)


def check_replaceable(path: Path) -> None:
    """Check that a build can put a file at a path.

    Args:
        path: where.

    Raises:
        BuildError: If something is there that is not a file.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
        raise BuildError(f"{path}: it is {kind}, and build writes a file there", "move it away")


def behind_link(path: Path, trusted: Collection[int]) -> Path:
    """Find where a file is written: its path may be a link to a file on another disk.

    Args:
        path: of the file; maybe a link.
        trusted: the users whose links are followed.

    Raises:
        BuildError: If the link leads to a directory that is not writable, if it belongs to somebody
            else, or if it leads to a file that is not an image.
    """
    if not path.is_symlink():
        return path
    target = path.resolve()
    here = path
    while here.is_symlink():
        owner = here.lstat().st_uid
        if owner not in trusted:
            raise BuildError(
                f"{here} is a link that belongs to {user_name(owner)}, and build would write to "
                f"{target}",
                "remove that link, or make it yourself",
            )
        here = Path(os.path.normpath(here.parent / here.readlink()))
    if not os.access(target.parent, os.W_OK | os.X_OK) or not target.parent.is_dir():
        raise BuildError(
            f"{path} is a link to {target}, and you cannot write to the directory {target.parent}",
            "make that directory, or change the link",
        )
    if os.path.lexists(target) and not image.is_image(target):
        raise BuildError(f"{path} is a link to {target}, which is not an image", "change the link")
    return target


def publish(texts: Mapping[Path, str], mode: int, last: tuple[Part, Path] | None = None) -> None:
    """Write some files and put all of them in place, or none.

    Args:
        texts: the content of each.
        mode: their permissions.
        last: a complete file, and the name that it gets after all the others; None if there is
            none.

    Raises:
        BuildError: If somebody has put something else in the place of one.
    """
    with contextlib.ExitStack() as stack:
        parts = [(stack.enter_context(writing(path)), path) for path in texts]
        for (part, _), text in zip(parts, texts.values(), strict=True):
            with open(part.descriptor, "w", encoding="utf-8", closefd=False) as file:
                file.write(text)
        # From here on no disk can run full.
        for part, path in [*parts, *([last] if last else [])]:
            part.publish(path, mode)


def remove_stale(paths: Iterable[Path]) -> None:
    """Remove the parts of some files that killed processes of this machine have left.

    Args:
        paths: the final names of the files.
    """
    node = glob.escape(platform.node())
    for part in (
        part
        for path in paths
        for part in path.parent.glob(f".{glob.escape(path.name)}.{node}.*.*.part")
    ):
        process = part.name.rsplit(".", 3)[1]
        if process.isdigit() and not Path("/proc", process).exists():
            with contextlib.suppress(OSError):
                part.unlink()
