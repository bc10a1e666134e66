"""Unpacking instead of mounting, on nodes without FUSE: once per node, where the mount would be.

The tree is made beside its place, compared with what the image says of itself, and renamed. It is
of this user's own, and known by its root directory's inode. `live` notes that before the tree comes
to its place: nobody could tell what a tree there is, or remove it, that is not noted.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

from condainer.errors import CondainerError, MountError
from condainer.system import process, processtable, removal, tools, users
from condainer.units import human

if TYPE_CHECKING:
    from collections.abc import Callable

    from condainer.project.project import Project

PATIENCE = 3600.0
"""Seconds for which unpacking may take."""

_ENDING, _POLL = 5.0, 0.02
"""Seconds for programs that are killed to end, and between two looks."""
_ROOM = 64 << 20
"""Bytes to leave free, for directories and for what others write meanwhile."""
_KEPT = 0o755
"""The permissions that what is unpacked may have."""
_MODULE = "condainer.squashfs.unpack"


def unpack(project: Project, note: Callable[[Path], None]) -> None:
    """Unpack a project's image at its prefix, where an empty directory is.

    Args:
        project: whose image.
        note: notes what is served; it is given the tree before that comes to its place.

    Raises:
        MountError: where there is no room, programs cannot run there, or the image is damaged.
    """
    base = project.prefix.parent
    if os.statvfs(base).f_flag & os.ST_NOEXEC:
        raise MountError(
            f"{base} is mounted noexec: no program would run from there",
            "choose another mount_base_directory in condainer.yml, and build again",
        )
    tree = Path(project.places.unpacking)
    remove_part(project)
    try:
        tree.mkdir(mode=0o700)  # tells all others that they have to wait
        inodes, size = _measure(project)
        _require(base, inodes, size)
        _fill(project, tree)
        _compare(project, (inodes, size), _seal(tree))
        note(tree)
        tree.chmod(0o700)  # or it could not be moved
        tree.rename(project.prefix)
        project.prefix.chmod(0o500)  # as closed to others as a mount of this user's is
    except OSError as error:
        removal.remove_tree(tree)
        raise MountError(f"cannot unpack {project.image}: {error.strerror}") from error
    except BaseException:
        removal.remove_tree(tree)
        raise


def remove_part(project: Project) -> None:
    """Remove what a killed keeper has unpacked so far, and end what still does for it.

    Whoever calls holds the lock of the keeper, or of those who mount while there is no keeper.
    """
    tree = Path(project.places.unpacking)
    deadline = time.monotonic() + _ENDING
    while (found := processtable.running_on(str(tree))) and time.monotonic() < deadline:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL)
    removal.remove_tree(tree)


def remove(project: Project) -> str:
    """Remove what was unpacked, unless something still runs from it.

    Returns:
        an empty text, or why it stays.
    """
    who = users.users_of(project.prefix, project.use_lock)
    if who:
        return f"in use by {users.describe(who)}"
    tree = Path(project.places.unpacking)
    try:
        removal.remove_tree(tree)
        project.prefix.chmod(0o700)
        project.prefix.rename(tree)
        removal.remove_tree(tree)
    except CondainerError as error:
        return error.message
    except OSError as error:
        return str(error.strerror)
    return ""


def _measure(project: Project) -> tuple[int, int]:
    """The inodes, and the bytes of files, that an image says it has."""
    command = process.own_program(_MODULE, str(project.image))
    answer = process.call(command, timeout=PATIENCE)
    if answer.returncode != 0:
        raise MountError(f"cannot read {project.image}: {answer.stderr.strip()[-500:]}")
    inodes, size = answer.stdout.split()
    return int(inodes), int(size)


def _require(base: Path, inodes: int, size: int) -> None:
    status = os.statvfs(base)
    free = status.f_bavail * status.f_frsize
    if free < size + _ROOM:
        raise MountError(
            f"{base} has {human(free)} free, and the image unpacked takes {human(size)}",
            "make room there, or choose another mount_base_directory and build again",
        )
    if status.f_files and status.f_favail < inodes:
        raise MountError(f"{base} has room for {status.f_favail} files, the image has {inodes}")


def _fill(project: Project, tree: Path) -> None:
    unsquashfs = tools.which("unsquashfs")
    if unsquashfs is not None:
        processors = str(len(os.sched_getaffinity(0)))
        options = ("-quiet", "-no-progress", "-no-xattrs", "-force", "-processors", processors)
        command = [str(unsquashfs), *options, "-dest", str(tree), str(project.image)]
        if process.call(command, timeout=PATIENCE).returncode == 0:
            return
        removal.remove_tree(tree)  # it may not know the compression
    command = process.own_program(_MODULE, str(project.image), str(tree))
    answer = process.call(command, timeout=PATIENCE)
    if answer.returncode != 0:
        raise MountError(f"cannot unpack {project.image}: {answer.stderr.strip()[-500:]}")


def _compare(project: Project, wanted: tuple[int, int], found: tuple[int, int]) -> None:
    if found != wanted:
        raise MountError(
            f"{project.image} was not unpacked as it should be: {found[0]} inodes of {wanted[0]}, "
            f"{human(found[1])} of {human(wanted[1])}"
        )


def _seal(tree: Path) -> tuple[int, int]:
    """Leave no permission that a mount would not give, and count the inodes and bytes of files.

    Nobody else writes to a file, none has a setuid or setgid bit, and all belong to this user,
    whatever the image says; directories are closed to writing. Meanwhile nobody else gets at them.
    """
    seen = set()
    size = 0
    waiting = [tree]
    while waiting:
        directory = waiting.pop()
        status = _owned(directory, directory.lstat())
        seen.add(status.st_ino)
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
                    continue
                found = _owned(Path(entry.path), entry.stat(follow_symlinks=False))
                if stat.S_IMODE(found.st_mode) & ~_KEPT and not entry.is_symlink():
                    Path(entry.path).chmod(found.st_mode & _KEPT)
                if found.st_ino not in seen and stat.S_ISREG(found.st_mode):
                    size += found.st_size
                seen.add(found.st_ino)
        directory.chmod(status.st_mode & _KEPT & ~0o222)
    return len(seen), size


def _owned(path: Path, status: os.stat_result) -> os.stat_result:
    """See that something belongs to this user: to root unsquashfs gives the owners of the image."""
    if (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid()):
        return status
    os.chown(path, os.geteuid(), os.getegid(), follow_symlinks=False)
    return path.lstat()
