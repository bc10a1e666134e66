"""Finds out what is at a project's prefix, and whether a build can have it.

It may be free, or hold a mount, what a killed build has left, an application, or something else.
"""

from __future__ import annotations

import fnmatch
import os
import shlex
import stat
from typing import TYPE_CHECKING, Any

from condainer.errors import BuildError
from condainer.system import files, locks, mounttable, runtime, trust, users

if TYPE_CHECKING:
    from condainer.project.project import Project


def check_unclaimed(project: Project) -> None:
    """Check that no other build has claimed a project's prefix.

    Args:
        project: what is built.

    Raises:
        BuildError: If one has.
    """
    if locks.is_held(project.build_lock):
        raise claimed_by_another(project)


def check_base_directory(project: Project) -> None:
    """Check that an environment can be installed below the mount base directory and run from there.

    Args:
        project: what is built.

    Raises:
        CondainerError: If it is missing, not writable or mounted noexec, or if somebody else can
            replace what is there.
    """
    base = project.prefix.parent
    hint = "choose another mount_base_directory in condainer.yml"
    if not base.is_dir():
        raise BuildError(f"mount_base_directory {base} is missing", f"make it, or {hint}")
    flags = os.statvfs(base).f_flag
    if flags & os.ST_RDONLY:
        raise BuildError(f"mount_base_directory {base} is read-only", hint)
    if not os.access(base, os.W_OK | os.X_OK):
        raise BuildError(f"you cannot write to mount_base_directory {base}", hint)
    if flags & os.ST_NOEXEC:
        raise BuildError(
            f"mount_base_directory {base} is mounted noexec, so no program can run there", hint
        )
    trust.check_base(project)


def check_prefix(project: Project) -> None:
    """Check that a project's prefix is free, or holds what an earlier build of ours left.

    Args:
        project: what is built.

    Raises:
        BuildError: If something else is there.
    """
    prefix = project.prefix
    _check_unmounted(project)
    try:
        status = prefix.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise BuildError(f"cannot look at {prefix}: {error.strerror}") from error
    if status.st_uid != os.getuid():
        raise BuildError(*trust.of_another(project, status))
    hint = "nothing was removed; see what it is, move it away, and build again"
    if stat.S_ISLNK(status.st_mode):
        raise BuildError(f"the mountpoint {prefix} is a symbolic link", hint)
    if not stat.S_ISDIR(status.st_mode):
        raise BuildError(f"the mountpoint {prefix} is not a directory", hint)
    if any(prefix.iterdir()) and not _left_over(project):
        raise BuildError(f"{prefix} is in use by something else: it is not empty", hint)


def check_application(project: Project) -> None:
    """Check that somebody else's application is at a project's prefix.

    Args:
        project: what is built.

    Raises:
        BuildError: If something else is there, or nothing.
    """
    prefix = project.prefix
    _check_unmounted(project)
    if prefix.is_symlink():
        raise BuildError(f"the mountpoint {prefix} is a symbolic link", "move the program there")
    if not prefix.is_dir():
        raise BuildError(
            f"there is nothing at {prefix}",
            "install the application there first; build then compresses it",
        )


def _check_unmounted(project: Project) -> None:
    mounted = mounttable.mounts_at_or_below(project.prefix)
    if mounted:
        directory = shlex.quote(str(project.directory))
        raise BuildError(
            f"{mounted[-1].mountpoint} is mounted ({mounted[-1].kind})",
            f"end what uses it, then run: condainer -d {directory} umount",
        )
    _check_unneeded(project)


def _check_unneeded(project: Project) -> None:
    """Check that nobody has mounted over the prefix in a namespace: that mount would go with it.

    Raises:
        BuildError: If somebody has.
    """
    hint = "end what uses it, then build again"
    directory = project.runtime_directory
    found = fnmatch.filter(runtime.names(directory), f"{project.config.uuid}.?*-*.keeper")
    for path in map(directory.joinpath, found):
        if locks.is_held(path, shared=True):
            who = users.describe(users.users_of(project.prefix, path.with_suffix(".use")))
            raise BuildError(
                f"{project.prefix} is in use in a namespace of its own"
                + (f" by {who}" if who else ""),
                hint,
            )
    if others := users.claimants(project.prefix):
        raise BuildError(
            f"{project.prefix} is in use by {others[0]}",
            f"build again when that has ended; or {trust.other_base(project)}",
        )


def claimed_by_another(project: Project) -> BuildError:
    """Make an error that says which other build has claimed a project's prefix.

    Args:
        project: what is built.
    """
    process = noted(project).get("process")
    if isinstance(process, int) and os.path.exists(f"/proc/{process}"):  # noqa: PTH110
        return BuildError(
            f"another build of this project is running on this machine (process {process})",
            "wait until it has ended",
        )
    who = users.describe(users.users_of(project.prefix, project.build_lock))
    return BuildError(
        "programs of a build of this project that was killed are still running on this machine"
        + (f": {who}" if who else ""),
        "end them, then build again",
    )


def _left_over(project: Project) -> bool:
    """Whether the directory at the prefix is one that an earlier build of ours has made."""
    return noted(project).get("made") == [*identity(project.prefix.lstat())]


def noted(project: Project) -> dict[str, Any]:
    """Read what `staging.Claim.note` wrote into the build's lock.

    Args:
        project: what is built.
    """
    try:
        document = files.parse_json(runtime.read(project.build_lock))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def identity(status: os.stat_result) -> tuple[int, int]:
    """Make a value that identifies a file or directory: its device and inode.

    Args:
        status: of it, by `lstat`.
    """
    return status.st_dev, status.st_ino
