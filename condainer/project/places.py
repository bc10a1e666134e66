"""Where the files of a mount are on a node: below the mount base directory.

Every `exec` reads this before anything else, so the paths are texts: pathlib takes longer to import
than all that `exec` does. What lies in a project's directory is the business of `project`.
"""

from __future__ import annotations

import os

DEFAULT_BASE = "/tmp"  # noqa: S108  (the users' own default; checked before use)


class Places:
    """The paths of one project's mount.

    Args:
        base: the mount base directory.
        uuid: the project's.
        instance: empty for the mount that all see, or `private_instance`.

    Attributes:
        prefix: where the environment is installed, and where its image is mounted.
        runtime_directory: this user's locks, records and logs.
        build_lock: held by a running build; says which directory is its staging.
        mount_lock: held while the image is being mounted.
        use_lock: shared by all that use the mount, held alone to unmount it.
        keeper_lock: held by the process that keeps the mount.
        record: what the mount serves.
        pin: there while a mount is to stay without users.
        log: what the mount's daemon has to say.
        results: what activation scripts made of callers' variables.
        reads: what it notes that is read, for `profile`.
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
    """The name of a mount in a namespace of its own: there may be one for each state of an image.

    Args:
        image: device, inode, size and time of change of its file.
        home: the mount namespace it belongs to, by its inode; None for the part of the name that
            is the same in all.
    """
    _, inode, _, changed = image
    name = f".{inode:x}-{changed:x}-"
    return name if home is None else f"{name}{home:x}"
