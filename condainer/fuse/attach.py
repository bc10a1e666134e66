"""Mounts the file system, and gets the descriptor of /dev/fuse that the kernel sends requests to.

mount(2) needs CAP_SYS_ADMIN: root has it, and everybody in a user namespace of their own. For all
others the setuid program `fusermount3` (or `fusermount`) mounts, and sends the descriptor back
through a socket. Source: fusermount3(1), libfuse's util/fusermount.c. A mountpoint `/dev/fd/N` is
a descriptor that another process has mounted already.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
import stat
from typing import NamedTuple

from condainer.fuse.options import INHERITED, escaped

_DEVICE = "/dev/fuse"
_TYPE = "fuse.condainer"
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_NOATIME = 1, 2, 4, 8, 1024
_FLAGS = {
    "ro": _MS_RDONLY,
    "nosuid": _MS_NOSUID,
    "nodev": _MS_NODEV,
    "noexec": _MS_NOEXEC,
    "noatime": _MS_NOATIME,
}
_MNT_DETACH = 2


class AttachError(Exception):
    """The file system cannot be mounted here."""


class Wanted(NamedTuple):
    """How to mount.

    Attributes:
        source: what the mount table is to name.
        mountpoint: a directory, or `/dev/fd/N`.
        flags: of those that every file system has: `ro`, `nosuid`, `nodev`, `noexec`, `noatime`.
        options: `allow_other` and `default_permissions`.
    """

    source: str
    mountpoint: str
    flags: tuple[str, ...]
    options: tuple[str, ...]


class Mount(NamedTuple):
    """What was mounted.

    Attributes:
        place: where, without symbolic links.
        device: number of the file system, as the mount table has it; empty if it is not known.
    """

    place: str
    device: bytes


def attach(wanted: Wanted) -> int:
    """Mount, and give the descriptor that the kernel's requests come through.

    Args:
        wanted: how to mount.

    Raises:
        AttachError: If it cannot be mounted; the error says why.
    """
    if wanted.mountpoint.startswith(INHERITED):
        return _inherited(wanted.mountpoint)
    try:
        mode = os.stat(wanted.mountpoint).st_mode  # noqa: PTH116  (pathlib is slow to import)
    except OSError as error:
        raise AttachError(f"bad mount point {wanted.mountpoint}: {error.strerror}") from error
    if not stat.S_ISDIR(mode):
        raise AttachError(f"bad mount point {wanted.mountpoint}: {os.strerror(errno.ENOTDIR)}")
    try:
        descriptor = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in {errno.EACCES, errno.EPERM}:
            return _by_fusermount(wanted)  # which may open it for us
        raise AttachError(f"cannot open {_DEVICE}: {error.strerror}") from error
    own = f"fd={descriptor},rootmode={stat.S_IFDIR:o},user_id={os.getuid()}"
    data = ",".join([own, f"group_id={os.getgid()}", *wanted.options])
    number = _mount(wanted, data)
    if not number:
        return descriptor
    os.close(descriptor)
    if number == errno.EPERM:
        return _by_fusermount(wanted)
    raise AttachError(f"cannot mount at {wanted.mountpoint}: {os.strerror(number)}")


def device_at(place: str) -> bytes:
    """The number of the file system that is mounted at a path, as the mount table has it.

    The path itself is not touched: until this program serves, that would never return.

    Args:
        place: the path, without symbolic links.
    """
    path = os.fsencode(place)
    for character in b"\\ \t\n":
        path = path.replace(bytes((character,)), b"\\%03o" % character)
    found = b""
    with (
        contextlib.suppress(OSError),  # a container may hide /proc
        open("/proc/self/mountinfo", "rb") as table,  # noqa: PTH123  (pathlib is slow to import)
    ):
        for line in table:
            fields = line.split(b" ", 5)
            if fields[4] == path:
                found = fields[2]
    return found


def detach(mount: Mount, *, in_use: bool = False) -> bool:
    """Unmount what `attach` has mounted, and nothing else that is mounted there by now.

    Args:
        mount: what was mounted.
        in_use: if somebody uses it, take it from the directory tree all the same. Whoever uses it
            is served on.

    Returns:
        False if somebody uses it, or if it cannot be done now.
    """
    from ctypes import CDLL, get_errno

    if mount.place.startswith(INHERITED) or device_at(mount.place) != mount.device:
        return False
    in_use = in_use and bool(mount.device) and _survives_detaching()
    flags = _MNT_DETACH if in_use else 0
    if CDLL(None, use_errno=True).umount2(os.fsencode(mount.place), flags) == 0:
        return True
    if get_errno() != errno.EPERM:
        return False
    options = ["-u", "-q", "-z"] if in_use else ["-u", "-q"]
    for program in _fusermounts()[:1]:
        with contextlib.suppress(AttachError):
            return _run(program, [*options, "--", mount.place], os.environ) == 0
    return False


def _survives_detaching() -> bool:
    """Whether the kernel survives it: those before 5.2 are said not to, at times."""
    return kernel_version(os.uname().release) >= (5, 2)


def kernel_version(release: str) -> tuple[int, int]:
    """Major and minor number of a kernel; 0 for a number that is missing.

    Args:
        release: as uname(2) has it, such as `6.1-rc3`.
    """
    numbers = []
    for part in [*release.split("."), ""][:2]:
        digits = len(part) - len(part.lstrip("0123456789"))
        numbers.append(int(part[: min(digits, 9)] or 0))
    return numbers[0], numbers[1]


def _inherited(mountpoint: str) -> int:
    try:
        descriptor = int(mountpoint.removeprefix(INHERITED))
        os.fstat(descriptor)
    except (ValueError, OSError) as error:
        raise AttachError(f"bad mount point {mountpoint}: it is not open") from error
    return descriptor


def _mount(wanted: Wanted, data: str) -> int:
    """Call mount(2); gives its errno."""
    from ctypes import CDLL, c_ulong, get_errno

    flags = 0
    for flag in wanted.flags:
        flags |= _FLAGS[flag]
    arguments = (os.fsencode(text) for text in (wanted.source, wanted.mountpoint, _TYPE))
    libc = CDLL(None, use_errno=True)
    if libc.mount(*arguments, c_ulong(flags), os.fsencode(data)) == 0:
        return 0
    return get_errno()


def _fusermounts() -> list[str]:
    """Programs on PATH that may mount for us. Those that are not setuid, as conda's, come last."""
    names = ("fusermount3", "fusermount")
    paths = [f"{directory}/{name}" for name in names for directory in os.get_exec_path()]
    ranked = [(rank, path) for path in paths if (rank := _rank(path)) is not None]
    return [path for _, path in sorted(ranked, key=lambda each: each[0])]


def _rank(path: str) -> int | None:
    """0 for a program that is setuid root, 1 for any other, None for what is no program."""
    try:
        status = os.stat(path)  # noqa: PTH116  (pathlib is slow to import)
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode) or not os.access(path, os.X_OK):
        return None
    return int(status.st_uid != 0 or not status.st_mode & stat.S_ISUID)


def _by_fusermount(wanted: Wanted) -> int:
    programs = _fusermounts()
    if not programs:
        raise AttachError(
            "there is no fusermount3 and no fusermount, and mounting needs one of them"
        )
    source = f"fsname={escaped(wanted.source)}"
    options = [*wanted.flags, *wanted.options, source, "subtype=condainer"]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.set_inheritable(True)
        variables = {**os.environ, "_FUSE_COMMFD": str(theirs.fileno())}
        arguments = ["-o", ",".join(options), "--", wanted.mountpoint]
        program = programs[0]
        if _run(program, arguments, variables) != 0:
            raise AttachError(f"{program} cannot mount at {wanted.mountpoint}")
        return _receive(ours)


def _run(program: str, arguments: list[str], variables: dict[str, str] | os._Environ[str]) -> int:
    """Run a program and give its exit status."""
    try:
        child = os.posix_spawn(program, [program, *arguments], variables, setsigmask=[])
    except OSError as error:
        raise AttachError(f"cannot run {program}: {error.strerror}") from error
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _receive(ours: socket.socket) -> int:
    ours.settimeout(1.0)  # it has ended: what it had to send is there
    descriptors = array.array("i")
    try:
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(descriptors.itemsize))
    except OSError as error:
        raise AttachError("fusermount has sent no descriptor") from error
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: descriptors.itemsize])
            os.set_inheritable(descriptors[0], False)  # noqa: FBT003
            return descriptors[0]
    raise AttachError("fusermount has sent no descriptor")
