"""The processes that keep a mount, and that unpack an image: found, used and killed."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support import running, wait_for

if TYPE_CHECKING:
    from tests.support import Workshop


def keepers_of(workshop: Workshop) -> list[int]:
    """The keeper of a workshop's mount, and its shadow; `ps` shows what they keep."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = os.fsdecode((entry / "cmdline").read_bytes().rstrip(b"\0"))
            except OSError:
                continue
            is_keeper = line.startswith("condainer-keep") and str(workshop.directory)[:20] in line
            if is_keeper and _has_files_of(workshop, entry):
                found.append(int(entry.name))
    return sorted(found)


def _has_files_of(workshop: Workshop, process: Path) -> bool:
    """Whether a process has opened files of a workshop's mount: `ps` cuts off what it keeps."""
    begin = str(workshop.runtime / workshop.uuid)
    try:
        return any(os.readlink(fd).startswith(begin) for fd in (process / "fd").iterdir())  # noqa: PTH115
    except OSError:
        return False  # it ends just now


def holds_the_lock(workshop: Workshop, pid: int) -> bool:
    path = str(workshop.runtime / f"{workshop.uuid}.keeper")
    try:
        for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
            target = os.readlink(f"/proc/{pid}/fd/{entry.name}")  # noqa: PTH115
            if target == path and "FLOCK" in entry.read_text():
                return True
    except OSError:
        return False  # it ends just now
    return False


def pair_of(workshop: Workshop, without: int = 0) -> tuple[int, int]:
    """The keeper and its shadow, once there are both, and one has gone."""
    found: list[int] = []

    def is_there() -> bool:
        found[:] = sorted(keepers_of(workshop), key=lambda pid: not holds_the_lock(workshop, pid))
        # For an instant the shadow has the keeper's own descriptor.
        holders = [pid for pid in found if holds_the_lock(workshop, pid)]
        return len(found) == 2 and without not in found and holders == found[:1]

    wait_for(is_there, "there are not two of them")
    return found[0], found[1]


def kill_keepers(workshop: Workshop) -> None:
    """Both at once, so that neither takes over from the other."""
    for pid in sorted(pair_of(workshop), reverse=True):
        os.kill(pid, signal.SIGSTOP)
    for pid in keepers_of(workshop):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not keepers_of(workshop))


def use(workshop: Workshop) -> subprocess.Popen[str]:
    """Start a command that runs from the mount until its standard input ends."""
    user = workshop.start("exec", "--", "sh", "-c", "echo runs; cat", stdin=subprocess.PIPE)
    assert user.stdout is not None
    assert user.stdout.readline() == "runs\n"
    return user


def unpackers_of(workshop: Workshop) -> list[int]:
    """The processes that unpack a workshop's image."""
    return running("unsquashfs", f"{workshop.runtime}/{workshop.uuid}.unpacking")


def stop_unpacking(workshop: Workshop) -> tuple[int, int]:
    """Wait for what unpacks, and have it stand still; gives its process id and its keeper's."""
    wait_for(lambda: unpackers_of(workshop))
    (unpacker,) = unpackers_of(workshop)
    os.kill(unpacker, signal.SIGSTOP)
    stat = Path(f"/proc/{unpacker}/stat").read_text()
    return unpacker, int(stat.rpartition(") ")[2].split()[1])
