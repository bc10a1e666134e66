"""Finds out who can change what is at a path.

The owner of a directory can replace everything in it, and so can everybody who may write to it. In
a sticky directory, such as /tmp, only the owner of an entry can replace the entry. So a path is
safe if trusted users own each directory and each link on the way to it. Nothing is run from,
mounted on, built at or unpacked into a path that is not safe: a program might load somebody else's
code from there. Once a name was found safe, it can be used as a name: nobody else can change what
it refers to.

Every `exec` uses this module, so it imports nothing that takes long.
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
    """Check that nobody can put something else in place of a project's mountpoint.

    Args:
        project: whose mountpoint.

    Raises:
        ExposedError: If somebody can who is not trusted: says who, and what to do.
    """
    _check(str(project.prefix.parent), project)


def check_prefix(project: Project) -> None:
    """Check that nobody can change an existing mountpoint, or put something else in its place.

    Args:
        project: whose mountpoint.

    Raises:
        ExposedError: If somebody can who is not trusted: says who, and what to do.
    """
    _check(str(project.prefix), project)


def _check(path: str, project: Project) -> None:
    problem = find_stranger(path, trusted(project))
    if problem:
        where, lacks_bit, _ = problem.partition(" is writable for ")
        raise ExposedError(
            f"{path} is not safe to run programs from: {problem}",
            (f"'chmod +t {where}' fixes that; or " if lacks_bit else "") + other_base(project),
        )


def of_this_user(project: Project) -> set[int]:
    """The users whom this user trusts: this user, root, and those that the settings name.

    Args:
        project: whose settings.

    Returns:
        Their numbers.
    """
    return {0, os.getuid()} | _user_ids(project.config.trusted_users)


def trusted(project: Project) -> set[int]:
    """The users who decide anyway what a project's programs do, and those that the settings name.

    Args:
        project: whose image and settings.

    Returns:
        Their numbers.
    """
    found = of_this_user(project)
    for path in (project.image, project.directory):
        try:
            found.add(path.stat().st_uid)
        except OSError:
            continue
    return found


def of_another(project: Project, status: os.stat_result) -> tuple[str, str]:
    """Say that another user has made the mountpoint.

    Args:
        project: whose mountpoint.
        status: of the directory there.

    Returns:
        What happened, and what to do.
    """
    return (
        f"the mountpoint {project.prefix} belongs to {describe_owner(status)}",
        f"you cannot remove it: ask its owner or an administrator to; or {other_base(project)}",
    )


def other_base(project: Project) -> str:
    """Say what to do if a mountpoint is in the hands of others.

    Args:
        project: whose mountpoint.
    """
    return (
        f"choose a mount_base_directory in {project.directory}/condainer.yml that only you or root "
        "can write to, and build again; its key trusted_users names others whom you trust with "
        "your programs"
    )


def find_stranger(path: str, trusted: Collection[int]) -> str:
    """Find a user who can change what is at a path, and who is not trusted.

    Args:
        path: absolute. If its end is missing, it is safe if only trusted users can make it.
        trusted: numbers of the users.

    Returns:
        Who it is, and at which part of the path; empty if there is none.

    Raises:
        CondainerError: If /proc does not tell what is mounted.
    """
    return _Walk(trusted).problem(path)


def signature(path: str) -> tuple[Step, ...]:
    """Describe the directories on a path and who may write to them, to notice later changes.

    Owners are left out: a user namespace shows others, and only root could change them.

    Args:
        path: absolute.

    Raises:
        OSError: If a part of it cannot be looked at.
    """
    return tuple(
        (name, status.st_dev, status.st_ino, status.st_mode) for name, status in _steps(path)
    )


def user_id(name: str) -> int:
    """The number of a user.

    Args:
        name: name or number.

    Raises:
        CondainerError: If no user of this machine has that name.
    """
    if name.isdecimal() and name.isascii() and len(name) <= len(str(_LAST)) and int(name) <= _LAST:
        return int(name)
    import pwd

    try:
        return pwd.getpwnam(name).pw_uid
    except (KeyError, ValueError):
        raise CondainerError(f"there is no user {name} on this machine") from None


def _user_ids(names: Collection[str]) -> set[int]:
    """The numbers of users by name or number, without names that nobody has here."""
    found = set()
    for name in names:
        try:
            found.add(user_id(name))
        except CondainerError:
            continue
    return found


def describe_owner(status: os.stat_result) -> str:
    """Name the owner of a file in a message, and the time of its last change.

    Args:
        status: of the file.
    """
    import time

    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(status.st_ctime))
    return f"{user_name(status.st_uid)}, since {since}"


def user_name(uid: int) -> str:
    """Name a user in a message: by number, and by name if there is one.

    Args:
        uid: number of the user.
    """
    import pwd

    try:
        return f"user {uid} ({pwd.getpwuid(uid).pw_name})"
    except KeyError:
        return f"user {uid}"


def _steps(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """Each directory and each link on the way of a path, with links followed.

    Raises:
        OSError: If one cannot be looked at, or if there are too many links.
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
    """Looks at paths for somebody who trusts certain users.

    Args:
        trusted: numbers of the users.
    """

    def __init__(self, trusted: Collection[int]) -> None:
        self._trusted = trusted
        self._knows_root = _knows_root()

    def problem(self, path: str) -> str:
        """Who could change what is at a path, and how; empty if nobody can."""
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

        A user namespace that does not know root shows root's files as those of an unknown user.
        Such a file is root's if nobody else could have put it there.
        """
        return uid in self._trusted or (uid == _OVERFLOW and not self._knows_root and not shared)

    def _writers(self, name: str, status: os.stat_result) -> str:
        """Which others may write to a directory, in words; empty if nobody may."""
        if status.st_mode & stat.S_IWOTH:
            return "all"
        if not status.st_mode & stat.S_IWGRP:
            return ""
        if _has_acl(name):  # whose mask is what the mode shows for the group
            return "those in its access control list"
        return "" if self._is_of_trusted(status.st_gid) else f"group {status.st_gid}"

    def _is_of_trusted(self, gid: int) -> bool:
        """Whether a group has only trusted members: a user's private group, or that of root.

        Many clusters cannot list who has a group as the first one. So the name of the group must
        show that it is one user's.
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
    """The user who mounted the FUSE file system of a device; 0 for root or for no FUSE.

    Raises:
        CondainerError: If that cannot be read; then nothing can be called safe.
    """
    number = f"{os.major(device)}:{os.minor(device)}"
    path = "/proc/self/mountinfo"
    try:
        table = open(path, "rb")  # noqa: SIM115  (closed below)
    except OSError as error:
        raise CondainerError(f"cannot read {path}: {error.strerror}", NEEDS_PROC) from error
    with table:
        users = [_fuse_user_in(line) for line in table if line.split(b" ", 3)[2] == number.encode()]
    return next((user for user in users if user), 0)


def _fuse_user_in(line: bytes) -> int:
    """The user that a line of the mount table names: proc(5), mountinfo; 0 if it names none."""
    after = line.partition(b" - ")[2]
    if not after.startswith(b"fuse"):
        return 0
    options = after.rsplit(b" ", 1)[-1].strip().split(b",")
    found = (option[len(b"user_id=") :] for option in options if option.startswith(b"user_id="))
    return int(next(found, b"0"))
