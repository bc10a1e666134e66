"""Where the files of a mount are on a node: below the mount base directory.

Every `exec` needs this first. So the paths are strings: to import pathlib takes longer than all
that `exec` does. `project` knows what lies in a project directory.
"""

from __future__ import annotations

import os

DEFAULT_BASE = "/tmp"  # noqa: S108  (the users' own default; checked before use)


class Places:
    """The paths of one project's mount.

    Args:
        base: the mount base directory.
        uuid: the project's identity.
        instance: empty for the mount that everybody sees, or a `private_instance`.

    Attributes:
        prefix: where the environment is installed, and where its image is mounted.
        runtime_directory: this user's private directory for locks, records and logs.
        build_lock: a running build holds it; it shows that the prefix belongs to the build.
        mount_lock: the process that mounts the image holds it meanwhile.
        use_lock: all that use the mount share it; who unmounts it holds it alone.
        keeper_lock: the process that keeps the mount holds it.
        record: what the mount serves.
        pin: exists while the mount stays even if nobody uses it.
        log: the output of the daemon that serves the mount.
        results: what activation scripts did with callers' variables.
        reads: which files the mount has read, for `profile`.
        unpacking: where the image is unpacked, on a node without FUSE.
    """

    def __init__(self, base: str, uuid: str, instance: str = "") -> None:
        self.prefix = os.path.join(base, f"condainer-{uuid}")
        self.runtime_directory = os.path.join(base, f".condainer-{os.getuid()}")
        stem = f"{self.runtime_directory}/{uuid}"
        self.build_lock = f"{stem}.build"
        self.mount_lock = f"{stem}.mounting"
        stem += instance
        self.use_lock = f"{stem}.use"
        self.keeper_lock = f"{stem}.keeper"
        self.record = f"{stem}.mount"
        self.pin = f"{stem}.pin"
        self.log = f"{stem}.log"
        self.results = f"{stem}.results"
        self.reads = f"{stem}.reads"
        self.unpacking = f"{stem}.unpacking"


def private_instance(image: tuple[int, int, int, int], home: int | None = None) -> str:
    """The name of a mount in a namespace of its own; each version of an image can have one.

    Args:
        image: device, inode, size and time of change of the image file.
        home: inode of the mount namespace that it belongs to; None for the part of the name that
            is the same in all namespaces.
    """
    _, inode, _, changed = image
    name = f".{inode:x}-{changed:x}-"
    return name if home is None else f"{name}{home:x}"
