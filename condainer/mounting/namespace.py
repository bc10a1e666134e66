"""Mounts in a namespace of their own: seen only by the programs that enter it, and gone with them.

An ordinary user may mount with FUSE in a user and mount namespace of theirs (Linux 4.18), where
there is no setuid `fusermount`, or where something else is in the way at the mountpoint. The
daemon stays outside, or it would keep the namespace alive for ever. What holds the namespace
between two programs is the descriptors that the keeper has of it: user_namespaces(7), setns(2).

Every `exec` may come through here, so nothing is imported that takes long.
"""

from __future__ import annotations

import os

from condainer.errors import MountError

TYPE_CHECKING = False  # importing `typing` takes as long as all of this does
if TYPE_CHECKING:
    import socket

_NEW_MOUNT, _NEW_USER = 0x20000, 0x10000000
_READ_ONLY, _NO_SETUID, _NO_DEVICES = 1, 2, 4
_RECURSIVE, _SLAVE = 0x4000, 1 << 19
_DEVICE = "/dev/fuse"


def here() -> int:
    """The mount namespace of this process, by its inode."""
    return os.stat("/proc/self/ns/mnt").st_ino


class Place:
    """Where others find a namespace: two descriptors of a process that holds it.

    Attributes:
        pid: the process.
        user: descriptor of the user namespace, -1 where it is root's own.
        mount: descriptor of the mount namespace.
        inode: of the mount namespace.
        home: inode of the mount namespace it was made in. Others, such as a container's, see
            other files, and must not enter.
    """

    __slots__ = ("home", "inode", "mount", "pid", "user")

    def __init__(self, pid: int, user: int, mount: int, inode: int, home: int) -> None:
        self.pid = pid
        self.user = user
        self.mount = mount
        self.inode = inode
        self.home = home

    def values(self) -> tuple[int, int, int, int, int]:
        """What it is made of."""
        return self.pid, self.user, self.mount, self.inode, self.home

    def is_here(self) -> bool:
        """Whether this process is in it already."""
        return here() == self.inode

    def open(self) -> tuple[int, int]:
        """Descriptors of the user and the mount namespace.

        Raises:
            MountError: where they are not there any more.
        """
        if here() != self.home:
            raise MountError("its namespace belongs to another one", "a container, maybe")
        mount = user = -1
        try:
            mount = os.open(f"/proc/{self.pid}/fd/{self.mount}", os.O_RDONLY | os.O_CLOEXEC)
            is_it = os.fstat(mount).st_ino == self.inode
            if is_it and self.user >= 0:
                user = os.open(f"/proc/{self.pid}/fd/{self.user}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self.close(mount)
            raise MountError(f"its namespace cannot be entered: {error.strerror}") from error
        if not is_it:
            self.close(mount)
            raise MountError("its namespace has gone", "try again")
        return user, mount

    def enter(self) -> None:
        """Go into it, and stay in the working directory.

        Raises:
            MountError: where that cannot be done.
        """
        if self.is_here():
            return
        user, mount = self.open()
        where = -1
        try:
            path = os.getcwd()
        except OSError:
            path = ""  # it has been removed
        try:
            where = os.open(".", os.O_PATH | os.O_CLOEXEC)
            if user >= 0:
                _call("setns", user, _NEW_USER)
            _call("setns", mount, _NEW_MOUNT)
            if not _change_directory(path, where):
                os.fchdir(where)
        except OSError as error:
            raise MountError(f"its namespace cannot be entered: {error.strerror}") from error
        finally:
            self.close(user, mount, where)

    @staticmethod
    def close(*descriptors: int) -> None:
        """Close those that are open."""
        for descriptor in descriptors:
            if descriptor >= 0:
                os.close(descriptor)


def _change_directory(path: str, where: int) -> bool:
    """Go to a directory by its name, where that is the same one here."""
    try:
        os.chdir(path)
        return os.path.samestat(os.stat("."), os.fstat(where))
    except OSError:
        return False


class Made:
    """A new namespace with a mount in it that nobody serves yet.

    Attributes:
        device: the descriptor through which the mount's requests come.
        user: as in `Place`.
        mount: as in `Place`.
        root: the root directory as it is seen inside, until `leave`.
    """

    def __init__(self, helper: int, device: int, control: socket.socket) -> None:
        self._helper = helper
        self._control = control
        self.device = device
        self.mount = self.user = -1
        self.root = f"/proc/{helper}/root"
        flags = os.O_RDONLY | os.O_CLOEXEC
        try:
            self.mount = os.open(f"/proc/{helper}/ns/mnt", flags)
            if os.getuid() != 0:
                self.user = os.open(f"/proc/{helper}/ns/user", flags)
        except OSError as error:
            self.leave()
            Place.close(self.mount, self.device)
            raise MountError(f"its namespace cannot be held: {error.strerror}") from error

    def place(self) -> Place:
        """Where others find it as long as this process lives."""
        return Place(os.getpid(), self.user, self.mount, os.fstat(self.mount).st_ino, here())

    def leave(self) -> None:
        """End the process inside that made it: its descriptors hold it from now on."""
        self._control.close()
        os.waitpid(self._helper, 0)

    def close(self) -> None:
        """Let go of it: without programs inside it goes, and its mounts with it."""
        Place.close(self.user, self.mount)


def make(kind: str, source: str, mountpoint: str) -> Made:
    """Make a namespace with a FUSE mount in it.

    Args:
        kind: what the mount table is to call it.
        source: what the mount table is to name as its source.
        mountpoint: a directory.

    Raises:
        MountError: where that cannot be done here.
    """
    import socket

    try:
        ours, theirs = socket.socketpair()
    except OSError as error:
        raise MountError(f"a namespace of its own: {error.strerror}") from error
    try:
        helper = os.fork()
    except OSError as error:
        ours.close()
        theirs.close()
        raise MountError(f"no process can be started for it: {error.strerror}") from error
    if helper == 0:
        ours.close()
        _mount_inside(theirs, kind, source, mountpoint)
    theirs.close()
    words, descriptors, _, _ = socket.recv_fds(ours, 4096, 1)
    if not descriptors:
        ours.close()
        os.waitpid(helper, 0)
        raise MountError(words.decode("utf-8", "replace") or "it ended without a word")
    os.set_inheritable(descriptors[0], False)  # noqa: FBT003
    return Made(helper, descriptors[0], ours)


def _mount_inside(control: socket.socket, kind: str, source: str, mountpoint: str) -> None:
    """In a child: make the namespace, mount, send the descriptor, and wait to be let go."""
    import socket

    try:
        doing = "a namespace of its own"
        try:
            _separate()
            doing = f"{_DEVICE} in a namespace of its own"
            device = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
            doing = f"a mount at {mountpoint} in a namespace of its own"
            own = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
            flags = _READ_ONLY | _NO_SETUID | _NO_DEVICES
            _call("mount", source, mountpoint, kind, flags, own)
        except OSError as error:
            control.send(f"{doing}: {error.strerror}".encode(errors="backslashreplace"))
            return
        socket.send_fds(control, [b"mounted"], [device])
        control.recv(1)
    finally:
        os._exit(0)


def _separate() -> None:
    """Leave the namespaces of the parent; what is mounted there later appears here as well."""
    uid, gid = os.getuid(), os.getgid()
    if uid == 0:
        _call("unshare", _NEW_MOUNT)
        _call("mount", "none", "/", "none", _RECURSIVE | _SLAVE, "")
        return
    _call("unshare", _NEW_USER | _NEW_MOUNT)
    # The kernel wants that of those who map a group without being root.
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", "")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text or f"{gid} {gid} 1")


def _call(name: str, *arguments: str | int) -> None:
    """Call a function of the C library.

    Raises:
        OSError: where it fails.
    """
    import ctypes

    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    values = [
        os.fsencode(each) if isinstance(each, str) else ctypes.c_ulong(each) for each in arguments
    ]
    if function(*values) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
