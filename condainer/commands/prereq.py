"""`prereq`: tests what this machine can do, and says how to get what is missing.

A program may be installed and yet not be allowed to mount. So each backend mounts a tiny image in
the mount base directory, and a program is read and run from it. The image,
`mounting/probe.squashfs`, holds one script `probe`:

    mksquashfs DIR probe.squashfs -comp zstd -all-root -no-xattrs -all-time 0 -mkfs-time 0
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from condainer.commands import console
from condainer.errors import CondainerError
from condainer.mounting import backends, namespace, target
from condainer.pipeline import occupancy, schedule
from condainer.pipeline.installers import choice
from condainer.project.config import CONFIG_NAME, Config, load
from condainer.project.project import Project, absolute, leave_missing_directory
from condainer.system import files, mounttable, process, removal, runtime, tools, trust
from condainer.units import foreign

if TYPE_CHECKING:
    import argparse
    import subprocess
    from collections.abc import Callable, Iterator

EXAMPLES = """\
  condainer prereq
  srun -N 1 condainer prereq    test a compute node of the cluster
"""

_IMAGE = Path(__file__).parents[1] / "mounting" / "probe.squashfs"
_SAYS = "condainer\n"
_CONTENT = b"#!/bin/sh\necho condainer\n"
_PATIENCE = 5.0
_NO_PROJECT = "00000000-0000-4000-8000-000000000000"


_WAYS = {
    "mount": "yes",
    "namespace": "yes, each image in a mount namespace of its own",
    "extract": "yes, each image is unpacked once per node",
}
"""The ways in which `exec` can work, in words; the best one first."""


@dataclass(frozen=True)
class Check:
    """The result of one test.

    Attributes:
        name: what was tested.
        ok: whether it works.
        detail: the version, or why it does not work.
        hint: what to do about it.
    """

    name: str
    ok: bool
    detail: str
    hint: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `prereq`.

    Args:
        parser: takes them.
    """
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")


def run(arguments: argparse.Namespace) -> int:
    """Test this machine.

    Args:
        arguments: the parsed command line.

    Returns:
        The exit status: 0 if images can be built and used here.
    """
    directory = absolute(arguments.directory)
    leave_missing_directory()
    found = _found(directory)
    console.write_found(found, _rendered, as_json=arguments.json)
    return 0 if found["can_build"] and found["exec"] != "no" else 1


def _found(directory: Path) -> dict[str, Any]:
    """Test everything, with the settings of the project in a directory if there is one."""
    there = not files.is_missing(directory / CONFIG_NAME)
    config = load(directory) if there else Config(uuid=_NO_PROJECT)
    project = Project(directory, config)
    building = [_mksquashfs(), _installer(config), _base_directory(project)]
    helpers = [_device(), _fusermount()]
    mounting = [_backend(name, project) for name in backends.AUTOMATIC]
    others = [_namespace(project), _unpacking(project)]
    ways = (any(check.ok for check in mounting), *(check.ok for check in others))
    return {
        "can_build": all(check.ok for check in building),
        "can_mount": ways[0],
        "exec": next((way for way, ok in zip(_WAYS, ways, strict=True) if ok), "no"),
        "processors": schedule.default_jobs(),
        "checks": [asdict(check) for check in (*building, *helpers, *mounting, *others)],
    }


def _rendered(found: dict[str, Any]) -> str:
    """The same for people."""
    lines = []
    for check in found["checks"]:
        mark = "ok     " if check["ok"] else "missing"
        lines.append(f"{mark}  {check['name']}: {foreign(check['detail'])}")
        if check["hint"] and not check["ok"]:
            lines.append(f"         {foreign(check['hint'])}")
    lines.append("")
    lines.append(f"build: {'yes' if found['can_build'] else 'no'}")
    lines.append(f"exec: {_WAYS.get(found['exec'], 'no')}")
    unpacks = found["exec"] != "no"
    how = "yes" if found["can_mount"] else _WAYS["extract"] if unpacks else "no"
    lines.append(f"mount and activate: {how}")
    lines.append(f"processors for a build: {found['processors']}")
    return "\n".join(lines)


def _mksquashfs() -> Check:
    try:
        found = tools.find_mksquashfs()
    except CondainerError as error:
        return Check("mksquashfs", ok=False, detail=error.message, hint=error.hint)
    version = ".".join(map(str, found.version))
    detail = f"{found.path} {version} ({', '.join(found.compressors)})"
    return Check("mksquashfs", ok=True, detail=detail)


def _installer(config: Config) -> Check:
    notes: list[str] = []
    try:
        found = choice.choose(config, only_looks=True, on_note=notes.append)
    except CondainerError as error:
        return Check("installer", ok=False, detail=error.message, hint=error.hint)
    return Check("installer", ok=True, detail="; ".join([found.description, *notes]))


def _base_directory(project: Project) -> Check:
    base = project.config.mount_base_directory
    try:
        occupancy.check_base_directory(project)
        runtime.check(project.places.runtime_directory)
        target.check_unoccupied(project)
    except CondainerError as error:
        return Check("mount base directory", ok=False, detail=error.message, hint=error.hint)
    return Check("mount base directory", ok=True, detail=f"{base} is writable, programs can run")


def _device() -> Check:
    device = "/dev/fuse"
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return Check(
            "FUSE",
            ok=False,
            detail=f"{device}: {error.strerror}",
            hint=f"an administrator can open it: modprobe fuse; chmod 666 {device}",
        )
    return Check("FUSE", ok=True, detail=f"{device} can be opened")


def _fusermount() -> Check:
    path = tools.find_fusermount()
    hint = f"an administrator can install {tools.PACKAGE_HINTS['fusermount']}"
    if path is None:
        return Check("fusermount", ok=False, detail="not found", hint=hint)
    if os.getuid() == 0:
        return Check("fusermount", ok=True, detail=str(path))
    if not tools.is_setuid(path):
        return Check("fusermount", ok=False, detail=f"{path} is not setuid root", hint=hint)
    hint = "an administrator can remove that restriction, or start this container or job without it"
    if os.statvfs(path).f_flag & os.ST_NOSUID:
        detail = f"{path} is on a file system that is mounted nosuid"
        return Check("fusermount", ok=False, detail=detail, hint=hint)
    if "\nNoNewPrivs:\t1\n" in Path("/proc/self/status").read_text(encoding="utf-8"):
        detail = f"{path} gains no privileges here (no_new_privs)"
        return Check("fusermount", ok=False, detail=detail, hint=hint)
    return Check("fusermount", ok=True, detail=str(path))


def _namespace(project: Project) -> Check:
    """Test a mount in a namespace: `exec` makes one if it cannot mount for all processes."""
    problems = []
    for backend in backends.candidates("auto"):
        try:
            with _directory(project) as directory:
                _try_privately(backend, directory)
        except CondainerError as error:
            problems.append(error.message)
        else:
            detail = f"{backend.executable} mounts in a namespace of its own, and programs run"
            return Check("namespace", ok=True, detail=detail)
    hint = "an administrator can allow it: sysctl user.max_user_namespaces=100000"
    detail = "; ".join(dict.fromkeys(problems))
    return Check("namespace", ok=False, detail=detail, hint=hint)


def _try_privately(backend: backends.Backend, directory: Path) -> None:
    made = namespace.make(f"fuse.{backend.name}", "probe", str(directory))
    inside = Path(f"{made.root}{directory}")
    helper = contextlib.ExitStack()  # ends the helper, which also has the device open
    helper.callback(made.leave)
    with contextlib.ExitStack() as last, tempfile.TemporaryFile() as log:
        try:
            try:
                command = backend.mount_command(_IMAGE, Path(f"/dev/fd/{made.device}"))
                variables, descriptors = dict(os.environ), (made.device,)
                daemon = process.spawn(
                    command, log=log.fileno(), env=variables, descriptors=descriptors
                )
            finally:
                os.close(made.device)
            last.callback(process.end, daemon)  # it ends by itself after the mount is gone
            _read(backend, inside, daemon, give_up=helper.close)
        finally:
            helper.close()
            made.close()


def _unpacking(project: Project) -> Check:
    """Test unpacking: `exec` does that if nothing can be mounted."""
    program = tools.which("unsquashfs")
    how = f"{program} unpacks" if program is not None else "unpacking in Python"
    try:
        with _directory(project) as directory:
            tree = directory / "tree"
            command = process.own_program("condainer.squashfs.unpack", str(_IMAGE), str(tree))
            try:
                answer = process.call(command)
                if answer.returncode != 0:
                    raise CondainerError(f"cannot unpack: {answer.stderr.strip()}")
                _run(tree)
            finally:
                removal.remove_tree(tree)
    except CondainerError as error:
        return Check("extract", ok=False, detail=error.message, hint=error.hint)
    return Check("extract", ok=True, detail=f"{how}, if nothing can be mounted")


def _backend(name: str, project: Project) -> Check:
    try:
        backend = backends.choose(name)
        with _directory(project) as directory:
            _try(backend, directory)
    except CondainerError as error:
        return Check(name, ok=False, detail=error.message, hint=error.hint)
    detail = f"{backend.executable} mounts and reads, and programs run"
    return Check(name, ok=True, detail=detail)


@contextlib.contextmanager
def _directory(project: Project) -> Iterator[Path]:
    """Make an empty directory in the mount base directory, for a while.

    Raises:
        CondainerError: If that fails.
    """
    trust.check_base(project)
    runtime.check(project.places.runtime_directory)
    base = project.config.mount_base_directory
    try:
        made = Path(tempfile.mkdtemp(prefix="condainer-", dir=base))
    except OSError as error:
        raise CondainerError(
            f"no directory can be made in {base}: {error.strerror}",
            "choose another mount_base_directory in condainer.yml",
        ) from error
    try:
        yield made
    finally:
        with contextlib.suppress(OSError):  # something may still be mounted there
            made.rmdir()


def _try(backend: backends.Backend, mountpoint: Path) -> None:
    """Mount the tiny image, read it, run a program from it, and unmount it again.

    Raises:
        CondainerError: If one of these fails: says which.
    """
    with tempfile.TemporaryFile() as log:
        command = backend.mount_command(_IMAGE, mountpoint)
        daemon = process.spawn(command, log=log.fileno(), env=dict(os.environ))
        try:
            _wait_for_mount(backend, mountpoint, daemon, log)
            _read(backend, mountpoint, daemon)
        finally:
            _unmount(mountpoint, daemon)


def _wait_for_mount(
    backend: backends.Backend, mountpoint: Path, daemon: subprocess.Popen[bytes], log: IO[bytes]
) -> None:
    deadline = time.monotonic() + _PATIENCE
    while mounttable.mount_at(mountpoint) is None and daemon.poll() is None:
        if time.monotonic() > deadline:
            raise CondainerError(f"{backend.executable} mounts nothing within {_PATIENCE:.0f} s")
        time.sleep(0.01)
    if daemon.poll() is not None:
        log.seek(0)
        words = log.read().decode("utf-8", "replace").strip().replace("\n", "; ")
        words = words or f"it ended with exit status {daemon.returncode}"
        raise CondainerError(f"{backend.executable} cannot mount: {words}")


def _read(
    backend: backends.Backend,
    mountpoint: Path,
    daemon: subprocess.Popen[bytes],
    give_up: Callable[[], None] = lambda: None,
) -> None:
    # A daemon may never answer. Reading fails as soon as nobody has the device open any more.
    def end() -> None:
        give_up()
        process.end(daemon)

    timer = threading.Timer(_PATIENCE, end)
    timer.start()
    try:
        content = files.read(mountpoint / "probe", within=mountpoint)
        if content != _CONTENT:
            raise CondainerError(f"{backend.executable} reads wrong data")
        _run(mountpoint)
    except OSError as error:
        message = f"{backend.executable} mounts but does not read: {error.strerror}"
        raise CondainerError(message) from error
    finally:
        timer.cancel()


def _run(directory: Path) -> None:
    """Run the program of the tiny image.

    Raises:
        CondainerError: If that fails, for example because programs cannot run there (noexec).
    """
    answer = process.call([str(directory / "probe")], timeout=_PATIENCE)
    if answer.stdout != _SAYS:
        raise CondainerError(f"a program from {directory} does not run as it should")


def _unmount(mountpoint: Path, daemon: subprocess.Popen[bytes]) -> None:
    """Unmount as `umount` does; if that fails, again after the daemon has ended."""
    problem = ""
    try:
        mount = mounttable.mount_at(mountpoint)
        if mount is not None and daemon.poll() is None:
            problem = backends.unmount(mountpoint, mount.kind)
    finally:
        process.end(daemon)
        mount = mounttable.mount_at(mountpoint)
        if mount is not None:
            backends.unmount(mountpoint, mount.kind, dead=True)
    if mounttable.mount_at(mountpoint) is not None:
        raise CondainerError(f"what it mounts cannot be unmounted: {problem}")
