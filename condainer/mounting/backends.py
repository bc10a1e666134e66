"""The programs that can mount an image, and how each is called."""

from __future__ import annotations

import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from condainer.errors import MountError
from condainer.system import process, tools

if TYPE_CHECKING:
    from collections.abc import Callable

PYTHON = "python"
PORTABLE = "fusepy"
KERNEL = "kernel"
EXTRACT = "extract"
"""Unpacks instead; not one of those that `auto` tries."""

AUTOMATIC = ("squashfuse_ll", "squashfuse", PYTHON, PORTABLE)
"""What `auto` tries, in this order; where none of them can mount, it unpacks."""

_OWN = {PYTHON: "condainer.fuse", PORTABLE: "condainer.fuse.portable"}
"""Programs of ours, by the modules that they are."""
_OWN_KIND = "fuse.condainer"
"""File system type of the first of these."""

_OPTIONS = "ro,nodev,nosuid"


@dataclass(frozen=True)
class Backend:
    """One way to mount an image.

    Attributes:
        name: as in `--backend`.
        executable: the program that mounts.
    """

    name: str
    executable: Path

    @property
    def is_daemon(self) -> bool:
        """Whether a process of ours serves the mount as long as it lasts."""
        return self.name not in {KERNEL, EXTRACT}

    def mount_command(self, image: Path, mountpoint: Path) -> list[str]:
        """The command that mounts; a daemon stays in the foreground."""
        places = [str(image), str(mountpoint)]
        if not self.is_daemon:
            return [str(self.executable), "-t", "squashfs", "-o", f"loop,{_OPTIONS}", *places]
        own = _OWN.get(self.name)
        command = process.own_program(own) if own else [str(self.executable)]
        return [*command, "-f", "-o", _OPTIONS, *places]


def needs_namespace() -> bool:
    """Whether this user can mount in a namespace of their own only: fusermount is not setuid."""
    fusermount = tools.find_fusermount()
    if os.getuid() == 0:
        return False
    return fusermount is None or not fusermount.stat().st_mode & stat.S_ISUID


def choose(name: str) -> Backend:
    """The backend of that name, or the first there is.

    Raises:
        MountError: where it is not there, and what to do about it.
    """
    return candidates(name)[0]


def candidates(name: str, on_note: Callable[[str], None] = lambda _: None) -> list[Backend]:
    """What may mount: the backend of a name, or for `auto` all there are, the best first.

    Args:
        name: as in `--backend`.
        on_note: takes a line about each that is not there.

    Raises:
        MountError: where it is not there, and what to do about it.
    """
    if name == KERNEL:
        mount = tools.which("mount")
        if os.getuid() != 0 or mount is None:
            raise MountError("the backend 'kernel' is for root only", "use '--backend auto'")
        return [Backend(KERNEL, mount)]
    if name == EXTRACT:
        return [Backend(EXTRACT, Path(sys.executable))]
    found = []
    for each in AUTOMATIC if name == "auto" else (name,):
        executable = Path(sys.executable) if each in _OWN else tools.which(each)
        if executable is not None:
            found.append(Backend(each, executable))
        else:
            on_note(f"there is no {each}")
    if not found:
        raise MountError(
            f"there is no {name} on this machine",
            f"install or load {tools.PACKAGE_HINTS['squashfuse']}; see 'condainer prereq'",
        )
    return found


def name_of(kind: str) -> str:
    """Which backend serves a mount.

    Args:
        kind: file system type in the mount table.
    """
    if kind == "squashfs":
        return KERNEL
    return PYTHON if kind == _OWN_KIND else kind.removeprefix("fuse.")


def unmount(mountpoint: Path, kind: str, *, dead: bool = False) -> str:
    """Unmount without force.

    Args:
        mountpoint: where.
        kind: file system type in the mount table.
        dead: nobody serves it any more, so that it may go from under those who still have
            something of it open: they get errors in any case.

    Returns:
        an empty text, or why it cannot be done (mostly because it is in use).
    """
    fusermount = tools.find_fusermount() if kind.startswith("fuse") else None
    umount = tools.which("umount")
    if fusermount is not None and (os.getuid() != 0 or umount is None):
        command = [str(fusermount), "-u", *(["-z"] if dead else []), str(mountpoint)]
    elif umount is not None:
        command = [str(umount), *(["-l"] if dead else []), str(mountpoint)]
    else:
        return "there is neither fusermount nor umount"
    answer = process.call(command)
    if answer.returncode == 0:
        return ""
    return (answer.stderr or answer.stdout).strip() or f"exit status {answer.returncode}"
