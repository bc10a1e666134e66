"""The command line: help, wrong usage, how errors look, where options stand, what scripts get."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import condainer
from condainer.units import human
from tests import support
from tests.support import CONDAINER, REPOSITORY

if TYPE_CHECKING:
    from tests.support import Workshop

COMMANDS = (*("init", "build", "exec", "mount", "umount", "status", "prereq", "cache", "version"),)


def test_help_has_examples_and_every_command(workshop: Workshop) -> None:
    done = workshop.run("--help")
    assert "examples:" in done.stdout
    for command in COMMANDS:
        assert f"    {command} " in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_each_command_has_help(workshop: Workshop, command: str, option: str) -> None:
    done = workshop.run(command, option)
    assert done.stdout.startswith("usage: condainer ")
    assert command in done.stdout.splitlines()[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_command_has_examples(workshop: Workshop, command: str) -> None:
    assert f"  condainer {command}" in workshop.run(command, "-h").stdout.partition("examples:")[2]


def test_without_a_command_there_is_help(workshop: Workshop) -> None:
    done = workshop.run(status=2)
    assert (done.stdout, done.stderr) == ("", workshop.run("--help").stdout)


@pytest.mark.parametrize("arguments", [("version",), ("-V",), ("--version",)])
def test_version(workshop: Workshop, arguments: tuple[str, ...]) -> None:
    assert workshop.run(*arguments).stdout == f"condainer {condainer.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("nosuch",),
        ("--nosuch",),
        ("status", "--nosuch"),
        ("status", "extra"),
        ("-q", "-v", "status"),
        ("status", "-q", "-v"),
        ("-d",),
        ("build", "-j", "0"),
        ("build", "-j", "many"),
        ("build", "-j", "1.5"),
        ("build", "-j", ""),
        ("build", "-j", "-3"),
        ("mount", "--backend"),
    ],
)
def test_wrong_usage(workshop: Workshop, arguments: tuple[str, ...]) -> None:
    done = workshop.run(*arguments, status=2)
    assert done.stdout == ""
    assert done.stderr.startswith("usage: condainer ")
    assert ": error: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [("exec",), ("exec", "--"), ("exec", "-x", "true")])
def test_wrong_usage_of_exec(workshop: Workshop, arguments: tuple[str, ...]) -> None:
    done = workshop.run(*arguments, status=125)
    assert "condainer: error: " in done.stderr


def test_an_error_is_one_or_two_lines(workshop: Workshop, tmp_path: Path) -> None:
    done = workshop.run("-d", str(tmp_path), "status", status=1)
    assert done.stdout == ""
    assert done.stderr == (
        f"condainer: error: no condainer project in {tmp_path} (there is no condainer.yml)\n"
        "condainer: run 'condainer init' there, or name the project directory with -d DIR\n"
    )


@pytest.mark.parametrize("options", [(), ("-v",)])
def test_names_that_a_terminal_would_obey_are_spelled_out(
    workshop: Workshop, tmp_path: Path, options: tuple[str, ...]
) -> None:
    directory = tmp_path / "\x1b]0;title\x07"
    done = workshop.run(*options, "-d", str(directory), "status", status=1)
    assert rf"no condainer project in {tmp_path}/\x1b]0;title\x07 " in done.stderr
    assert "\x1b" not in done.stderr
    done = workshop.run("-d", str(directory), "init")
    assert rf"wrote {tmp_path}/\x1b]0;title\x07/condainer.yml" in done.stderr
    done = workshop.run("-d", str(directory), "status")
    assert rf"project     {tmp_path}/\x1b]0;title\x07" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("verbose", [("-v", "status"), ("status", "-v"), ("--verbose", "status")])
def test_a_traceback_on_request(
    workshop: Workshop, tmp_path: Path, verbose: tuple[str, ...]
) -> None:
    done = workshop.run("-d", str(tmp_path), *verbose, status=1)
    assert done.stderr.startswith("Traceback (most recent call last):")
    assert "\ncondainer: error: no condainer project in" in done.stderr


def test_options_stand_before_the_command_or_behind_it(workshop: Workshop, tmp_path: Path) -> None:
    for arguments in (
        ("-q", "-n", "-d", str(workshop.directory), "umount"),
        ("umount", "-q", "-n", "-d", str(workshop.directory)),
        ("-q", "umount", "--dry-run", "--directory", str(workshop.directory)),
    ):
        done = subprocess.run(
            [*CONDAINER, *arguments],
            cwd=tmp_path,
            env=workshop.variables,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout + done.stderr == ""


def test_quiet_leaves_errors(workshop: Workshop, tmp_path: Path) -> None:
    done = workshop.run("-q", "-d", str(tmp_path), "mount", status=1)
    assert "condainer: error: " in done.stderr


@pytest.mark.parametrize("command", [("status", "--json"), ("prereq", "--json")])
def test_json_parses(built: Workshop, command: tuple[str, ...]) -> None:
    done = built.run(*command)
    assert isinstance(json.loads(done.stdout), dict)
    assert done.stderr == ""


# Streams


def shell(workshop: Workshop, script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", script, "bash", *CONDAINER],
        cwd=workshop.directory,
        env=workshop.variables,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("command", ["status", "--help", "version", "prereq"])
def test_a_reader_that_has_gone(workshop: Workshop, command: str) -> None:
    """The reading end is closed before anything is written."""
    script = f'exec 3> >(exec true); wait $!; "$@" {command} >&3; echo $?'
    done = shell(workshop, script)
    assert done.stderr == ""
    assert done.stdout == "1\n"


@pytest.mark.parametrize("command", ["status", "--help", "version"])
def test_a_full_disk(workshop: Workshop, command: str) -> None:
    done = shell(workshop, f'"$@" {command} >/dev/full; echo $?')
    assert done.stdout == "1\n"
    assert done.stderr == "condainer: error: cannot write: No space left on device\n"


@pytest.mark.parametrize("redirect", ["2>/dev/full", "2>&3", "2>&-"])
@pytest.mark.parametrize(
    ("command", "status"), [("-d / status", 1), ("-v -d / status", 1), ("nosuch", 2), ("", 2)]
)
def test_failures_keep_their_status_where_they_cannot_be_told(
    workshop: Workshop, command: str, status: int, redirect: str
) -> None:
    done = shell(workshop, f'exec 3> >(exec true); wait $!; "$@" {command} {redirect}; echo $?')
    assert (done.stdout, done.stderr) == (f"{status}\n", "")


# A working directory that has been removed


def in_removed_directory(workshop: Workshop, command: str) -> subprocess.CompletedProcess[str]:
    script = f'mkdir removed; cd removed; rmdir ../removed; "$@" {command}'
    return shell(workshop, script)


@pytest.mark.parametrize(
    "command", ["exec -- hard-activated", "status", "mount", "umount", "prereq", "build -n --force"]
)
def test_a_project_is_named_from_a_removed_directory(built: Workshop, command: str) -> None:
    done = in_removed_directory(built, f"-d '{built.directory}' {command}")
    assert done.returncode == 0, done.stderr
    assert not done.stderr.startswith("condainer: ")
    if command.startswith("exec"):
        assert done.stdout == "activated\n"
    built.run("-q", "umount", status=None)


@pytest.mark.parametrize(
    "command", ["exec -- true", "status", "init", "init -d below", "build", "prereq"]
)
def test_a_removed_directory_is_no_project(workshop: Workshop, command: str) -> None:
    done = in_removed_directory(workshop, command)
    assert done.returncode == (125 if command.startswith("exec") else 1)
    assert done.stderr == (
        "condainer: error: the working directory does not exist any more\n"
        "condainer: go to one that does, or name the project directory in full with -d DIR\n"
    )


def on_terminal(workshop: Workshop, *arguments: str, **variables: str) -> str:
    env = {**workshop.variables, "TERM": "xterm", **variables}
    with support.terminal([*CONDAINER, *arguments], cwd=workshop.directory, env=env) as terminal:
        seen = terminal.rest()
        terminal.wait()
        return seen


def test_an_error_is_coloured_on_a_terminal(workshop: Workshop) -> None:
    seen = on_terminal(workshop, "mount")
    assert seen.startswith("condainer: \x1b[1;31merror:\x1b[0m there is no image")


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_colour_on_request(workshop: Workshop, variables: dict[str, str]) -> None:
    assert "\x1b" not in on_terminal(workshop, "mount", **variables)


def test_an_empty_no_color_means_nothing(workshop: Workshop) -> None:
    assert "\x1b[1;31m" in on_terminal(workshop, "mount", NO_COLOR="")


def test_ctrl_c_is_said_in_one_line(workshop: Workshop) -> None:
    """While it waits for a lock that somebody else holds."""
    import fcntl

    workshop.image.write_bytes(
        REPOSITORY.joinpath("condainer/mounting/probe.squashfs").read_bytes()
    )
    runtime = workshop.runtime
    runtime.mkdir(mode=0o700)
    lock = runtime / f"{workshop.uuid}.use"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with support.terminal(
            [*CONDAINER, "mount"], cwd=workshop.directory, env=workshop.variables
        ) as terminal:
            support.wait_for(lambda: waits(terminal.process.pid))
            terminal.type("\x03")
            assert terminal.wait() == 130
            seen = terminal.rest()
    assert "interrupted by signal 2" in seen
    assert "Traceback" not in seen
    lock.unlink()
    runtime.rmdir()


def waits(pid: int) -> bool:
    """Whether a process sleeps for some time, as it does between two looks at a lock."""
    try:
        return Path(f"/proc/{pid}/wchan").read_text() in {"hrtimer_nanosleep", "common_nsleep"}
    except OSError:
        return False


# cache


def test_cache_reads_the_image(built: Workshop) -> None:
    done = built.run("cache")
    assert done.stdout == ""
    assert done.stderr == f"read {human(built.image.stat().st_size)} of {built.image}\n"


def test_cache_dry_run(built: Workshop) -> None:
    assert built.run("-n", "cache").stderr == f"would read {built.image}\n"


def test_cache_without_an_image(workshop: Workshop) -> None:
    assert "there is no image" in workshop.run("cache", status=1).stderr


def test_cache_shows_progress_on_a_terminal(built: Workshop) -> None:
    seen = on_terminal(built, "cache")
    assert seen.count("\r") > 1
    assert f"of {built.image}" in seen
    assert os.linesep in seen


def test_no_path_forges_a_line_of_an_error(workshop: Workshop, tmp_path: Path) -> None:
    directory = tmp_path / "a\ncondainer: all is well\u202e"
    directory.mkdir()
    words = workshop.run("-d", str(directory), "status", status=1).stderr
    assert "\u202e" not in words
    assert [line for line in words.splitlines() if line.startswith("condainer: all")] == []
    told = workshop.run("-d", str(directory), "init").stderr
    assert r"a\ncondainer: all is well\u202e/condainer.yml" in told


def test_cache_reads_no_holes(workshop: Workshop) -> None:
    """An image that claims to be of exabytes takes no longer than what is in it."""
    shutil.copy(REPOSITORY / "condainer/mounting/probe.squashfs", workshop.image)
    os.truncate(workshop.image, 1 << 42)
    done = subprocess.run(
        [*CONDAINER, "cache"],
        cwd=workshop.directory,
        env=workshop.variables,
        capture_output=True,
        text=True,
        timeout=support.PATIENCE,
        check=True,
    )
    assert "read 4398.0 GB of" in done.stderr
