"""Whom a path belongs to: who else could put something in its place, or change what lies there.

The owner of a directory can exchange all that is in it, and so can whoever may write there. Where
a directory is sticky, as /tmp is, only the owner of an entry can. So a path is safe where each
directory on the way, and each link, is in the hands of trusted users. Nothing is run from, mounted
on, built at or unpacked into a path that is not: what a program loads next could be somebody
else's. A name, once it was found to be safe, can be used as a name: nobody else can change what it
stands for.

Every `exec` comes through here, so nothing is imported that takes long.
"""

from __future__ import annotations

import os
import stat

from condainer.errors import NEEDS_PROC, CondainerError, MountError

TYPE_CHECKING = False  # importing `typing` takes as long as all of this does
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from condainer.project.project import Project

    Step = tuple[str, int, int, int]

_MOST_LINKS = 40
"""Symbolic links on the way of one path, as the kernel counts them: path_resolution(7)."""
_OVERFLOW = 65534
"""How the kernel shows users that a user namespace does not know: user_namespaces(7)."""
_LAST = (1 << 32) - 2
"""The largest number of a user; the one after it means none."""
_ACL = "system.posix_acl_access"


class ExposedError(MountError):
    """Somebody who is not trusted can change what is at a path."""


def check_base(project: Project) -> None:
    """See that nobody can put something else in the place of a project's mountpoint.

    Raises:
        ExposedError: if somebody can who is not trusted; says who and what to do.
    """
    _check(str(project.prefix.parent), project)


def check_prefix(project: Project) -> None:
    """See that nobody can put something else in the place of a mountpoint that is there, or in it.

    Raises:
        ExposedError: if somebody can who is not trusted; says who and what to do.
    """
    _check(str(project.prefix), project)


def _check(path: str, project: Project) -> None:
    problem = find_stranger(path, trusted(project))
    if problem:
        where, lacks_bit, _ = problem.partition(" is writable for ")
        raise ExposedError(
            f"{path} is not safe to run programs from: {problem}",
            (f"'chmod +t {where}' mends that; or " if lacks_bit else "") + other_base(project),
        )


def of_this_user(project: Project) -> set[int]:
    """This user, root, and whom the project's settings name as trusted."""
    return {0, os.getuid()} | _user_ids(project.config.trusted_users)


def trusted(project: Project) -> set[int]:
    """The users who decide in any case what programs of a project do, and those it names."""
    found = of_this_user(project)
    for path in (project.image, project.directory):
        try:
            found.add(path.stat().st_uid)
        except OSError:
            continue
    return found


def of_another(project: Project, status: os.stat_result) -> tuple[str, str]:
    """What to say where another user has made the mountpoint, and what to do about it."""
    return (
        f"the mountpoint {project.prefix} belongs to {describe_owner(status)}",
        f"you cannot remove it: ask its owner or an administrator to; or {other_base(project)}",
    )


def other_base(project: Project) -> str:
    """What to do where a mountpoint is in the hands of others."""
    return (
        f"choose a mount_base_directory in {project.directory}/condainer.yml that only you or root "
        "can write to, and build again; its key trusted_users names others whom you trust with "
        "your programs"
    )


def find_stranger(path: str, trusted: Collection[int]) -> str:
    """Who can change what is at a path, and is not trusted.

    Args:
        path: absolute; what is missing is no danger where only trusted users can make it.
        trusted: the user ids.

    Returns:
        who, and at which part of the path; empty where nobody can.

    Raises:
        CondainerError: if /proc does not tell what is mounted.
    """
    return _Walk(trusted).problem(path)


def signature(path: str) -> tuple[Step, ...]:
    """What tells the directories on a path, and who may write there, from what was found before.

    Not their owners: a user namespace shows others, and only root could change them.

    Raises:
        OSError: if it cannot be looked at.
    """
    return tuple(
        (name, status.st_dev, status.st_ino, status.st_mode) for name, status in _steps(path)
    )


def user_id(name: str) -> int:
    """The id of a user.

    Args:
        name: or number.

    Raises:
        CondainerError: if nobody here has that name.
    """
    if name.isdecimal() and name.isascii() and len(name) <= len(str(_LAST)) and int(name) <= _LAST:
        return int(name)
    import pwd

    try:
        return pwd.getpwnam(name).pw_uid
    except (KeyError, ValueError):
        raise CondainerError(f"there is no user {name} on this machine") from None


def _user_ids(names: Collection[str]) -> set[int]:
    """The ids of users by name or number; names that nobody has here are left out."""
    found = set()
    for name in names:
        try:
            found.add(user_id(name))
        except CondainerError:
            continue
    return found


def describe_owner(status: os.stat_result) -> str:
    """Who owns something, and since when it is as it is, for a message."""
    import time

    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(status.st_ctime))
    return f"{user_name(status.st_uid)}, since {since}"


def user_name(uid: int) -> str:
    """A user, for a message: by name as well, where there is one."""
    import pwd

    try:
        return f"user {uid} ({pwd.getpwuid(uid).pw_name})"
    except KeyError:
        return f"user {uid}"


def _steps(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """Each directory and each link on the way of a path, with the links followed.

    Raises:
        OSError: if one cannot be looked at, or if there are too many links.
    """
    import errno

    yield "/", os.lstat("/")
    here, links = "", 0
    waiting = [name for name in reversed(path.split("/")) if name and name != "."]
    while waiting:
        name = waiting.pop()
        if name == "..":
            here = here.rpartition("/")[0]
            continue
        there = f"{here}/{name}"
        status = os.lstat(there)
        yield there, status
        if not stat.S_ISLNK(status.st_mode):
            here = there
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        target = os.readlink(there)
        if target[:1] == "/":
            here = ""
        waiting += [name for name in reversed(target.split("/")) if name and name != "."]


class _Walk:
    """Looks at one path after the other with the eyes of those who trust certain users."""

    def __init__(self, trusted: Collection[int]) -> None:
        self._trusted = trusted
        self._knows_root = _knows_root()

    def problem(self, path: str) -> str:
        """Who could change what is at a path, and how; empty where nobody can."""
        shared = {"": False}  # the directories, and whether entries there are their owners' own
        device = -1
        try:
            for name, status in _steps(path):
                parent = name.rpartition("/")[0]
                within = shared.get(parent, False)
                if not self._trusts(status.st_uid, within):
                    return f"{name} belongs to {describe_owner(status)}"
                if not stat.S_ISDIR(status.st_mode):
                    continue
                user = 0 if status.st_dev == device else _fuse_user(status.st_dev)
                if user and not self._trusts(user, within):
                    return f"{name} is on a file system of {user_name(user)}"
                device = status.st_dev
                open_to = self._writers(name, status)
                sticky = bool(status.st_mode & stat.S_ISVTX)
                if open_to and not sticky:
                    return f"{name} is writable for {open_to} and has no sticky bit"
                shared["" if name == "/" else name] = bool(open_to)
        except FileNotFoundError as error:
            # It may have been taken away for this very moment, by who puts it back afterwards.
            missing = str(error.filename)
            anybody = shared.get(missing.rpartition("/")[0], False)
            return f"{missing} is missing, and others can make it" if anybody else ""
        except OSError as error:
            return f"{error.filename or path} cannot be looked at: {error.strerror}"
        return ""

    def _trusts(self, uid: int, shared: bool) -> bool:  # noqa: FBT001
        """Whether an owner is trusted.

        In a user namespace that does not know root, what is root's looks like everybody else's.
        It is root's where nobody else could have put it there.
        """
        return uid in self._trusted or (uid == _OVERFLOW and not self._knows_root and not shared)

    def _writers(self, name: str, status: os.stat_result) -> str:
        """Which others may write to a directory, in words; empty where nobody may."""
        if status.st_mode & stat.S_IWOTH:
            return "all"
        if not status.st_mode & stat.S_IWGRP:
            return ""
        if _has_acl(name):  # whose mask is what the mode shows for the group
            return "those in its access control list"
        return "" if self._is_of_trusted(status.st_gid) else f"group {status.st_gid}"

    def _is_of_trusted(self, gid: int) -> bool:
        """Whether a group has trusted users only: the group that a user has for itself, or root's.

        Who has a group as their first cannot be listed on many clusters, so the name has to show
        that it is one user's.
        """
        import grp
        import pwd

        try:
            group = grp.getgrgid(gid)
            members = {pwd.getpwnam(name).pw_uid for name in group.gr_mem}
            owner = pwd.getpwnam(group.gr_name)
        except KeyError:
            return False
        return owner.pw_gid == gid and {owner.pw_uid, *members} <= set(self._trusted)


def _has_acl(path: str) -> bool:
    try:
        return bool(os.getxattr(path, _ACL, follow_symlinks=False))
    except OSError:  # none, or a file system without them
        return False


def _knows_root() -> bool:
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            maps = [line.split() for line in file]
    except OSError:
        return True
    return any(int(outside) <= 0 < int(outside) + int(count) for _, outside, count in maps)


def _fuse_user(device: int) -> int:
    """Who has mounted the FUSE file system of a device; 0 where it is root, or none of FUSE's.

    Raises:
        CondainerError: if that cannot be read; then nothing can be called safe.
    """
    number = f"{os.major(device)}:{os.minor(device)}"
    path = "/proc/self/mountinfo"
    try:
        table = open(path, "rb")  # noqa: SIM115  (closed below)
    except OSError as error:
        raise CondainerError(f"cannot read {path}: {error.strerror}", NEEDS_PROC) from error
    with table:
        for line in table:
            fields, _, after = line.partition(b" - ")
            if fields.split(b" ", 3)[2] != number.encode() or not after.startswith(b"fuse"):
                continue
            for option in after.rsplit(b" ", 1)[-1].strip().split(b","):
                if option.startswith(b"user_id="):
                    return int(option[len(b"user_id=") :])
    return 0
