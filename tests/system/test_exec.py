"""`exec` becomes the command: what it gets and gives is what it would without condainer."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests import support
from tests.support import CONDAINER

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support import Workshop

PYTHON = shlex.quote(sys.executable)  # goes into lines of shell


@pytest.fixture(scope="module", autouse=True)
def mounted_once(built: Workshop) -> Iterator[None]:
    """One mount for all of these tests."""
    built.run("-q", "mount")
    yield
    built.run("-q", "umount")


def script(directory: Path, name: str, text: str, mode: int = 0o755) -> Path:
    path = directory / name
    path.write_text(text)
    path.chmod(mode)
    return path


# Exit statuses


@pytest.mark.parametrize("status", [0, 1, 2, 7, 125, 126, 127, 128, 130, 255])
def test_the_exit_status_is_the_commands(built: Workshop, status: int) -> None:
    done = built.run("exec", "--", "sh", "-c", f"exit {status}", status=status)
    assert done.stdout + done.stderr == ""


@pytest.mark.parametrize(
    "signum",
    [
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGABRT,
        signal.SIGKILL,
        signal.SIGSEGV,
        signal.SIGPIPE,
        signal.SIGALRM,
        signal.SIGTERM,
        signal.SIGUSR1,
        signal.SIGXCPU,
        signal.SIGRTMIN,
    ],
)
def test_a_signal_that_ends_the_command_reaches_the_caller(built: Workshop, signum: int) -> None:
    built.run("exec", "--", "sh", "-c", f"ulimit -c 0; kill -{int(signum)} $$", status=-signum)


def test_a_signal_sent_to_exec_is_sent_to_the_command(built: Workshop) -> None:
    trap = "trap 'echo caught; exit 9' USR1; echo ready; while :; do read x; done"
    with built.start("exec", "--", "bash", "-c", trap, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.readline() == "caught\n"
        assert process.wait(support.PATIENCE) == 9


def test_the_process_is_the_command(built: Workshop) -> None:
    with built.start("exec", "--", "sh", "-c", "echo $$") as process:
        assert process.communicate()[0] == f"{process.pid}\n"


# Commands that cannot be had


def test_no_such_command(built: Workshop) -> None:
    done = built.run("exec", "--", "no-such-command", status=127)
    assert done.stderr.startswith("condainer: error: command not found: no-such-command\n")


@pytest.mark.parametrize("name", ["", "./nothing", "/nowhere/at/all", "/etc/passwd/x"])
def test_no_such_file(built: Workshop, name: str) -> None:
    done = built.run("exec", "--", name, status=127)
    assert f"command not found: {name}\n" in done.stderr


def test_a_dangling_link_is_no_such_file(built: Workshop, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    built.run("exec", "--", str(tmp_path / "link"), status=127)


def test_a_file_that_is_not_executable(built: Workshop, tmp_path: Path) -> None:
    path = script(tmp_path, "file", "#!/bin/sh\n", 0o644)
    done = built.run("exec", "--", str(path), status=126)
    assert done.stderr == f"condainer: error: cannot execute {path}: Permission denied\n"


def test_a_directory_is_not_executable(built: Workshop, tmp_path: Path) -> None:
    done = built.run("exec", "--", str(tmp_path), status=126)
    assert f"cannot execute {tmp_path}: " in done.stderr


def test_a_script_whose_interpreter_is_missing(built: Workshop, tmp_path: Path) -> None:
    path = script(tmp_path, "script", "#!/no/such/interpreter\n")
    done = built.run("exec", "--", str(path), status=126)
    assert f"cannot execute {path}: " in done.stderr
    assert "interpreter" in done.stderr


def test_exec_without_a_command(built: Workshop) -> None:
    done = built.run("exec", status=125)
    assert "exec needs a command" in done.stderr


def test_exec_without_a_project(built: Workshop, tmp_path: Path) -> None:
    done = built.run("-d", str(tmp_path), "exec", "--", "true", status=125)
    assert f"no condainer project in {tmp_path}" in done.stderr


def test_dry_run_runs_nothing(built: Workshop, tmp_path: Path) -> None:
    done = built.run("-n", "exec", "--", "touch", str(tmp_path / "new"))
    assert "would run touch" in done.stderr
    assert not (tmp_path / "new").exists()


# Looking the command up


def test_the_environment_comes_first_on_path(built: Workshop) -> None:
    done = built.run("exec", "--", "python", "-c", "import sys; print(sys.executable)")
    assert done.stdout == f"{built.prefix}/bin/python\n"


def test_an_entry_point_runs(built: Workshop) -> None:
    assert built.run("exec", "--", "hard-hello").stdout == f"hello from {built.prefix}\n"


def test_path_that_activation_extends_is_searched(built: Workshop) -> None:
    assert built.run("exec", "--", "hard-activated").stdout == "activated\n"


def test_what_is_not_executable_is_passed_over_on_path(built: Workshop, tmp_path: Path) -> None:
    for name, mode in (("a", 0o644), ("b", 0o755)):
        (tmp_path / name).mkdir()
        script(tmp_path / name, "mine", f"#!/bin/sh\necho {name}\n", mode)
    (tmp_path / "c" / "mine").mkdir(parents=True)
    path = f"{tmp_path}/c:{tmp_path}/a:{tmp_path}/b:{os.environ['PATH']}"
    assert built.run("exec", "--", "mine", variables={"PATH": path}).stdout == "b\n"


def test_only_what_is_not_executable_is_on_path(built: Workshop, tmp_path: Path) -> None:
    path = script(tmp_path, "mine", "#!/bin/sh\n", 0o644)
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = built.run("exec", "--", "mine", variables=variables, status=126)
    assert f"cannot execute {path}: Permission denied" in done.stderr


def test_an_empty_entry_of_path_is_the_working_directory(built: Workshop, tmp_path: Path) -> None:
    script(tmp_path, "mine", "#!/bin/sh\necho here\n")
    done = subprocess.run(
        [*CONDAINER, "-d", str(built.directory), "exec", "mine"],
        cwd=tmp_path,
        env={**built.variables, "PATH": f"{os.environ['PATH']}:"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("here\n", "")


def test_a_script_without_a_first_line_runs_in_sh(built: Workshop, tmp_path: Path) -> None:
    path = script(tmp_path, "plain", 'echo "$0 $1 $HARD_PREFIX"\n')
    done = built.run("exec", "--", str(path), "an argument")
    assert done.stdout == f"{path} an argument {built.prefix}/share/hard-activate\n"


def test_a_relative_path_counts_from_the_working_directory(built: Workshop, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    script(tmp_path / "bin", "here", "#!/bin/sh\npwd\n")
    done = subprocess.run(
        [*CONDAINER, "-d", str(built.directory), "exec", "bin/here"],
        cwd=tmp_path,
        env=built.variables,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{tmp_path}\n"


# Arguments


@pytest.mark.parametrize(
    "words",
    [
        ("-c", "print(1)"),
        ("--help",),
        ("-d", "x"),
        ("-v",),
        ("--", "x"),
        ("", " ", "a\nb", "größe", "*"),
        ("-n", "--version"),
    ],
)
@pytest.mark.parametrize("dashes", [(), ("--",)])
def test_what_comes_after_the_command_is_the_commands(
    built: Workshop, words: tuple[str, ...], dashes: tuple[str, ...]
) -> None:
    done = built.run("exec", *dashes, "printf", "[%s]", *words)
    assert done.stdout == "".join(f"[{word}]" for word in words)


def test_arguments_that_are_not_utf8(built: Workshop) -> None:
    done = subprocess.run(
        [*CONDAINER, "exec", "--", "printf", "%s", b"caf\xe9"],
        cwd=built.directory,
        env=built.variables,
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"caf\xe9"


def test_a_command_that_begins_with_a_dash(built: Workshop, tmp_path: Path) -> None:
    script(tmp_path, "-x", "#!/bin/sh\necho dash $1\n")
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert built.run("exec", "--", "-x", "1", variables=path).stdout == "dash 1\n"


def test_exec_help_is_its_own(built: Workshop) -> None:
    done = built.run("exec", "--help")
    assert done.stdout.startswith("usage: condainer [options] exec")
    assert "125 if condainer itself failed" in done.stdout


def test_an_option_behind_exec_is_not_taken_for_condainers(built: Workshop) -> None:
    done = built.run("exec", "-d", "x", "true", status=125)
    assert "exec has no option -d: write condainer's options before 'exec'" in done.stderr


# Streams and descriptors


def test_the_standard_streams_are_the_callers(built: Workshop) -> None:
    code = "import os; print(*[os.fstat(n).st_ino for n in (0, 1, 2)])"
    first, second = socket.socketpair(), socket.socketpair()
    with (
        first[0] as stdin,
        first[1],
        second[0] as stderr,
        second[1],
        built.start(
            "exec", "--", sys.executable, "-c", code, stdin=stdin, stderr=stderr
        ) as process,
    ):
        assert process.stdout is not None
        expected = [os.fstat(fd).st_ino for fd in (stdin.fileno(), process.stdout.fileno())]
        stdout, _ = process.communicate()
        found = [int(word) for word in stdout.split()]
        assert found == [*expected, os.fstat(stderr.fileno()).st_ino]


def shell(built: Workshop, text: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a line of shell in which "$@" is the condainer command."""
    return subprocess.run(
        ["bash", "-c", text, "bash", *CONDAINER],
        cwd=built.directory,
        env={**built.variables, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


DESCRIPTORS = (
    "import os\n"
    "for n in range(3):\n"
    " try: os.fstat(n)\n"
    " except OSError: os.write({to}, b'%d closed ' % n)\n"
)


@pytest.mark.parametrize(
    ("redirect", "to", "expected"),
    [
        ("<&-", 1, "0 closed "),
        (">&-", 2, "1 closed "),
        ("2>&-", 1, "2 closed "),
        ("<&- 2>&-", 1, "0 closed 2 closed "),
        ("<&- >&-", 2, "0 closed 1 closed "),
        ("", 1, ""),
    ],
)
def test_closed_streams_stay_closed(built: Workshop, redirect: str, to: int, expected: str) -> None:
    code = DESCRIPTORS.format(to=to)
    done = shell(built, f'"$@" exec -- {PYTHON} -c "{code}" {redirect}')
    assert done.returncode == 0
    assert (done.stderr if to == 2 else done.stdout) == expected


@pytest.mark.parametrize("redirect", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_the_mount_is_made_with_closed_streams(
    ready_again: Workshop, redirect: str, tmp_path: Path
) -> None:
    done = shell(ready_again, f'"$@" exec -- touch "{tmp_path}/done" {redirect}')
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "done").exists()


@pytest.fixture
def ready_again(built: Workshop) -> Iterator[Workshop]:
    """The built project without its mount, which comes back afterwards."""
    built.run("-q", "umount")
    yield built
    built.run("-q", "mount")


@pytest.mark.parametrize("command", [("exec", "--", "nosuch"), ("-d", "/", "exec", "true")])
@pytest.mark.parametrize("redirect", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_failures_keep_their_status_with_closed_streams(
    built: Workshop, command: tuple[str, ...], redirect: str
) -> None:
    done = shell(built, f'"$@" {" ".join(command)} {redirect}')
    assert done.returncode == (127 if "nosuch" in command else 125)
    assert ("condainer: error: " in done.stderr) == ("2>" not in redirect)


@pytest.mark.parametrize("command", ["mount --print", "status", "version", "mount"])
def test_commands_with_closed_streams(built: Workshop, command: str) -> None:
    done = shell(built, f'"$@" {command} <&- >&- 2>&-')
    assert done.returncode == 0


def test_inherited_descriptors_pass_through(built: Workshop) -> None:
    done = shell(built, '"$@" exec -- sh -c "cat <&7; echo there >&8" 7<<<here 8>&1')
    assert done.stdout == "here\nthere\n"


def test_the_lock_is_the_only_further_descriptor(built: Workshop) -> None:
    code = "import os; print(*sorted(os.listdir('/proc/self/fd'), key=int))"
    direct = shell(built, f'{PYTHON} -c "{code}" </dev/null').stdout.split()
    inside = shell(built, f'"$@" exec -- {PYTHON} -c "{code}" </dev/null').stdout.split()
    (lock,) = set(inside) - set(direct)
    assert int(lock) >= 64  # out of the way of those that scripts use


def test_a_low_limit_of_descriptors(built: Workshop) -> None:
    done = shell(built, 'ulimit -n 32; "$@" exec -- sh -c "ulimit -n"')
    assert (done.stdout, done.stderr) == ("32\n", "")


def test_ten_megabytes_through_the_pipes(built: Workshop) -> None:
    data = os.urandom(10_000_000)
    done = subprocess.run(
        [*CONDAINER, "exec", "--", "cat"],
        cwd=built.directory,
        env=built.variables,
        input=data,
        capture_output=True,
        check=True,
    )
    assert done.stdout == data
    assert done.stderr == b""


def test_a_reader_that_goes_ends_the_command_by_a_signal(built: Workshop) -> None:
    done = shell(built, '"$@" exec -- yes | head -n 1; echo ${PIPESTATUS[0]}')
    assert done.stdout == f"y\n{128 + signal.SIGPIPE}\n"
    assert done.stderr == ""


@pytest.mark.parametrize("program", ["sh", "bash"])
def test_a_terminal_stays_a_terminal(built: Workshop, program: str) -> None:
    with support.terminal(
        [*CONDAINER, "exec", "--", program, "-c", "test -t 0 && test -t 1 && test -t 2 && tty"],
        cwd=built.directory,
        env=built.variables,
    ) as terminal:
        assert terminal.wait() == 0
        assert terminal.rest().startswith("/dev/")


# What else a process has


def test_the_working_directory_stays(built: Workshop, tmp_path: Path) -> None:
    done = shell(built, f'cd "{tmp_path}" && "$@" -d "{built.directory}" exec -- pwd')
    assert done.stdout == f"{tmp_path}\n"


@pytest.mark.parametrize("limit", ["-c 0", "-f 12345", "-n 200", "-s 4096", "-u 5000"])
def test_limits_stay(built: Workshop, limit: str) -> None:
    option = limit.split(maxsplit=1)[0]
    done = shell(built, f'ulimit {limit}; ulimit {option}; "$@" exec -- bash -c "ulimit {option}"')
    first, second = done.stdout.splitlines()
    assert first == second


def test_umask_and_priority_stay(built: Workshop) -> None:
    done = shell(built, 'umask 0027; nice -n 5 "$@" exec -- sh -c "umask; nice"')
    assert done.stdout == "0027\n5\n"


@pytest.mark.parametrize("name", ["INT", "HUP", "TERM", "QUIT", "USR1", "CHLD"])
def test_ignored_signals_stay_ignored(built: Workshop, name: str) -> None:
    line = "grep SigIgn /proc/self/status"
    # SIGPIPE (bit 12) apart: Python does not tell how that was.
    done = shell(built, f'trap "" {name} PIPE; {line}; "$@" exec -- {line}')
    before, after = (int(line.split()[1], 16) & ~(1 << 12) for line in done.stdout.splitlines())
    assert before & 1 << (getattr(signal, f"SIG{name}") - 1)
    assert before == after


def test_no_signal_is_ignored_or_blocked(built: Workshop) -> None:
    line = "grep -E 'Sig(Ign|Blk|Cgt)' /proc/self/status"
    done = shell(built, f'{line}; "$@" exec -- {line}')
    lines = done.stdout.splitlines()
    assert lines[:3] == lines[3:]


# Variables


def variables_of(
    built: Workshop, command: tuple[str, ...], given: dict[str, str]
) -> dict[str, str]:
    done = subprocess.run(
        [*command, "env", "-0"], cwd=built.directory, env=given, capture_output=True, check=True
    )
    pairs = (item.partition(b"=") for item in done.stdout.split(b"\0") if item)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}


HARD = {
    "CONDAINER_TEST": "a b",
    "HARD_VALUE": "two  words \"double\" 'single' $HOME\nsecond line, größer",
}


@pytest.mark.parametrize(
    "locale", [{}, {"LANG": "C"}, {"LC_ALL": "C"}, {"LANG": "C.UTF-8"}, {"LC_CTYPE": "C"}]
)
def test_variables_are_the_callers_and_those_of_activation(
    built: Workshop, locale: dict[str, str]
) -> None:
    given = {
        "PATH": os.environ["PATH"],
        "HOME": built.variables["HOME"],
        "PYTHONPATH": built.variables["PYTHONPATH"],
        "ODD": "a\nb\u00e9 ",
        "EMPTY": "",
        "BYTES": os.fsdecode(b"\xff\xfe"),
        "BASH_FUNC_f%%": "() { :; }",
        **locale,
    }
    direct = variables_of(built, (), given)
    inside = variables_of(built, (*CONDAINER, "exec", "--"), given)
    del direct["PYTHONPATH"]
    activation = {
        **HARD,
        "CONDA_PREFIX": str(built.prefix),
        "CONDA_DEFAULT_ENV": "test",
        "CONDA_PROMPT_MODIFIER": "(test) ",
        "CONDA_SHLVL": "1",
        "HARD_PREFIX": f"{built.prefix}/share/hard-activate",
        "PYTHONNOUSERSITE": "1",
        "PATH": f"{built.prefix}/share/hard-activate/bin:{built.prefix}/bin:{os.environ['PATH']}",
    }
    assert inside == {**direct, **activation}


def test_no_variables_at_all(built: Workshop) -> None:
    inside = variables_of(built, (*CONDAINER, "exec", "--"), {})
    assert (
        inside["PATH"] == f"{built.prefix}/share/hard-activate/bin:{built.prefix}/bin:/bin:/usr/bin"
    )
    assert "HOME" not in inside
    assert "LC_CTYPE" not in inside


def configured(built: Workshop, directory: Path, **keys: object) -> Workshop:
    copy = built.copy(directory)
    copy.configure(**keys)
    return copy


FOREIGN = {"PYTHONPATH": str(support.REPOSITORY), "VIRTUAL_ENV": "/v", "PYTHONSTARTUP": "/s"}


def test_another_pythons_variables_stay_out(built: Workshop) -> None:
    given = {**built.variables, **FOREIGN}
    inside = variables_of(built, (*CONDAINER, "exec", "--"), given)
    assert not FOREIGN.keys() & inside.keys()


def test_another_pythons_variables_come_in_on_request(built: Workshop, tmp_path: Path) -> None:
    copy = configured(built, tmp_path / "copy", keep_python_path="true")
    inside = variables_of(copy, (*CONDAINER, "exec", "--"), {**built.variables, **FOREIGN})
    assert {name: inside.get(name) for name in FOREIGN} == FOREIGN


def test_own_code_is_live_over_the_image(built: Workshop, tmp_path: Path) -> None:
    copy = configured(built, tmp_path / "copy", keep_python_path="true")
    source = tmp_path / "with space"
    source.mkdir()
    for text in ("first", "second one"):
        (source / "mine.py").write_text(f"TEXT = {text!r}\n")
        done = copy.run(
            *("exec", "--", "python", "-B", "-c", "import mine; print(mine.TEXT)"),
            variables={"PYTHONPATH": f"{support.REPOSITORY}:{source}"},
        )
        assert done.stdout == f"{text}\n"


@pytest.mark.parametrize(("key", "expected"), [("false", "False\n"), ("true", "True\n")])
def test_user_site_packages(built: Workshop, tmp_path: Path, key: str, expected: str) -> None:
    copy = configured(built, tmp_path / "copy", user_site_packages=key)
    code = "import site; print(site.ENABLE_USER_SITE)"
    assert copy.run("exec", "--", "python", "-c", code).stdout == expected


# Weight


def test_nothing_heavy_is_imported_for_a_live_mount(built: Workshop) -> None:
    """The modules that a real run imported, as the interpreter itself lists them."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "condainer", "exec", "--", "true"],
        cwd=built.directory,
        env=built.variables,
        capture_output=True,
        text=True,
        check=True,
    )
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    own = {name for name in modules if name.startswith("condainer")}
    assert own == {
        *("condainer", "condainer.start", "condainer.errors", "condainer.running.execute"),
        *(
            "condainer.system.files",
            "condainer.system.locks",
            "condainer.project.places",
            "condainer.running.variables",
        ),
        *(
            "condainer.system.notes",
            "condainer.system.runtime",
            "condainer.system.trust",
            "condainer.mounting.asking",
        ),
        *("condainer.project", "condainer.running", "condainer.system"),
        *("condainer.mounting", "condainer.mounting.live", "condainer.mounting.namespace"),
    }
    before = {line.rpartition("|")[2].strip() for line in _imports_of_nothing(built)}
    # `-m` imports some of them itself; as a script, it imports nothing that takes long.
    heavy = {"argparse", "ctypes", "dataclasses", "json", "subprocess", "yaml", "anyio", "rich"}
    assert not modules - before & heavy


def _imports_of_nothing(workshop: Workshop) -> list[str]:
    command = [sys.executable, "-X", "importtime", "-c", "pass"]
    done = subprocess.run(
        command, env=workshop.variables, capture_output=True, text=True, check=True
    )
    return done.stderr.splitlines()


def test_a_script_may_be_executable_for_others_only(built: Workshop, tmp_path: Path) -> None:
    path = script(tmp_path, "others", "#!/bin/sh\necho ran\n", 0o705)
    assert stat.S_IMODE(path.stat().st_mode) == 0o705
    assert built.run("exec", "--", str(path)).stdout == "ran\n"


def test_an_image_that_was_built_for_another_place_is_refused(
    workshop: Workshop, hard_channel: Path
) -> None:
    workshop.environment("hard-text", channel=hard_channel)
    workshop.run("build", "-q")
    base = workshop.base / "other"
    base.mkdir()
    workshop.configure(mount_base_directory=base)
    answer = workshop.run("exec", "true", status=125)
    assert f"the image was built for {workshop.prefix}" in answer.stderr
    support.wait_for(lambda: not list(base.iterdir()))
    base.rmdir()
