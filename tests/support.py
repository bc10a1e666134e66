"""What tests share: projects in places of their own, and the `condainer` command as users run it.

Everything is real: the command runs as a program of its own, on real channels, with real mounts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

CONDAINER = (sys.executable, "-m", "condainer")
REPOSITORY = Path(__file__).parent.parent
PATIENCE = 60.0
_T = TypeVar("_T")


@dataclass
class Workshop:
    """A project directory, a mount base directory, and the variables to run commands with.

    Attributes:
        directory: of the project.
        base: the mount base directory; short, since it becomes a part of paths in `#!` lines.
        temporary: for temporary files.
        variables: what commands run with: nothing of the developer's own home is touched.
    """

    directory: Path
    base: Path
    temporary: Path
    variables: dict[str, str]
    uuid: str = field(default_factory=lambda: str(uuid.uuid4()))

    @property
    def prefix(self) -> Path:
        return self.base / f"condainer-{self.uuid}"

    @property
    def image(self) -> Path:
        return self.directory / f"{self.uuid}.squashfs"

    @property
    def lock_file(self) -> Path:
        return self.directory / f"{self.uuid}.lock.txt"

    @property
    def build_log(self) -> Path:
        return self.directory / f"{self.uuid}.build.log"

    def configure(self, **keys: object) -> None:
        """Write condainer.yml with this workshop's identity and some keys."""
        lines = {"mount_base_directory": self.base, "uuid": self.uuid, "unmount_after": 0.5, **keys}
        text = "".join(f"{key}: {value}\n" for key, value in lines.items())
        (self.directory / "condainer.yml").write_text(text)

    def environment(self, *specs: str, channel: Path | str, more: str = "") -> None:
        """Write environment.yml."""
        listed = "".join(f"  - {spec}\n" for spec in specs)
        text = (
            f"name: test\nchannels:\n  - {channel}\n  - nodefaults\ndependencies:\n{listed}{more}"
        )
        (self.directory / "environment.yml").write_text(text)

    def run(
        self,
        *arguments: str,
        status: int | None = 0,
        variables: Mapping[str, str] | None = None,
        stdin: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run `condainer` in the project directory.

        Args:
            arguments: of the command.
            status: the exit status that is expected; None for any.
            variables: to be added to those of the workshop.
            stdin: what it reads.
        """
        done = subprocess.run(
            [*CONDAINER, *arguments],
            cwd=self.directory,
            env={**self.variables, **(variables or {})},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE * 5,
            check=False,
        )
        if status is not None:
            assert done.returncode == status, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done

    def start(self, *arguments: str, **how: object) -> subprocess.Popen[str]:
        """Start `condainer` in the project directory and go on."""
        options: dict[str, object] = {
            "cwd": self.directory,
            "env": self.variables,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            **how,
        }
        return subprocess.Popen([*CONDAINER, *arguments], **options)  # type: ignore[call-overload,no-any-return]

    @property
    def runtime(self) -> Path:
        """Where condainer keeps this user's locks and logs."""
        return self.base / f".condainer-{os.getuid()}"

    def copy(self, directory: Path) -> Workshop:
        """A copy of the project in another directory: same identity, same mountpoint."""
        shutil.copytree(self.directory, directory)
        return dataclasses.replace(self, directory=directory)

    def is_mounted(self) -> bool:
        return any(
            line.split(" ")[4] == str(self.prefix)
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
        )

    def left_over(self) -> list[Path]:
        """What is in the mount base directory, and among the temporary files."""
        return sorted([*self.base.iterdir(), *self.temporary.iterdir()])

    def wait_until_clean(self) -> None:
        """Wait until the last mount has gone and nothing of it is left."""
        wait_for(lambda: not self.left_over(), f"left over: {self.left_over()}")


def at_once(count: int, ask: Callable[[int], _T]) -> list[_T]:
    """Ask in as many threads, which begin together, and give what each was answered."""
    found: dict[int, _T | Exception] = {}
    together = threading.Barrier(count)

    def run(number: int) -> None:
        together.wait(PATIENCE)
        try:
            found[number] = ask(number)
        except Exception as error:  # noqa: BLE001  (raised below)
            found[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers = [found[number] for number in range(count)]
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return [answer for answer in answers if not isinstance(answer, Exception)]


def wait_for(condition: Callable[[], object], failure: str = "it did not happen") -> None:
    """Wait until a condition holds.

    Raises:
        AssertionError: where it does not within a time that is far beyond what it takes.
    """
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(failure)
        time.sleep(0.02)


def make_workshop(directory: Path, home: Path) -> Workshop:
    """A workshop whose project is in a directory.

    Args:
        directory: of the project; made.
        home: stands for the home directory, with the caches in it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    kept = ("PATH", "LANG", "PYTHONDONTWRITEBYTECODE", "CONDAINER_TEST_CACHE")
    pip = [name for name in os.environ if name.startswith(("PIP_", "SSL_", "REQUESTS_"))]
    variables = {name: os.environ[name] for name in (*kept, *pip) if name in os.environ}
    variables["HOME"] = str(home)
    variables["PYTHONPATH"] = str(REPOSITORY)
    variables["CONDAINER_INSTALLER"] = "rattler"
    base = Path(tempfile.mkdtemp(prefix="cndt-", dir="/tmp"))
    temporary = Path(tempfile.mkdtemp(prefix="cndt-", suffix=".tmp"))
    temporary.chmod(0o1777)
    variables["TMPDIR"] = str(temporary)
    workshop = Workshop(directory, base, temporary, variables)
    workshop.configure()
    return workshop


def clear(workshop: Workshop) -> None:
    """Take away what a test left, so that it is not in the way of others; for failed tests."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        where = line.split(" ")[4]
        if where.startswith(f"{workshop.base}/"):
            subprocess.run(["umount", "-l", where], check=False, capture_output=True)
    for directory in (workshop.base, workshop.temporary):
        shutil.rmtree(directory, ignore_errors=True)


def running(name: str, *words: str) -> list[int]:
    """The processes of a program whose command line holds some words."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes().decode("utf-8", "replace")
                program, *arguments = line.split("\0")
                if Path(program).name == name and all(word in arguments for word in words):
                    found.append(int(entry.name))
    return sorted(found)


def daemons_of(workshop: Workshop) -> list[int]:
    """The file system daemons that serve a workshop's mount."""
    programs = [("squashfuse_ll",), ("squashfuse",), (Path(sys.executable).name, "condainer.fuse")]
    return [pid for name, *words in programs for pid in running(name, *words, str(workshop.prefix))]


def compressing(workshop: Workshop) -> list[int]:
    """The mksquashfs that write a workshop's image, whether from its prefix or from a pipe."""
    found = running("mksquashfs", "-noappend")
    # The image is only a descriptor to them; their place for temporary files has its name.
    variables = {pid: Path(f"/proc/{pid}/environ") for pid in found}
    return [pid for pid, path in variables.items() if workshop.uuid in _text_of(path)]


def _text_of(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""  # it ends just now


def without(
    workshop: Workshop, programs: Sequence[str], script: str
) -> subprocess.CompletedProcess[str]:
    """Run a script of bash where some programs cannot be executed, which only root can arrange.

    Args:
        workshop: whose directory and variables are used.
        programs: their names; each is hidden wherever it is on PATH.
        script: `"$@"` in it is `condainer`.
    """
    hide = 'for file in $(type -aP $PROGRAMS); do mount --bind /dev/null "$file"; done; '
    return subprocess.run(
        ["unshare", "-m", "bash", "-c", hide + script, "bash", *CONDAINER],
        cwd=workshop.directory,
        env={**workshop.variables, "PROGRAMS": " ".join(programs)},
        capture_output=True,
        text=True,
        check=False,
    )


class Terminal:
    """A program that has a terminal of its own, as a user at a keyboard sees it.

    Args:
        argv: the program; the terminal is its controlling one.
        cwd: its working directory.
        env: its variables.
    """

    def __init__(self, argv: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> None:
        self._keyboard, screen = pty.openpty()
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *argv],
            cwd=cwd,
            env=env,
            stdin=screen,
            stdout=screen,
            stderr=screen,
        )
        os.close(screen)
        self.seen = ""

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._keyboard, text.encode())

    def resize(self, rows: int, columns: int) -> None:
        """Give the window another size."""
        fcntl.ioctl(self._keyboard, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def expect(self, text: str) -> str:
        """Read until a text has come; give all that came up to its end, and forget it.

        Raises:
            AssertionError: where it does not come.
        """
        deadline = time.monotonic() + PATIENCE
        while text not in self.seen:
            assert self._read(deadline), f"no {text!r} in {self.seen!r}"
        before, _, self.seen = self.seen.partition(text)
        return before + text

    def rest(self) -> str:
        """Read to the end."""
        deadline = time.monotonic() + PATIENCE
        while self._read(deadline):
            pass
        return self.seen

    def wait(self) -> int:
        """The exit status, or -N where signal N ended the program."""
        return self.process.wait(PATIENCE)

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._keyboard], [], [], max(0.0, deadline - time.monotonic()))
        try:
            chunk = os.read(self._keyboard, 65536) if ready else b""
        except OSError:  # how a terminal tells that nobody has it open any more
            chunk = b""
        self.seen += chunk.decode("utf-8", "replace")
        return bool(chunk)

    def hang_up(self) -> None:
        """Go away, as a terminal does whose window is closed."""
        if self._keyboard >= 0:
            os.close(self._keyboard)
            self._keyboard = -1

    def close(self) -> None:
        """Hang up, and end the program where it still runs."""
        self.hang_up()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def terminal(argv: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> Iterator[Terminal]:
    """A `Terminal` that is closed afterwards."""
    made = Terminal(argv, cwd=cwd, env=env)
    try:
        yield made
    finally:
        made.close()
