"""A command run by `exec` is what it would be if it were run directly, as the kernel shows it.

Each test arranges something, becomes the command once directly and once through `exec`, and
compares what the command finds. Variables and the search of PATH are tested in `test_exec.py`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests import support
from tests.support import CONDAINER

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from tests.support import Workshop

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def mounted_once(built: Workshop) -> Iterator[None]:
    """One mount for these tests, but for those that begin without."""
    built.run("-q", "mount")
    yield
    built.run("-q", "umount")


@pytest.fixture
def cold(built: Workshop) -> Iterator[Workshop]:
    """The built project without its mount, which comes back afterwards."""
    built.run("-q", "umount")
    built.wait_until_clean()
    yield built
    built.run("-q", "mount")


PREPARE = """
import ctypes, fcntl, os, resource, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python has changed these two for itself
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.SIG_DFL)
{setting}
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Arranges something for the program that it becomes."""

PROBE = """
import ctypes, fcntl, json, os, signal, stat, sys
libc = ctypes.CDLL(None, use_errno=True)
def get(option):
    value = ctypes.c_int(-1)
    libc.prctl(option, ctypes.byref(value), 0, 0, 0)
    return value.value
def number(fd):
    return os.readlink('/proc/self/fd/' + fd), open('/proc/self/fdinfo/' + fd).read()
fields = open('/proc/self/stat').read().rpartition(') ')[2].split()
cwd = os.readlink('/proc/self/cwd')
print(json.dumps({
    'parent, group, session, terminal, foreground': [
        'own' if field == str(os.getpid()) else field for field in fields[1:6]],
    'scheduling': [fields[16], os.sched_getscheduler(0), sorted(os.sched_getaffinity(0)),
                   os.getpriority(os.PRIO_PROCESS, 0), libc.syscall(IOPRIO_GET, 1, 0)],
    'oom': open('/proc/self/oom_score_adj').read(),
    'slack': open('/proc/self/timerslack_ns').read(),
    'personality': open('/proc/self/personality').read(),
    'dump filter': open('/proc/self/coredump_filter').read(),
    'cgroup': open('/proc/self/cgroup').read(),
    'namespaces': [os.readlink('/proc/self/ns/' + n) for n in sorted(os.listdir('/proc/self/ns'))],
    'cwd, root': [cwd, os.readlink('/proc/self/root')],
    'parent death, subreaper': [get(2), get(37)],
    'privileges, securebits, huge pages': [libc.prctl(n, 0, 0, 0, 0) for n in (39, 27, 42)],
    'dumpable': libc.prctl(3, 0, 0, 0, 0),
    'a timer runs': signal.getitimer(signal.ITIMER_REAL)[0] > 0,
    'descriptors': {fd: number(fd) for fd in sys.argv[1:]},
    'flags of streams': [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in (0, 1, 2)],
}))
""".replace("IOPRIO_GET", "252" if os.uname().machine == "x86_64" else "31")

LISTING = """
import os
numbers = []
for number in range(1000):
    try: os.fstat(number)
    except OSError: continue
    numbers.append(number)
print(*numbers)
"""
"""Prints the descriptors that are open."""

OPENED = """
for number in range(3, 21):
    opened = os.open('file', os.O_RDWR | (os.O_APPEND if number % 2 else 0))
    os.lseek(opened, number, os.SEEK_SET)
    assert opened == number
    os.set_inheritable(opened, True)
"""

STATUS = ("/bin/cat", "/proc/self/status")
LIMITS = ("/bin/cat", "/proc/self/limits")

CHANGING = (
    *("Pid", "Tgid", "NStgid", "NSpid", "Vm", "Rss", "Huge", "voluntary", "nonvoluntary", "SigQ"),
    "FDSize",  # room in the table of descriptors, which depends on the number of the highest
)
"""What begins so in /proc/self/status differs from process to process."""


def through(built: Workshop, command: Sequence[str]) -> list[str]:
    return [*CONDAINER, "-d", str(built.directory), "exec", "--", *command]


def prepared(setting: str, argv: Sequence[str]) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", PREPARE.format(setting=setting), *argv]


def outcome(built: Workshop, setting: str, argv: Sequence[str], cwd: Path) -> tuple[int, str, str]:
    done = subprocess.run(
        prepared(setting, argv),
        cwd=cwd,
        env=built.variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=support.PATIENCE,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def stable(status: str) -> list[str]:
    """What has to be the same; a number of a process that is its own one has its name instead."""
    (own,) = re.findall(r"^Pid:\s*(\d+)$", status, re.MULTILINE) or [" "]
    text = re.sub(rf"^(NSpgid|NSsid):\s*{own}$", r"\1: own", status, flags=re.MULTILINE)
    return [line for line in text.splitlines() if not line.startswith(CHANGING)]


def compare(built: Workshop, setting: str, cwd: Path, *probes: Sequence[str]) -> None:
    """Compare what probes print; one of them that a setting kills has to be killed twice."""
    for probe in probes or (STATUS, LIMITS, (sys.executable, "-I", "-S", "-c", PROBE)):
        direct = outcome(built, setting, probe, cwd)
        inside = outcome(built, setting, through(built, probe), cwd)
        assert inside[2] == direct[2]
        assert stable(inside[1]) == stable(direct[1])
        assert inside[0] == direct[0]


# Exit statuses


def ended(
    built: Workshop, argv: Sequence[str], cwd: Path, variables: Mapping[str, str] | None = None
) -> int:
    """The status as `wait` gives it, which also tells of a core dump."""
    given = {**built.variables, **(variables or {})}
    pid = os.posix_spawn(
        "/usr/bin/env",
        ["env", f"--chdir={cwd}", *argv],
        given,
        file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0)],
        setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],  # which Python ignores
    )
    return os.waitpid(pid, 0)[1]


def test_every_exit_status(built: Workshop) -> None:
    for first in range(0, 256, 16):
        started = [
            built.start("exec", "--", "/bin/sh", "-c", f"exit {status}", stdin=subprocess.DEVNULL)
            for status in range(first, first + 16)
        ]
        said = [process.communicate(timeout=support.PATIENCE) for process in started]
        assert [process.returncode for process in started] == [*range(first, first + 16)]
        assert set(said) == {("", "")}


SIGNALS = [
    *("HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2"),
    *("PIPE", "ALRM", "TERM", "XCPU", "XFSZ", "VTALRM", "PROF", "IO", "PWR", "SYS"),
    *("RTMIN", "RTMAX"),
]


@pytest.mark.parametrize("name", SIGNALS)
def test_death_by_a_signal(built: Workshop, tmp_path: Path, name: str) -> None:
    number = int(getattr(signal, f"SIG{name}"))
    command = ["/bin/sh", "-c", f"ulimit -c 0; kill -{number} $$; sleep 60"]
    direct = ended(built, command, tmp_path)
    assert os.WIFSIGNALED(direct)
    assert ended(built, through(built, command), tmp_path) == direct


@pytest.mark.parametrize("name", ["SEGV", "ABRT"])
def test_death_with_a_core_dump(built: Workshop, tmp_path: Path, name: str) -> None:
    command = ["/bin/sh", "-c", f"kill -{name} $$"]
    setting = "resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))"
    direct = ended(built, prepared(setting, command), tmp_path)
    if not os.WCOREDUMP(direct):
        pytest.skip("this machine writes no core dumps")
    for path in tmp_path.iterdir():
        path.unlink()
    assert ended(built, prepared(setting, through(built, command)), tmp_path) == direct


# Streams


def test_ten_megabytes_through_all_streams(built: Workshop) -> None:
    data = os.urandom(10_000_000)
    done = subprocess.run(
        through(built, ["/usr/bin/tee", "/dev/stderr"]),
        env=built.variables,
        input=data,
        capture_output=True,
        timeout=support.PATIENCE,
        check=False,
    )
    assert done.returncode == 0
    assert done.stdout == data
    assert done.stderr == data


def test_nothing_is_read_ahead_from_standard_input(built: Workshop) -> None:
    line = '"$@" exec -- /bin/sh -c "read line; echo got \\$line"; cat'
    done = subprocess.run(
        ["/bin/sh", "-c", line, "sh", *CONDAINER, "-d", str(built.directory)],
        env=built.variables,
        input="one\ntwo\nthree\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("got one\ntwo\nthree\n", "")


@pytest.mark.parametrize(
    "closed", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)], ids=lambda c: f"closed{c}"
)
@pytest.mark.parametrize("mounted", [True, False], ids=["mounted", "cold"])
def test_closed_streams(
    built: Workshop,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    closed: tuple[int, ...],
    mounted: bool,  # noqa: FBT001
) -> None:
    if not mounted:
        request.getfixturevalue("cold")
    seen = tmp_path / "seen"
    script = f"exec 9>'{seen}'; for n in 0 1 2; do [ -e /proc/$$/fd/$n ]; echo $? >&9; done"
    command = ["/bin/sh", "-c", script]
    setting = "".join(f"os.close({fd}); " for fd in closed)
    found = []
    for argv in (command, through(built, command)):
        assert outcome(built, setting, argv, tmp_path) == (0, "", "")
        found.append(seen.read_text())
    assert found[0] == found[1]
    assert found[0].split() == ["1" if fd in closed else "0" for fd in range(3)]


# What a process has


def ignoring(*names: str) -> str:
    words = ", ".join(f"signal.SIG{name}" for name in names)
    return f"for each in ({words},): signal.signal(each, signal.SIG_IGN)"


LOWERED = """
for name in dir(resource):
    if name.startswith('RLIMIT_') and name not in ('RLIMIT_OFILE', 'RLIMIT_NPROC'):
        value = {'RLIMIT_CPU': 50, 'RLIMIT_NOFILE': 77, 'RLIMIT_AS': 1 << 30,
            'RLIMIT_DATA': 1 << 29, 'RLIMIT_RSS': 1 << 30, 'RLIMIT_STACK': 3 << 20,
            'RLIMIT_NICE': 0, 'RLIMIT_RTPRIO': 0}.get(name, 4321)
        hard = resource.getrlimit(getattr(resource, name))[1]
        if hard == resource.RLIM_INFINITY or hard >= value + 10:
            resource.setrlimit(getattr(resource, name), (value, value + 10))
"""

IOPRIO_SET = 251 if os.uname().machine == "x86_64" else 30

SETTINGS = {
    "nothing": "",
    "all signals blocked": "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())",
    "a signal pending": "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGINT});"
    "os.kill(os.getpid(), signal.SIGUSR1); os.kill(os.getpid(), signal.SIGINT)",
    "signals ignored": ignoring("HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "ALRM", "TSTP"),
    "children ignored": ignoring("CHLD"),
    "realtime signals ignored": "[signal.signal(n, signal.SIG_IGN) for n in range(34, 65)]",
    "a broken pipe ignored": ignoring("PIPE"),
    "a too large file ignored": ignoring("XFSZ"),
    "umask 0": "os.umask(0)",
    "umask 777": "os.umask(0o777)",
    "nice": "os.nice(7)",
    "one processor": "os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})",
    "batch": "os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))",
    "idle": "os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))",
    "idle disk": f"libc.syscall({IOPRIO_SET}, 1, 0, 3 << 13)",
    "killed first": "open('/proc/self/oom_score_adj', 'w').write('500')",
    "timer slack": "open('/proc/self/timerslack_ns', 'w').write('123456')",
    "no random addresses": "libc.personality(0x0040000)",
    "dump filter": "open('/proc/self/coredump_filter', 'w').write('0x7')",
    "ends with its parent": "libc.prctl(1, int(signal.SIGUSR2), 0, 0, 0)",
    "subreaper": "libc.prctl(36, 1, 0, 0, 0)",
    "no new privileges": "libc.prctl(38, 1, 0, 0, 0)",
    "no huge pages": "libc.prctl(41, 1, 0, 0, 0)",
    "a session of its own": "os.setsid()",
    "a group of its own": "os.setpgid(0, 0)",
    "limits": LOWERED,
    "no files may be written": "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))",
    "few descriptors": "resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))",
    "a timer": "signal.setitimer(signal.ITIMER_REAL, 1000)",
    "streams that do not block": "[os.set_blocking(fd, False) for fd in (1, 2)]",
    "the working directory removed": "os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')",
}

UNKNOWABLE = {
    "a broken pipe ignored": "Python ignores SIGPIPE before any of our code runs",
    "a too large file ignored": "Python ignores SIGXFSZ before any of our code runs",
}


def settings(failing: Mapping[str, str], *but: str) -> list[object]:
    """All settings but some, with those marked that fail as yet."""
    return [
        pytest.param(
            setting,
            id=name,
            marks=[pytest.mark.xfail(strict=True, reason=failing[name])] if name in failing else [],
        )
        for name, setting in SETTINGS.items()
        if name not in but
    ]


@pytest.mark.parametrize("setting", settings(UNKNOWABLE))
def test_what_a_process_has_stays(built: Workshop, tmp_path: Path, setting: str) -> None:
    compare(built, setting, tmp_path)


@pytest.mark.parametrize("setting", settings({}, *UNKNOWABLE))
def test_what_a_process_has_stays_while_it_mounts(
    cold: Workshop, tmp_path: Path, setting: str
) -> None:
    compare(cold, setting, tmp_path, STATUS)


LIST = ("/usr/bin/env", "LC_ALL=C", sys.executable, "-I", "-S", "-c", LISTING)


def test_inherited_descriptors(built: Workshop, tmp_path: Path) -> None:
    """Those of the caller are there as they were, and one that holds the mount."""
    (tmp_path / "file").write_bytes(bytes(100))
    numbers = [str(number) for number in range(3, 21)]
    compare(built, OPENED, tmp_path, (sys.executable, "-I", "-S", "-c", PROBE, *numbers))
    direct = set(outcome(built, OPENED, LIST, tmp_path)[1].split())
    inside = set(outcome(built, OPENED, through(built, LIST), tmp_path)[1].split())
    assert direct == {str(number) for number in range(21)}
    (lock,) = inside - direct
    assert direct < inside
    assert int(lock) > 20


def test_a_descriptor_under_every_number_that_the_lock_prefers(
    built: Workshop, tmp_path: Path
) -> None:
    setting = "[os.dup2(0, n) for n in range(3, 256)]"
    direct = outcome(built, setting, LIST, tmp_path)[1].split()
    inside = outcome(built, setting, through(built, LIST), tmp_path)[1].split()
    assert len(direct) == 256
    assert len(set(inside) - set(direct)) == 1
    assert set(direct) < set(inside)


# Arguments and variables


@pytest.mark.parametrize(
    "words",
    [
        pytest.param([bytes([n]) for n in range(1, 256)], id="every byte"),
        pytest.param([bytes(range(1, 256))], id="every byte in one"),
        pytest.param([b"\xed\xa0\x80", b"\xff\xfe", "größe".encode("latin-1")], id="no utf-8"),
        pytest.param([b"", b"", b"a" * 131_000], id="none and a very long one"),
        pytest.param([b"a"] * 100_000, id="very many"),
        pytest.param([b"x" * 100_000] * 15, id="a megabyte and a half"),
    ],
)
@pytest.mark.parametrize("locale", ["C", "C.UTF-8", "POSIX"])
def test_arguments(built: Workshop, words: list[bytes], locale: str) -> None:
    code = "import sys; sys.stdout.buffer.write(open('/proc/self/cmdline', 'rb').read())"
    command = [os.fsencode(w) for w in (sys.executable, "-I", "-S", "-c", code)]
    before = [os.fsencode(word) for word in through(built, [])]
    variables = {**built.variables, "LC_ALL": locale}
    done = subprocess.run(
        [*before, *command, *words], env=variables, capture_output=True, check=False
    )
    assert done.stderr == b""
    assert done.stdout == b"".join(word + b"\0" for word in (*command, *words))


def run_with_environment(argv: Sequence[str], entries: list[bytes]) -> list[bytes]:
    """Run a program with these very entries of the environment, which Python would not pass on."""
    text = (
        "import ctypes, sys, json\n"
        "argv, entries = json.loads(sys.stdin.readline())\n"
        "libc = ctypes.CDLL(None)\n"
        "def array(words):\n"
        "    words = [w.encode('latin-1') for w in words]\n"
        "    return (ctypes.c_char_p * (len(words) + 1))(*words, None)\n"
        "libc.execve(argv[0].encode(), array(argv), array(entries))\n"
    )
    given = json.dumps([list(argv), [entry.decode("latin-1") for entry in entries]])
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", text],
        input=given.encode() + b"\n",
        capture_output=True,
        timeout=support.PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.split(b"\0")


ENVIRONMENTS = {
    "bytes": [b"BYTES=" + bytes(range(1, 256)), b"\xff\xfe=1", b"a b=c", b"X=a=b=c", b"EMPTY="],
    "no value": [b"NOTHING", b"OTHER=1"],
    "no name": [b"=odd", b"=C:=C:\\", b"OTHER=1"],
    "twice": [b"TWICE=1", b"OTHER=1", b"TWICE=2"],
    "large": [b"LARGE=" + b"x" * 131_000, b"OTHER=1"],
    "many": [b"V%d=%d" % (n, n) for n in range(20_000)],
}


DROPPED = {
    "no value": "os.environ has no place for it",
    "no name": "os.environ has it, and os.execve does not want it",
    "twice": "os.environ has no place for the second",
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=[pytest.mark.xfail(strict=True, reason=DROPPED[name])] if name in DROPPED else [],
        )
        for name in ENVIRONMENTS
    ],
)
def test_variables_that_activation_does_not_change(built: Workshop, name: str) -> None:
    entries = ENVIRONMENTS[name]
    needed = [f"{key}={built.variables[key]}".encode() for key in ("PATH", "PYTHONPATH")]
    # What reads them is the kernel: it gives the entries as they were passed.
    show = ["/bin/cat", "/proc/self/environ"]
    inside = run_with_environment(through(built, show), [*entries, *needed])
    direct = run_with_environment(show, [*entries, *needed])
    assert [entry for entry in direct if entry in entries] == entries
    assert [entry for entry in inside if entry in entries] == entries


# A terminal


@pytest.fixture(params=["directly", "exec"])
def how(request: pytest.FixtureRequest, built: Workshop) -> list[str]:
    """What stands before a command."""
    return [] if request.param == "directly" else through(built, [])


def test_the_size_of_the_terminal(built: Workshop, how: list[str]) -> None:
    """It is passed on, and a change of it is told."""
    script = "trap 'stty size; exit 5' WINCH; stty size; while :; do read -t 0.1 line; done"
    argv = [*how, "/bin/bash", "-c", script]
    with support.terminal(argv, cwd=built.directory, env=built.variables) as terminal:
        terminal.expect("0 0\r\n")
        terminal.resize(33, 77)
        terminal.expect("33 77\r\n")
        assert terminal.wait() == 5


def test_interrupt_and_quit_keys(built: Workshop, how: list[str]) -> None:
    for key, expected in (("\x03", -signal.SIGINT), ("\x1c", -signal.SIGQUIT)):
        argv = [*how, "/bin/sh", "-c", "ulimit -c 0; echo ready; exec sleep 60"]
        with support.terminal(argv, cwd=built.directory, env=built.variables) as terminal:
            terminal.expect("ready")
            terminal.type(key)
            assert terminal.wait() == expected


def test_the_end_of_the_terminal(built: Workshop, how: list[str]) -> None:
    argv = [*how, "/bin/sh", "-c", "echo ready; exec sleep 60"]
    with support.terminal(argv, cwd=built.directory, env=built.variables) as terminal:
        terminal.expect("ready")
        terminal.hang_up()
        assert terminal.wait() == -signal.SIGHUP


def test_a_job_of_a_shell(built: Workshop, how: list[str]) -> None:
    """Stopped, continued in the background and the foreground, and ended, as jobs are."""
    shell = ["/bin/bash", "--norc", "--noprofile", "-i"]
    line = " ".join(
        [*("'" + word + "'" for word in how), "/bin/sh -c 'echo run''ning; exec sleep 60'"]
    )
    variables = {**built.variables, "PS1": "> ", "TERM": "dumb"}
    with support.terminal(shell, cwd=built.directory, env=variables) as terminal:
        terminal.expect("> ")
        terminal.type(f"{line}\n")
        terminal.expect("\nrunning")
        terminal.type("\x1a")
        terminal.expect("Stopped")
        terminal.expect("> ")
        terminal.type("jobs\n")
        terminal.expect("Stopped")
        terminal.type("bg\n")
        terminal.expect("&")
        terminal.type("jobs\n")
        terminal.expect("Running")
        terminal.type("fg\n")
        terminal.expect("sleep 60")
        time.sleep(0.2)  # until it is in the foreground, which nothing shows
        terminal.type("\x03")
        terminal.expect("> ")
        terminal.type("echo status=$?\n")
        terminal.expect("\nstatus=130")
        terminal.type("exit 4\n")
        assert terminal.wait() == 4


def test_jobs_in_a_shell(built: Workshop, how: list[str]) -> None:
    """A shell that `exec` has become controls jobs as any other."""
    argv = [*how, "/bin/bash", "--norc", "--noprofile", "-i"]
    variables = {**built.variables, "PS1": "> ", "TERM": "dumb"}
    with support.terminal(argv, cwd=built.directory, env=variables) as terminal:
        terminal.expect("> ")
        terminal.type("sh -c 'echo run''ning; exec sleep 60'\n")
        terminal.expect("\nrunning")
        terminal.type("\x1a")
        terminal.expect("Stopped")
        terminal.expect("> ")
        terminal.type("fg\n")
        terminal.expect("sleep 60")
        time.sleep(0.2)  # until it is in the foreground, which nothing shows
        terminal.type("\x03")
        terminal.expect("> ")
        terminal.type("echo status=$?\n")
        terminal.expect("\nstatus=130")
        terminal.type("exit 4\n")
        assert terminal.wait() == 4


def test_the_settings_of_the_terminal(built: Workshop, how: list[str]) -> None:
    script = 'stty -echo -icanon min 3 time 7; exec "$@"'
    argv = ["/bin/sh", "-c", script, "sh", *how, "/bin/stty", "-g"]
    found = []
    for each in (argv, ["/bin/sh", "-c", script, "sh", "/bin/stty", "-g"]):
        with support.terminal(each, cwd=built.directory, env=built.variables) as terminal:
            found.append(terminal.rest())
            assert terminal.wait() == 0
    assert found[0] == found[1]
