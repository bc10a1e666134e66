"""The process that keeps a mount: starts its daemon, and unmounts it after the last use.

While it lives it holds a lock. A second one, its shadow, waits for that lock and takes over where
the first is killed; where both are, the next `exec` starts another.

It runs in a session of its own, without a terminal, a working directory or inherited files, so
that nothing meant for the command that needed the mount reaches it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from condainer.errors import CondainerError, MountError, named
from condainer.mounting import asking, backends, live, namespace, target
from condainer.project import image
from condainer.running import activation
from condainer.system import locks, mounttable, process, processtable, runtime, trust

if TYPE_CHECKING:
    import subprocess

    from condainer.mounting.backends import Backend
    from condainer.project.project import Project
    from condainer.system.mounttable import Mount

_ATTEMPTS = 3
_READY = b"ready"
_SENDER = 3
"""The descriptor by which a keeper answers, after those of every process."""

_LOG = 2
"""The descriptor of the log, which is standard error."""

_MOUNT_POLL = 0.004
_IDLE_POLL = 0.25
_OTHERS_POLL, _OTHERS_PATIENCE = 1.0, 600.0
_PATIENCE = 5.0
"""Seconds to wait for the keeper of an earlier mount, and for a daemon, to end."""

_MOST = 25.0
"""Seconds that mounting may take: fewer than those for which the parent waits."""
_UNPACKING = 4 * 3600.0
"""Seconds that a parent waits for unpacking, which has limits of its own."""


def start(project: Project, backend: Backend) -> None:
    """Start a keeper and wait until the mount is live; the caller holds the mount lock.

    Raises:
        MountError: with what the daemon said.
    """
    answer = b""
    for _ in range(_ATTEMPTS):
        answer = _begin(project, backend)
        if answer:
            break
        end_orphans(project)  # it was killed
    if answer != _READY:
        reason = answer.decode("utf-8", "replace") or "its keeper was killed, and again"
        raise MountError(
            f"cannot mount {project.image} with {backend.name}: {reason}",
            "'condainer prereq' tells what this machine can do",
        )


def end_orphans(project: Project) -> None:
    """End the daemons of a keeper that was killed while it mounted: they would mount yet."""
    commands = [backend.mount_command(project.image, project.prefix) for backend in _daemons()]
    for pid in processtable.running(commands):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + _PATIENCE
    while processtable.running(commands) and time.monotonic() < deadline:
        time.sleep(_MOUNT_POLL)
    if target.mend(project):
        target.prepare(project)


def _daemons() -> list[Backend]:
    return [backend for backend in backends.candidates("auto") if backend.is_daemon]


def adopt(project: Project) -> None:
    """Start a keeper for a live mount whose own has been killed; the caller holds the mount lock.

    Raises:
        MountError: where that cannot be done.
    """
    answer = _begin(project, None)
    if answer != _READY:
        raise MountError(f"cannot keep {project.prefix}: {answer.decode('utf-8', 'replace')}")


def _begin(project: Project, backend: Backend | None) -> bytes:
    """Start a keeper, and give its answer."""
    receiver, sender = os.pipe()
    try:
        child = os.fork()
    except OSError:
        os.close(receiver)
        os.close(sender)
        raise
    if child == 0:
        _detach_and_keep(project, backend, sender)
    os.close(sender)
    with contextlib.suppress(ChildProcessError):  # where the caller ignores SIGCHLD
        os.waitpid(child, 0)
    if signal.SIGCHLD in signal.pthread_sigmask(signal.SIG_BLOCK, ()):
        signal.sigtimedwait((signal.SIGCHLD,), 0)  # it is ours, not the command's
    try:
        unpacks = backend is not None and backend.name == backends.EXTRACT
        return _receive(receiver, time.monotonic() + (_UNPACKING if unpacks else live.DEADLINE))
    finally:
        os.close(receiver)


def _receive(receiver: int, deadline: float) -> bytes:
    answer = b""
    while True:
        ready, _, _ = select.select([receiver], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return b"it did not answer in time"
        chunk = os.read(receiver, 4096)
        if not chunk:
            return answer
        answer += chunk


def _detach_and_keep(project: Project, backend: Backend | None, sender: int) -> NoReturn:
    """In the child: become a daemon, keep the mount, and end without returning."""
    status = 1
    try:
        try:
            os.setsid()
            if os.fork() != 0:
                os._exit(0)
            shed = _shed(project, sender)
        except Exception as error:  # noqa: BLE001  (the parent has to hear of it)
            os.write(sender, _encoded(f"its keeper cannot start: {named(error).message}"))
        else:
            _keep(project, backend, shed)
            status = 0
    finally:
        os._exit(status)


def _shed(project: Project, sender: int) -> int:
    """Let go of all that was inherited but the way back to the parent.

    Returns:
        the descriptor of that way.
    """
    os.chdir("/")
    os.umask(0o022)
    _lift_limits()
    processtable.name_keeper()
    for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP):
        signal.signal(signum, signal.SIG_IGN)
    # A batch system ends a job with SIGTERM to all of it. The daemon is to outlast the command,
    # which may still save its work; libfuse leaves alone what is ignored.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    null = _high(os.open(os.devnull, os.O_RDWR))
    log = _high(runtime.open_file(project.mount_log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
    sender = _high(sender)
    for number, source in enumerate((null, log, log, sender)):
        os.dup2(source, number, inheritable=number != _SENDER)
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        if int(name) > _SENDER:
            with contextlib.suppress(OSError):  # the one that listed them
                os.close(int(name))
    return _SENDER


def _lift_limits() -> None:
    """Undo what the command is confined to: others use the mount as well, and after it has ended.

    What only an administrator may lift stays.
    """
    import resource

    for name in ("AS", "CPU", "DATA", "FSIZE", "NOFILE", "NPROC"):
        with contextlib.suppress(OSError, ValueError):
            kind = getattr(resource, f"RLIMIT_{name}")
            hard = resource.getrlimit(kind)[1]
            resource.setrlimit(kind, (hard, hard))
    with contextlib.suppress(OSError):  # the kernel leaves out what the control group forbids
        os.sched_setaffinity(0, range(os.sysconf("SC_NPROCESSORS_CONF")))
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)


def _high(descriptor: int) -> int:
    """The same file under a number that is in nobody's way; any of 0, 1, 2 may be closed."""
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    except OSError as error:
        if error.errno == errno.EINVAL:  # no number may be so high
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from error
        raise


@dataclass(frozen=True)
class _Kept:
    """The mount that is kept.

    Attributes:
        daemon: the process that serves it; 0 where the kernel does, or nobody knows.
        birth: when that was started, as `_birth` tells it.
        mount: its line in the mount table; None where it is not for all to see.
        made: the namespace that it is in instead.
        claim: on another user's directory, as `target.claim` gives it.
    """

    daemon: int
    birth: str
    mount: Mount | None
    made: namespace.Made | None = None
    claim: int = -1


def _keep(project: Project, backend: Backend | None, sender: int) -> None:
    try:
        keeper = locks.acquire(project.keeper_lock, timeout=_PATIENCE)
        try:
            kept = _mount(project, backend) if backend is not None else _adopted(project)
        except BaseException:
            locks.discard(project.keeper_lock, keeper)
            raise
    except CondainerError as error:
        os.write(sender, _encoded(error.message))
        return
    except Exception as error:  # noqa: BLE001  (the parent has to hear of it)
        os.write(sender, _encoded(repr(error)))
        return
    # Who hears that it is ready may ask it to end: not before there is somebody to hear that.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
    with contextlib.suppress(BrokenPipeError):  # whoever asked was killed: it goes like any other
        os.write(sender, _READY)
    os.close(sender)
    processtable.show_as(f"condainer-keep {project.image} at {project.prefix}")
    _serve(project, kept, keeper)


def _encoded(text: str) -> bytes:
    """A text as it is sent; in a path there may be what is no UTF-8."""
    return text.encode(errors="backslashreplace")


def _adopted(project: Project) -> _Kept:
    record = live.read(project.places)
    daemon = record.daemon if record is not None else 0
    return _Kept(daemon, _birth(daemon), target.look(project).mount)


def _mount(project: Project, backend: Backend) -> _Kept:
    """Mount, wait until the mount is live, and note what it serves.

    Raises:
        MountError: with the daemon's last words.
    """
    identity = live.identity(str(project.image))
    if project.instance:
        return _mount_privately(project, backend, identity)
    if backend.name == backends.EXTRACT:
        from condainer.mounting import extract

        def note(tree: Path) -> None:
            _note(project, tree, backend.name, 0, identity)

        try:
            extract.unpack(project, note)
        except BaseException:
            runtime.remove(project.record)
            raise
        return _Kept(0, "", target.look(project).mount)
    command = backend.mount_command(project.image, project.prefix)
    if not backend.is_daemon:
        answer = process.call(command)
        if answer.returncode != 0:
            raise MountError(answer.stderr.strip() or f"exit status {answer.returncode}")
        try:
            _note(project, project.prefix, backend.name, 0, identity)
        except BaseException:
            backends.unmount(project.prefix, "squashfs")
            raise
        return _Kept(0, "", mounttable.mount_at(project.prefix))
    daemon = process.spawn(command, log=_LOG, env=dict(os.environ))
    try:
        _wait_until_live(project, daemon)
        _note(project, project.prefix, backend.name, daemon.pid, identity)
    except BaseException:
        _end(daemon)
        target.mend(project)
        raise
    daemon.returncode = 0  # it is waited for by its number: whoever takes over has no other
    return _Kept(daemon.pid, _birth(daemon.pid), mounttable.mount_at(project.prefix))


def _mount_privately(project: Project, backend: Backend, identity: tuple[int, ...]) -> _Kept:
    claim = target.claim(project)
    try:
        made = namespace.make(f"fuse.{backend.name}", str(project.image), str(project.prefix))
        try:
            daemon = _serve_inside(project, backend, made, identity)
        except BaseException:
            made.leave()
            made.close()
            raise
    except BaseException:
        target.disclaim(project, claim)
        raise
    made.leave()
    return _Kept(daemon, _birth(daemon), None, made, claim)


def _serve_inside(
    project: Project, backend: Backend, made: namespace.Made, identity: tuple[int, ...]
) -> int:
    """Start the daemon of a mount in a namespace; gives its process id."""
    command = backend.mount_command(project.image, Path(f"/dev/fd/{made.device}"))
    inside = Path(f"{made.root}{project.prefix}")
    daemon = process.spawn(command, log=_LOG, env=dict(os.environ), descriptors=(made.device,))
    os.close(made.device)
    try:
        _wait_until_it_answers(inside, daemon, project.mount_log)
        _note(project, inside, backend.name, daemon.pid, identity, made.place().values())
    except BaseException:
        _end(daemon)
        raise
    daemon.returncode = 0
    return daemon.pid


def _end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.kill()
    daemon.wait()


def _wait_until_it_answers(inside: Path, daemon: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for the first answer of a mount in another namespace.

    The kernel holds the question until there is somebody to answer, so a process of its own asks.
    """
    asker = os.fork()
    if asker == 0:
        status = 1
        try:
            os.listdir(inside)  # noqa: PTH208
            status = 0
        finally:
            os._exit(status)
    deadline = time.monotonic() + _MOST
    problem = ""
    while True:
        ended, status = os.waitpid(asker, os.WNOHANG)
        if ended:
            if status == 0:
                return
            problem = "the image is damaged: its root cannot be read"
        elif daemon.poll() is not None:
            problem = f"it ended with exit status {daemon.returncode}"
        elif time.monotonic() > deadline:
            problem = f"nothing was mounted within {_MOST:.0f} s"
        if problem:
            break
        time.sleep(_MOUNT_POLL)
    if not ended:
        os.kill(asker, signal.SIGKILL)
    raise MountError(_tail(log) or problem)


def _tail(log: Path) -> str:
    """The last lines of a daemon's log, in one."""
    try:
        text = runtime.read(log).decode(errors="replace")
    except OSError:
        return ""
    return "; ".join(line.strip() for line in text.splitlines()[-3:] if line.strip())


def _note(
    project: Project,
    inside: Path,
    backend: str,
    daemon: int,
    before: tuple[int, ...],
    place: tuple[int, int, int, int, int] | None = None,
) -> None:
    """Note what the mount serves, for all that come after.

    Args:
        project: whose mount.
        inside: where this process sees the mount.
        backend: the name of what serves it.
        daemon: the process that does.
        before: which image there was before it was mounted.
        place: of its namespace.
    """
    try:
        identity = live.identity(str(project.image))
        root = asking.root_of(str(inside), daemon)
        base = trust.signature(str(project.prefix.parent))
    except OSError as error:
        raise MountError(f"it was mounted, but then: {error.strerror}") from error
    if identity != before:
        raise MountError(f"{project.image} was replaced while it was being mounted")
    variables = scripts = None
    with contextlib.suppress(CondainerError):
        snapshot = activation.load(inside, prefix=project.prefix)
        variables = snapshot.variables
        if snapshot.scripts:
            name = f"{identity} {root} {time.time_ns()}"
            scripts = (*snapshot.to_run, name, project.places.results)
    config = project.config
    record = live.Record(
        *(identity, image.fingerprint(project.image), root, base, backend, daemon),
        *(project.text, config.user_site_packages, config.keep_python_path, variables, scripts),
        place,
    )
    try:
        live.write(str(project.record), record)
    except OSError as error:
        if place is not None or backend == backends.EXTRACT:
            raise MountError(f"cannot write {project.record}: {error.strerror}") from error
        # Without it all works, only slower: the caller may have forbidden to write any files.


def _wait_until_live(project: Project, daemon: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _MOST
    while target.look(project).state is not target.State.LIVE:
        if daemon.poll() is not None:
            words = _tail(project.mount_log)
            raise MountError(words or f"it ended with exit status {daemon.returncode}")
        if time.monotonic() > deadline:
            raise MountError(f"nothing was mounted within {_MOST:.0f} s")
        time.sleep(_MOUNT_POLL)
    try:
        os.listdir(project.prefix)  # noqa: PTH208
    except OSError as error:
        raise MountError(f"the image is damaged: its root: {error.strerror}") from error


def _serve(project: Project, kept: _Kept, keeper: int) -> None:
    """Wait until the mount has gone, or unmount it when it has been idle for long enough.

    Args:
        project: whose mount.
        kept: the mount.
        keeper: the descriptor that holds the keeper lock.
    """
    asked_to_end = False

    def end(_signum: int, _frame: object) -> None:
        nonlocal asked_to_end
        asked_to_end = True

    shadow = 0
    idle_since = time.monotonic()
    signal.signal(signal.SIGTERM, end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))
    while _is_served(project, kept):
        shadow = _shadow(shadow, project, kept, keeper)
        patience = 0.0 if asked_to_end else project.config.unmount_after
        pinned = _stays(project, kept) and not asked_to_end
        if pinned or _in_use(project):
            idle_since = time.monotonic()
        elif time.monotonic() - idle_since >= patience:
            if _unmount_if_idle(project, kept, shadow, even_if_pinned=asked_to_end):
                locks.discard(project.keeper_lock, keeper)
                _outlast_others(project)
                return
            idle_since = time.monotonic()
        time.sleep(_IDLE_POLL)
    _end_shadow(shadow)
    if kept.made is not None:
        kept.made.close()
        target.disclaim(project, kept.claim)
        runtime.remove(project.record)
    locks.discard(project.keeper_lock, keeper)
    _clean_up(project)


def _stays(project: Project, kept: _Kept) -> bool:
    """Whether the mount is to stay without users."""
    is_unpacked = kept.mount is not None and kept.mount.kind == backends.EXTRACT
    return runtime.exists(project.pin) or (is_unpacked and project.config.keep_extracted)


def _outlast_others(project: Project) -> None:
    """Stay while another user needs the directory of the mountpoint, then remove it.

    Not for ever: who only says so could keep this process. An empty directory is left then.
    """
    deadline = time.monotonic() + _OTHERS_PATIENCE
    while target.is_needed_by_others(project) and time.monotonic() < deadline:
        time.sleep(_OTHERS_POLL)
    target.remove(project)


def _shadow(shadow: int, project: Project, kept: _Kept, keeper: int) -> int:
    """See that there is a process that takes over where this one is killed; gives its id."""
    if shadow and os.waitpid(shadow, os.WNOHANG)[0] == 0:
        return shadow
    child = os.fork()
    if child != 0:
        return child
    status = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.close(keeper)
        _wait_to_take_over(project, kept)
        status = 0
    finally:
        os._exit(status)


def _end_shadow(shadow: int) -> None:
    if shadow:
        os.kill(shadow, signal.SIGKILL)
        os.waitpid(shadow, 0)


def _wait_to_take_over(project: Project, kept: _Kept) -> None:
    """Wait for the keeper lock, which the keeper removes unless it is killed."""
    keeper = runtime.open_file(project.keeper_lock, os.O_RDWR)
    fcntl.flock(keeper, fcntl.LOCK_EX)
    if not locks.is_current(project.keeper_lock, keeper):
        return
    record = live.read(project.places)
    if kept.made is not None and record is not None:
        record.namespace = kept.made.place().values()  # which is found by our number from now on
        live.write(str(project.record), record)
    _serve(project, kept, keeper)


def _birth(pid: int) -> str:
    """When a process was started, in the kernel's ticks; empty where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in {b"Z", b"X"} else fields[19].decode()


def _is_served(project: Project, kept: _Kept) -> bool:
    if kept.daemon == 0:
        return kept.mount is not None and target.look(project).mount == kept.mount
    with contextlib.suppress(ChildProcessError):  # it was started by the one before us
        os.waitpid(kept.daemon, os.WNOHANG)
    return bool(kept.birth) and _birth(kept.daemon) == kept.birth


def _in_use(project: Project) -> bool:
    try:
        os.close(locks.acquire(project.use_lock))
    except locks.BusyError:
        return True
    return False


def _unmount_if_idle(project: Project, kept: _Kept, shadow: int, *, even_if_pinned: bool) -> bool:
    """Unmount while nobody can begin to use the mount; False where somebody does already."""
    try:
        descriptor = locks.acquire(project.use_lock)
    except locks.BusyError:
        return False
    if _stays(project, kept) and not even_if_pinned:  # whoever pinned it held it until just now
        os.close(descriptor)
        return False
    if kept.made is not None:
        _end_shadow(shadow)  # which holds the namespace as well
        kept.made.close()
        target.disclaim(project, kept.claim)
    else:
        mount = target.look(project).mount
        if mount is None or mount != kept.mount or target.take_away(project, mount.kind):
            # Something else was mounted over it, or runs from it without holding the lock.
            os.close(descriptor)
            return False
    deadline = time.monotonic() + _PATIENCE  # a container that was started meanwhile may need it
    while kept.daemon and _is_served(project, kept) and time.monotonic() < deadline:
        time.sleep(_MOUNT_POLL)
    target.tidy(project)
    locks.discard(project.use_lock, descriptor)
    return True


def _clean_up(project: Project) -> None:
    """The mount has gone: somebody unmounted it, or the daemon died.

    A dead mount goes at once; what its last users hold goes after them.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(CondainerError):
        while _is_left_to_us(project) and not _has_tidied(project):
            time.sleep(_IDLE_POLL)


def _is_left_to_us(project: Project) -> bool:
    """Whether something is left, and nobody has mounted the image again, with a keeper anew."""
    if locks.is_held(project.keeper_lock, shared=True):
        return False  # it is in another's care, maybe in a namespace of its own
    log = runtime.status(project.mount_log)
    if log is not None and not os.path.samestat(log, os.fstat(_LOG)):
        return False  # of another keeper, maybe in a mount namespace that we cannot look into
    if target.look(project).state is target.State.LIVE:
        return False
    left = any(map(runtime.exists, (project.use_lock, project.pin, project.mount_log)))
    return left or target.is_there(project)


def _has_tidied(project: Project) -> bool:
    with contextlib.suppress(locks.BusyError):
        turn = locks.Turn(project.mount_lock)
        try:
            if locks.is_held(project.keeper_lock, shared=True):
                return True
            target.mend(project)
            if target.look(project).state is not target.State.LIVE:
                target.clear(project)
            return True
        finally:
            turn.end()
    return False
