"""A layer below: shows a directory as if it lay on a slow, busy, shared file system, and counts.

    python -m benchmarks.layer DIRECTORY MOUNTPOINT... [--delay MS] [--limit N] [--keep SECONDS]
                               [--data-delay MS] [--bandwidth MB/S]

Each mountpoint stands for a node, with caches of its own in the kernel; all meet at one server.
Read-only. An operation on metadata (`METADATA`) is in service for the delay, and as many are at
once as the limit allows; the others wait in line. A read takes its delay, and what it carries goes
through one pipe of the bandwidth. Without these settings everything is passed on at once.
`--keep` is how long a node believes what it knows: for ever, as Lustre and GPFS, whose locks and
tokens hold until somebody changes something (the default), or the seconds of NFS.

What is not delayed: what a client of such a file system does not wait for or answers itself, that
is, closing, `ioctl`, and going on with a listing that was begun, which it fetches in large pieces.

Prints `ready` when all is mounted, then, for each line on its standard input and at the end, a line
of JSON (`Report`). It ends, and unmounts, with its input, with SIGINT or SIGTERM, or when all has
been unmounted.

One thread does all. What it can serve, measured on two cores, which whoever asked had to share: of
look-ups alone 50,000 a second, of look-ups and openings 20,000 with as many reads and closings
beside them, and with other work beside it half of that. A simulated limit has to stay well below,
or it is this program's.

How requests are answered is the business of `passthrough`.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import heapq
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.passthrough import REQUEST, Passthrough
from condainer.fuse import attach

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

    from benchmarks.passthrough import Answer

METADATA = frozenset(
    ("lookup", "getattr", "open", "opendir", "readdir", "readlink", "statfs", "access", "getxattr")
)
"""The operations that a metadata server has to answer."""

_REPOSITORY = Path(__file__).parent.parent
_NICENESS = -10
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Settings:
    """How slow it is; by default it is not.

    Attributes:
        delay: seconds that an operation on metadata is in service.
        limit: how many of these are in service at once, over all nodes; 0 for any number.
        data_delay: seconds that a read takes.
        bandwidth: bytes a second, over all nodes; 0 for any.
        keep: seconds for which a node keeps names and attributes; negative for ever.
    """

    delay: float = 0.0
    limit: int = 0
    data_delay: float = 0.0
    bandwidth: float = 0.0
    keep: float = -1.0


@dataclass
class Node:
    """What one node has asked for.

    Attributes:
        operations: how many, by kind.
        read_bytes: how much of files.
        waited: seconds in which at least one of its operations was in line or in service.
        until: when the last of these ends.
    """

    operations: dict[str, int] = field(default_factory=dict)
    read_bytes: int = 0
    waited: float = 0.0
    until: float = 0.0

    def note(self, answer: Answer, start: float, end: float) -> None:
        """Count an operation that takes from one time to another; they come as they start."""
        self.operations[answer.kind] = self.operations.get(answer.kind, 0) + 1
        self.read_bytes += answer.size
        self.waited += max(0.0, end - max(start, self.until))
        self.until = max(self.until, end)

    @property
    def metadata(self) -> int:
        """How many operations on metadata."""
        return sum(count for kind, count in self.operations.items() if kind in METADATA)


@dataclass(frozen=True)
class Report:
    """What has been asked for so far.

    Attributes:
        nodes: in the order in which their mountpoints were named.
        most_at_once: operations on metadata in service.
        queued: how many of these had to wait in line.
    """

    nodes: tuple[Node, ...]
    most_at_once: int
    queued: int

    def to_json(self) -> str:
        """As a line."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(line: str) -> Report:
        """From a line."""
        found = json.loads(line)
        return Report(**{**found, "nodes": tuple(Node(**node) for node in found["nodes"])})


class Server:
    """Tells when operations are done: a line before so many places, and a pipe for data.

    Args:
        settings: how slow it is.

    Attributes:
        queued: how many operations on metadata had to wait in line.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._places: list[float] = []  # when each that was ever needed becomes free
        self._pipe = 0.0
        self.queued = 0

    @property
    def most_at_once(self) -> int:
        """How many operations on metadata were in service at once."""
        return len(self._places)

    def done(self, answer: Answer, now: float) -> float:
        """When an operation that arrives now is done."""
        if answer.kind == "read":
            return self._read(answer.size, now)
        if answer.kind in METADATA and not answer.is_further:
            return self._serve(now)
        return now

    def _serve(self, now: float) -> float:
        start, places = now, self._places
        if places and (places[0] <= now or len(places) == self._settings.limit):
            start = max(now, heapq.heappop(places))
            self.queued += start > now
        heapq.heappush(places, start + self._settings.delay)
        return start + self._settings.delay

    def _read(self, size: int, now: float) -> float:
        if self._settings.bandwidth:
            self._pipe = max(self._pipe, now) + size / self._settings.bandwidth
        return max(self._pipe, now) + self._settings.data_delay


class Mounts:
    """Mounts of one directory, and what they ask for.

    Args:
        directory: what is shown.
        settings: how slow it is.
    """

    def __init__(self, directory: str, settings: Settings) -> None:
        self._source = directory
        self._files = Passthrough(directory, settings.keep)
        self._server = Server(settings)
        self._nodes: list[Node] = []
        self._live: dict[int, Node] = {}
        self._attached: list[attach.Mount] = []
        self._later: list[tuple[float, int, int, tuple[bytes, ...]]] = []
        self._taken = 0

    def attach(self, mountpoint: str) -> None:
        """Add a node.

        Raises:
            attach.AttachError: where it cannot be mounted.
        """
        options = ("default_permissions", *(("allow_other",) if os.getuid() == 0 else ()))
        place = os.path.realpath(mountpoint)
        descriptor = attach.attach(attach.Wanted(self._source, place, ("ro", "nodev"), options))
        os.set_blocking(descriptor, False)
        self._attached.append(attach.Mount(place, attach.device_at(place)))
        self._nodes.append(Node())
        self._live[descriptor] = self._nodes[-1]

    def serve(self) -> None:
        """Answer until all is unmounted or the input ends; the latter is looked at when ready."""
        inputs: list[int] = []
        while self._live:
            wait = max(0.0, self._later[0][0] - time.monotonic()) if self._later else None
            for descriptor in select.select([*self._live, *inputs], [], [], wait)[0]:
                if descriptor in self._live:
                    self._take_all(descriptor)
                elif os.read(descriptor, REQUEST):
                    self.say(self.report().to_json())
                else:
                    return
            self._answer_due()
            if not inputs and all("init" in node.operations for node in self._nodes):
                inputs.append(sys.stdin.fileno())
                self.say("ready")

    def detach(self) -> None:
        """Unmount what still is mounted, whoever uses it."""
        for mount in self._attached:
            attach.detach(mount, in_use=True)

    def report(self) -> Report:
        """What has been asked for."""
        return Report(tuple(self._nodes), self._server.most_at_once, self._server.queued)

    def say(self, line: str) -> None:
        """Tell whoever listens."""
        with contextlib.suppress(BrokenPipeError):
            os.write(sys.stdout.fileno(), f"{line}\n".encode())

    def _take_all(self, descriptor: int) -> None:
        """Take the requests of a node that are there."""
        while True:
            try:
                request = os.read(descriptor, REQUEST)
            except OSError as error:
                if error.errno == errno.ENODEV:  # unmounted
                    del self._live[descriptor]
                elif error.errno == errno.ENOENT:  # who asked has gone
                    continue
                elif error.errno != errno.EAGAIN:
                    raise
                return
            self._take(descriptor, request)

    def _take(self, descriptor: int, request: bytes) -> None:
        now = time.monotonic()
        answer = self._files.answer(request)
        if answer is None:
            return
        end = self._server.done(answer, now)
        self._live[descriptor].note(answer, now, end)
        if end <= now:
            _write(descriptor, answer.pieces)
        else:
            self._taken += 1
            heapq.heappush(self._later, (end, self._taken, descriptor, answer.pieces))

    def _answer_due(self) -> None:
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            _, _, descriptor, pieces = heapq.heappop(self._later)
            if descriptor in self._live:
                _write(descriptor, pieces)


def _write(descriptor: int, pieces: tuple[bytes, ...]) -> None:
    try:
        os.writev(descriptor, pieces)
    except OSError as error:  # who asked has gone, or all of the mount
        if error.errno not in {errno.ENOENT, errno.ENODEV}:
            raise


class Running:
    """The program, while it serves.

    Args:
        process: it; ready.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def report(self) -> Report:
        """What has been asked for so far.

        Raises:
            RuntimeError: where it has ended.
        """
        process = self._process
        assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018
        process.stdin.write("\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise RuntimeError("the layer below has ended")
        return Report.from_json(line)


@contextmanager
def below(
    directory: Path, mountpoints: Sequence[Path], settings: Settings = Settings()
) -> Iterator[Running]:
    """Show a directory at some mountpoints, which are made, and removed in the end.

    Args:
        directory: what is shown.
        mountpoints: one for each node.
        settings: how slow it is.

    Raises:
        RuntimeError: where that cannot be done.
    """
    for mountpoint in mountpoints:
        mountpoint.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [*(sys.executable, "-m", "benchmarks.layer"), *_words(settings), "--"]
        + [str(path) for path in (directory, *mountpoints)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=_REPOSITORY,
        start_new_session=True,  # an interrupt is for whoever measures, who ends it in order
    )
    assert process.stdout is not None  # noqa: S101
    try:
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("the layer below could not be mounted")
        yield Running(process)
    finally:
        process.communicate()
        for mountpoint in mountpoints:
            mountpoint.rmdir()


def _words(settings: Settings) -> Iterator[str]:
    """The options that say so."""
    yield f"--delay={settings.delay * 1e3}"
    yield f"--limit={settings.limit}"
    yield f"--data-delay={settings.data_delay * 1e3}"
    yield f"--bandwidth={settings.bandwidth / 1e6}"
    yield f"--keep={settings.keep}"


def main() -> int:
    """Mount, serve and unmount; gives the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.layer", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("directory", metavar="DIRECTORY")
    parser.add_argument("mountpoints", metavar="MOUNTPOINT", nargs="+")
    parser.add_argument("--delay", metavar="MS", type=float, default=0.0)
    parser.add_argument("--limit", metavar="N", type=int, default=0)
    parser.add_argument("--data-delay", metavar="MS", type=float, default=0.0)
    parser.add_argument("--bandwidth", metavar="MB/S", type=float, default=0.0)
    parser.add_argument("--keep", metavar="SECONDS", type=float, default=-1.0)
    asked = parser.parse_args()
    settings = Settings(
        *(asked.delay / 1e3, asked.limit, asked.data_delay / 1e3, asked.bandwidth * 1e6, asked.keep)
    )
    top = os.path.realpath(asked.directory)
    if any(os.path.realpath(path).startswith((top + "/", top)) for path in asked.mountpoints):
        parser.error("a mountpoint in the directory would wait for itself")
    for number in _ENDING:
        signal.signal(number, _leave)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # nodes keep files open
    with contextlib.suppress(PermissionError):
        os.nice(_NICENESS)  # those who ask are many
    with contextlib.suppress(OSError):
        Path("/proc/self/timerslack_ns").write_text("1")  # otherwise it wakes up 50 µs late
    return _run(Mounts(asked.directory, settings), asked.mountpoints)


def _run(mounts: Mounts, mountpoints: Sequence[str]) -> int:
    try:
        for mountpoint in mountpoints:
            mounts.attach(mountpoint)
        mounts.serve()
    except KeyboardInterrupt:
        pass
    except attach.AttachError as error:
        sys.stderr.write(f"benchmarks.layer: {error}\n")
        return 1
    finally:
        mounts.detach()
    mounts.say(mounts.report().to_json())
    return 0


def _leave(_number: int, _frame: FrameType | None) -> None:
    """Unmount and end, undisturbed."""
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
