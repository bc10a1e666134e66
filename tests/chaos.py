"""Everything at once, and kills in between: each command has to give what is its own.

    python -m tests.chaos --rounds 500 --at-once 16 --seed 1 [--backend NAME] [--user]
                          [--without fusermount|fuse]

Each round is an `exec` whose command sleeps, reads and compares files, leaves a child behind, or is
killed; or `mount`, `umount`, `status`; or a kill -9 of the daemon, of the keeper, or of both. The
rounds run side by side, and what each does follows from the seed. Then everything has to come to
rest: without mount, process, lock file or directory left.

What a command may not do:

- give another status than its own, unless it was killed itself, or a daemon died before it had
  read what it was to read from the mount;
- read anything but what is in the image, whatever was killed;
- fail before it has begun, where no more than one daemon or keeper died since: `exec` heals that.
  The last means that nothing that starts after a kill may notice it;
- take more than 30 seconds longer than it sleeps.

`--backend` and `--user` are for root: another backend is the first there is where those before it
are hidden. So is `--without`: an ordinary user without fusermount mounts in a namespace of their
own, and without /dev/fuse the image is unpacked.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from condainer.system import removal
from tests import localchannel, support, users
from tests.building import processes_of, unpack
from tests.support import CONDAINER, Workshop

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 30.0
"""Seconds that a command may take beside what it sleeps."""
BATCH = 100
"""Rounds after which everything has to come to rest."""
BACKENDS = ("squashfuse_ll", "squashfuse", "python")
PROGRAMS = {"fusermount": ("fusermount3", "fusermount")}
DEVICES = {"fuse": ("/dev/fuse",)}

_WRONG_CONTENT, _CANNOT_READ = 99, 98
_FAILED = {125, 126, 127}

COMMAND = """
import hashlib, json, os, sys, time
plan = json.loads(sys.argv[1])
def say(word):
    os.write(1, b"%s %f\\n" % (word, time.monotonic()))
def read():
    for path, digest in plan["files"]:
        try:
            with open(path, "rb") as file:
                content = file.read()
        except OSError as error:
            os.write(2, str(error).encode())
            return 98
        if hashlib.sha256(content).hexdigest() != digest:
            os.write(2, path.encode())
            return 99
    return 0
say(b"began")
if plan["child"] and os.fork() == 0:
    null = os.open("/dev/null", os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)
    time.sleep(plan["sleep"] + 0.7)
    result = read()
    with open(plan["child"] + ".part", "w") as file:
        file.write("%d %f" % (result, time.monotonic()))
    os.rename(plan["child"] + ".part", plan["child"])
    os._exit(0)
time.sleep(plan["sleep"])
wrong = read()
if wrong:
    os._exit(wrong)
say(b"read")
time.sleep(plan["sleep"])
os._exit(plan["status"])
"""
"""What the commands run: prints when it has begun, and when it has no more need of the mount."""


@dataclass
class Death:
    """A kill of ours that took a daemon or a keeper.

    Attributes:
        begun: when.
        daemon: whether a daemon ended, so that what is mounted was lost.
        ended: when the process was gone; not yet, to begin with.
    """

    begun: float
    daemon: bool
    ended: float = math.inf


@dataclass
class Site:
    """What the rounds share.

    Attributes:
        workshop: the project that all use.
        files: some of the image, as paths below the mountpoint, with their digests.
        seed: of the choices.
        deaths: what was killed so far.
        problems: what should not have happened.
        done: how often each kind of round was.
    """

    workshop: Workshop
    files: list[tuple[str, str]]
    seed: int
    deaths: list[Death] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def died(self, begun: float, ended: float, *, daemon: bool = False) -> int:
        """How many died while something took place; only daemons where that is asked for."""
        with self.lock:
            return sum(
                each.begun < ended and each.ended > begun and (each.daemon or not daemon)
                for each in self.deaths
            )

    def problem(self, text: str) -> None:
        """Note what should not have happened."""
        with self.lock:
            self.problems.append(text)
            sys.stderr.write(f"PROBLEM: {text}\n")


@dataclass(frozen=True)
class End:
    """How a program ended.

    Attributes:
        begun: when it was started.
        ended: when it had ended.
        status: its exit status, negative where a signal ended it; None where it hung.
        said: words it printed, with the times.
        errors: what it wrote to standard error.
    """

    begun: float
    ended: float
    status: int | None
    said: dict[str, float]
    errors: str


class Round:
    """One round.

    Args:
        site: what all share.
        number: of the round.
    """

    def __init__(self, site: Site, number: int) -> None:
        self._site = site
        self._rng = random.Random(f"{site.seed} {number}")  # noqa: S311  (not for secrets)
        self._name = f"seed {site.seed} round {number}"

    def play(self) -> None:
        """Do what the seed says."""
        kinds = {
            self._undisturbed: 50,
            self._kill_command: 14,
            self._kill_server: 12,
            self._mount: 5,
            self._umount: 12,
            self._status: 4,
        }
        (kind,) = self._rng.choices(list(kinds), list(kinds.values()))
        time.sleep(self._rng.uniform(0, 0.3))
        with self._site.lock:
            self._site.done[kind.__name__.strip("_")] += 1
        kind()

    def _wrong(self, what: str, end: End) -> None:
        died = [
            f"{death.begun - end.begun:.3f}{'' if death.daemon else ' (keeper)'}"
            for death in self._site.deaths
            if death.begun < end.ended and death.ended > end.begun
        ]
        said = {word: round(when - end.begun, 3) for word, when in end.said.items()}
        self._site.problem(
            f"{self._name}: {what}: status {end.status} after {end.ended - end.begun:.3f} s, "
            f"said {said}, deaths at {died}, wrote {end.errors.strip()!r}"
        )

    # Commands

    def _plan(self) -> dict[str, object]:
        rng = self._rng
        child = rng.random() < 0.2
        return {
            "files": rng.sample(self._site.files, rng.choice([0, 0, 3, 20])),
            "sleep": rng.choice([0, 0, 0.05, 0.3, 1.0]),
            "status": rng.choice([0, 1, rng.randrange(97)]),
            "child": str(self._site.workshop.temporary / self._name) if child else "",
        }

    def _command(self, plan: dict[str, object], python: str) -> list[str]:
        words = [python, "-I", "-S", "-c", COMMAND, json.dumps(plan)]
        return [*CONDAINER, "-d", str(self._site.workshop.directory), "exec", "--", *words]

    def _undisturbed(self) -> None:
        plan = self._plan()
        inside = self._rng.random() < 0.3  # the interpreter of the image, which reads all the time
        python = "python" if inside else sys.executable
        end = self._run(self._command(plan, python))
        self._judge(plan, end, reads_to_the_end=inside)
        if plan["child"] and "began" in end.said:
            self._judge_child(plan, end, reads_to_the_end=inside)

    def _judge(self, plan: dict[str, object], end: End, *, reads_to_the_end: bool) -> None:
        began = end.said.get("began", end.ended)
        read = end.ended if reads_to_the_end else end.said.get("read", end.ended)
        reads = bool(plan["files"]) or reads_to_the_end
        if end.status is None:
            self._wrong("it hung", end)
        elif end.status == plan["status"]:
            pass
        elif end.status == _WRONG_CONTENT:
            self._wrong("it read something else than is in the image", end)
        elif end.status in _FAILED and not end.said and not reads_to_the_end:
            if self._site.died(end.begun, began) < 2:
                self._wrong("it did not begin", end)
        elif not reads or not self._site.died(end.begun, read, daemon=True):
            self._wrong(f"it should have given {plan['status']}", end)

    def _judge_child(self, plan: dict[str, object], end: End, *, reads_to_the_end: bool) -> None:
        file = Path(str(plan["child"]))
        deadline = time.monotonic() + PATIENCE
        while not file.exists():
            now = time.monotonic()
            late = reads_to_the_end and now > end.ended + 3
            if late and self._site.died(end.begun, now, daemon=True):
                return  # it has been ended as its parent may be
            if now > deadline:
                self._wrong("its child did not end", end)
                return
            time.sleep(0.02)
        status, _, when = file.read_text().partition(" ")
        file.unlink()
        if int(status) == _WRONG_CONTENT or (
            int(status) and not self._site.died(end.begun, float(when), daemon=True)
        ):
            self._wrong(f"its child got {status} {float(when) - end.begun:.3f} s after", end)

    def _kill_command(self) -> None:
        """A command, or an `exec` that has not come so far yet, is killed, or all its group is."""
        plan = {**self._plan(), "child": ""}
        signum = self._rng.choice([signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
        after = self._rng.choice([self._rng.uniform(0, 0.2), self._rng.uniform(0, 1)])
        end = self._run(self._command(plan, sys.executable), (signum, after))
        allowed = {plan["status"], -signum}
        if not end.said:
            allowed.add(128 + signum)
            if signum == signal.SIGINT and "KeyboardInterrupt" in end.errors:
                allowed.add(1)  # which came before any of our code
        if end.status not in allowed:
            self._judge(plan, end, reads_to_the_end=False)

    def _run(self, argv: list[str], kill: tuple[int, float] | None = None) -> End:
        begun = time.monotonic()
        process = subprocess.Popen(
            argv,
            env=self._site.workshop.variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        if kill is not None:
            signum, after = kill
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(after)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signum)
        hung = False
        try:
            said, errors = process.communicate(timeout=PATIENCE + 2)
        except subprocess.TimeoutExpired:
            hung = True
            errors = self._picture(process.pid)
            os.killpg(process.pid, signal.SIGKILL)
            said, more = process.communicate()
            errors += more
        words = (line.split() for line in said.splitlines())
        times = {word[0]: float(word[1]) for word in words if word[:1] in (["began"], ["read"])}
        status = None if hung else process.returncode
        return End(begun, time.monotonic(), status, times, errors)

    def _picture(self, hung: int) -> str:
        """What everything does while something hangs."""
        lines = [f"hung: {hung}"]
        for pid, command in processes_of(self._site.workshop).items():
            with contextlib.suppress(OSError):
                waits = Path(f"/proc/{pid}/wchan").read_text()
                lines.append(f"{pid} in {waits}: {command[:150]}")
        return "; ".join(lines) + "; "

    # Other commands of condainer

    def _call(self, *words: str) -> End:
        return self._run([*CONDAINER, "-d", str(self._site.workshop.directory), *words])

    def _mount(self) -> None:
        end = self._call("-q", "mount")
        if end.status != 0 and (end.status is None or not self._site.died(end.begun, end.ended)):
            self._wrong("mount failed", end)

    def _umount(self) -> None:
        end = self._call("-q", "umount")
        refused = end.status == 1 and "in use" in end.errors
        if end.status != 0 and not refused:
            self._wrong("umount failed", end)

    def _status(self) -> None:
        end = self._call("status", "--json")
        if end.status != 0:
            self._wrong("status failed", end)

    # Kills

    def _kill_server(self) -> None:
        kinds = self._rng.choice([("daemon",), ("daemon",), ("keeper",), ("daemon", "keeper")])
        servers = servers_of(self._site.workshop)
        chosen = [pid for kind in kinds for pid in servers[kind]]
        daemons = servers["daemon"]
        if not chosen:
            return
        # What it may harm is judged at once, so it is noted before.
        death = Death(time.monotonic(), daemon=bool(daemons))
        with self._site.lock:
            self._site.deaths.append(death)
        for pid in chosen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        deadline = death.begun + 5
        while any(lives(pid) for pid in chosen) and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.05)  # for a daemon that goes with its keeper
        death.daemon = any(not lives(pid) for pid in daemons)
        death.ended = time.monotonic()


def servers_of(workshop: Workshop) -> dict[str, list[int]]:
    """The daemons and the keepers of a workshop's mount."""
    found: dict[str, list[int]] = {"daemon": [], "keeper": []}
    for pid in processes_of(workshop):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().startswith("condainer-keep"):
                found["keeper"].append(pid)
            elif "/dev/fuse" in {
                str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()
            }:
                found["daemon"].append(pid)
    return found


def lives(pid: int) -> bool:
    """Whether a process has not ended yet; one that waits to be collected has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


# All rounds


def play(site: Site, rounds: int, at_once: int) -> None:
    """Play rounds, and see that everything comes to rest after some."""
    for first in range(0, rounds, BATCH):
        numbers = range(first, min(first + BATCH, rounds))
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(lambda number: Round(site, number).play(), numbers))
        come_to_rest(site, numbers)


def come_to_rest(site: Site, numbers: range) -> None:
    """Let the last one out be noticed: nothing may be left after the idle time."""
    workshop = site.workshop
    where = f"seed {site.seed} after round {numbers[-1]}"
    for words in (
        ("exec", "--", "/bin/true"),
        ("-q", "umount"),
    ):  # heals; takes away what is pinned
        done = workshop.run(*words, status=None)
        if done.returncode != 0:
            site.problem(f"{where}: {words}: status {done.returncode}: {done.stderr}")
    done = workshop.run("exec", "--", "/bin/true", status=None)
    if done.returncode != 0:
        site.problem(f"{where}: exec: status {done.returncode}: {done.stderr}")
    deadline = time.monotonic() + PATIENCE
    while left := [*leftovers(workshop)]:
        if time.monotonic() > deadline:
            site.problem(f"{where}: left: {left}")
            clear(workshop)
            return
        time.sleep(0.05)


def leftovers(workshop: Workshop) -> Iterator[str]:
    """What there still is of a mount."""
    if workshop.is_mounted():
        yield f"mount at {workshop.prefix}"
    yield from (f"process {pid}: {line[:200]}" for pid, line in processes_of(workshop).items())
    yield from (str(path) for path in files_of(workshop))


def files_of(workshop: Workshop) -> list[Path]:
    """What there is in the mount base directory, but for what is mounted."""
    found = [*workshop.base.iterdir()]
    with contextlib.suppress(FileNotFoundError):
        found += workshop.runtime.iterdir()
    return found


def clear(workshop: Workshop) -> None:
    """Take away by force what is left, so that rounds can go on."""
    for pid in processes_of(workshop):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    while workshop.is_mounted():
        argv = ["umount", "-l"] if os.getuid() == 0 else ["fusermount3", "-u", "-z"]
        subprocess.run([*argv, str(workshop.prefix)], check=True)
    for path in sorted(files_of(workshop), reverse=True):
        removal.remove_tree(path)


def some_files(workshop: Workshop, scratch: Path) -> list[tuple[str, str]]:
    """Files of an image with their digests, read without mounting it."""
    tree = unpack(workshop.image, scratch / "tree")
    files = sorted(path for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
    chosen = random.Random(1).sample(files, min(300, len(files)))  # noqa: S311
    return [
        (
            str(workshop.prefix / path.relative_to(tree)),
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in chosen
    ]


def main() -> int:
    """Play, and give the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--backend", choices=BACKENDS, default=BACKENDS[0])
    parser.add_argument("--user", action="store_true", help="as an ordinary user")
    parser.add_argument("--without", choices=("fusermount", "fuse"), default="")
    parser.add_argument("--inside", metavar="FILE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        return inside(Path(arguments.inside), arguments)
    with tempfile.TemporaryDirectory(prefix="cndc-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        workshop = make(directory)
        try:
            files = some_files(workshop, directory)
            return begin(workshop, files, arguments)
        finally:
            support.clear(workshop)


def make(directory: Path) -> Workshop:
    """A small project, built."""
    (directory / "home").mkdir()
    workshop = support.make_workshop(directory / "my project", directory / "home")
    channel = localchannel.ensure("hard")
    workshop.environment("python", "hard-hello", "hard-activate", channel=channel)
    workshop.run("build", "-q")
    return workshop


def give(workshop: Workshop, user: int) -> None:
    """Let a workshop belong to a user."""
    for path in (workshop.base, workshop.temporary, workshop.directory):
        for each in (path, *path.rglob("*")):
            os.chown(each, user, user, follow_symlinks=False)
    workshop.base.chmod(0o755)


def begin(workshop: Workshop, files: list[tuple[str, str]], arguments: argparse.Namespace) -> int:
    """Go on in a place where the backend is the first there is; as an ordinary user if asked to."""
    user = users.ANN if arguments.user else os.getuid()
    spec = {
        "directory": str(workshop.directory),
        "base": str(workshop.base),
        "temporary": str(workshop.temporary),
        "uuid": workshop.uuid,
        "files": files,
    }
    file = workshop.directory / "spec.json"
    file.write_text(json.dumps(spec))
    words = ["-m", "tests.chaos", "--inside", str(file)]
    for option in ("rounds", "at_once", "seed"):
        words += [f"--{option.replace('_', '-')}", str(getattr(arguments, option))]
    if os.getuid() != 0:
        if arguments.backend != BACKENDS[0] or arguments.user or arguments.without:
            raise SystemExit("--backend, --user and --without are for root")
        return subprocess.run([sys.executable, *words], check=False).returncode
    give(workshop, user)
    before = BACKENDS[: BACKENDS.index(arguments.backend)]
    programs = (*before, *PROGRAMS.get(arguments.without, ()))
    with users.namespace(programs, DEVICES.get(arguments.without, ())) as place:
        process = place.start(user, users.PYTHON, *words, TMPDIR=str(workshop.temporary))
        assert process.stderr is not None
        assert process.stdout is not None
        for line in process.stderr:
            sys.stderr.write(line)
        sys.stdout.write(process.stdout.read())
        return process.wait()


def inside(file: Path, arguments: argparse.Namespace) -> int:
    """Play in the place that was made for it."""
    spec = json.loads(file.read_text())
    names = ("PATH", "HOME", "LANG", "PYTHONPATH", "TMPDIR")
    variables = {name: os.environ[name] for name in names if name in os.environ}
    variables["CHAOS"] = spec["uuid"]  # by which everything that comes of it is found
    places = [Path(spec[name]) for name in ("directory", "base", "temporary")]
    workshop = Workshop(places[0], places[1], places[2], variables, spec["uuid"])
    files = [(path, digest) for path, digest in spec["files"]]
    site = Site(workshop, files, arguments.seed)
    start = time.monotonic()
    play(site, arguments.rounds, arguments.at_once)
    sys.stdout.write(
        f"{arguments.rounds} rounds in {time.monotonic() - start:.0f} s, {dict(site.done)}, "
        f"{len(site.deaths)} deaths, {len(site.problems)} problems\n"
    )
    return 1 if site.problems else 0


if __name__ == "__main__":
    sys.exit(main())
