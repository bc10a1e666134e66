"""Activation scripts and their caller: `exec` gives what `source activate` gives, to each caller.

Each kind of script has a project of its own, which is asked by many callers.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from condainer.pipeline import dependence
from condainer.project import image
from tests import building, support
from tests.localchannel.package import Package, put

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support import Workshop

STRAIGHT = {
    "10-plain.sh": "# of a package\nexport CND_PLAIN=1 CND_TWO='a  b\nc'  # said twice\n",
    "20-caller.sh": 'export PERL5LIB="$PERL5LIB:$CONDA_PREFIX/perl"; export CND_HOME="$HOME/x"\n',
    "30-local.sh": "CND_LOCAL=inside\nexport CND_SEEN=${CND_LOCAL}\nunset CND_GONE\n",
    "40-empty.sh": 'export CND_EMPTY="${CND_EMPTY:-}"\nexport CND_BARE\n',
    "50-python.sh": 'export PYTHONPATH="$CONDA_PREFIX/py:${PYTHONPATH-}"\n',
    "60-path.sh": 'export PATH="$CONDA_PREFIX/more/bin:$PATH:/last"\n',
}
PLAIN = {
    "10-ssl.sh": 'if [ -z "${SSL_CERT_FILE:-}" ]; then\n  export SSL_CERT_FILE="/e/pem"\nfi\n',
    "20-perl.sh": 'export PERL5LIB="${PERL5LIB:+$PERL5LIB:}$CONDA_PREFIX/perl"\n',
    "30-tmp.sh": 'export CND_TMP="${TMPDIR:-/tmp}/x"\n',
    "40-test.sh": '[[ -n "${CND_ONE-}" && -d $HOME ]] && export CND_BOTH="$CND_ONE" || true\n',
    "50-here.sh": "if [ -e ./here ]; then export CND_HERE=1; fi\n",
}
OTHERS = {
    "10-program.sh": 'export CND_COUNT="$(env | grep -c ^CND_)"\n',
    "20-name.sh": 'for name in ${!CND_*}; do eval "export X_$name=\\"\\$$name\\""; done\n',
    "30-function.sh": "cnd_f() { export CND_F=$1; }; cnd_f f\nexport CND_PWD=$PWD\n",
}
VOLATILE = {"10-random.sh": "export CND_NUMBER=$RANDOM$RANDOM$RANDOM\n"}

OWN = "variables:\n  CND_OWN: a b\n  PATH: /never\n"
CALLERS: list[dict[str, str]] = [
    {},
    {"HOME": ""},
    {"SSL_CERT_FILE": "/mine", "PERL5LIB": "/p1:/p2", "TMPDIR": "/scratch", "CND_ONE": "one"},
    {"SSL_CERT_FILE": "", "PERL5LIB": "", "TMPDIR": "", "CND_EMPTY": "e", "CND_BARE": "b"},
    {"CND_LOCAL": "outside", "CND_GONE": "x", "CND_SEEN": "y", "PYTHONPATH": "/theirs"},
    {"CND_ONE": "a b\n'c' \\ $HOME * größer", "PERL5LIB": "%s \\1 @condainer-HOME@"},
    {"CONDA_SHLVL": "1", "CONDA_PREFIX": "/opt/conda", "CONDA_DEFAULT_ENV": "base"},
    {"CONDA_SHLVL": "nonsense", "VIRTUAL_ENV": "/venv", "PYTHONNOUSERSITE": "0"},
    {"SLURM_PROCID": "17", "BASH_ENV": "/nonexistent", "SHELLOPTS": "errexit:nounset"},
]


@pytest.fixture(scope="module", params=["straight", "plain", "others"])
def kind(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, home: Path
) -> Iterator[Workshop]:
    scripts = {"straight": STRAIGHT, "plain": PLAIN, "others": OTHERS}[request.param]
    with project(tmp_path_factory.mktemp(request.param), home, scripts) as made:
        made.run("-q", "mount")
        yield made
        made.run("-q", "umount")


class project:  # noqa: N801  (a context manager)
    """A built project with one package that has activation scripts."""

    def __init__(self, directory: Path, home: Path, scripts: dict[str, str]) -> None:
        def recipe(tree: Path) -> Package:
            for name, text in scripts.items():
                put(tree, f"etc/conda/activate.d/{name}", text)
            return Package(name="callers", version="1.0")

        self._made = building.new_workshop(directory / "my project", home)
        self._channel = building.make_channel(directory / "channel", recipe)

    def __enter__(self) -> Workshop:
        made = self._made.__enter__()
        made.environment("callers", channel=self._channel, more=OWN)
        made.run("build")
        return made

    def __exit__(self, *error: object) -> None:
        self._made.__exit__(None, None, None)


def variables_of(
    workshop: Workshop, caller: dict[str, str], *command: str, cwd: Path
) -> dict[str, str]:
    given = {"PATH": os.environ["PATH"], "HOME": workshop.variables["HOME"], "LANG": "C.UTF-8"}
    done = subprocess.run(
        command, cwd=cwd, env={**given, **caller}, capture_output=True, check=True, timeout=60
    )
    pairs = (item.partition(b"=") for item in done.stdout.split(b"\0") if item)
    ignored = {"_", "SHLVL", "OLDPWD", "PWD", "LC_CTYPE", "SHELLOPTS"}
    found = {os.fsdecode(key): os.fsdecode(value) for key, _, value in pairs}
    return {key: value for key, value in found.items() if key not in ignored}


def executed(workshop: Workshop, caller: dict[str, str], cwd: Path) -> dict[str, str]:
    start = f"import sys; sys.path[:0] = [{str(support.REPOSITORY)!r}]; import condainer.start as s"
    words = (sys.executable, "-c", f"{start}; s.entry()", "-d", str(workshop.directory))
    return variables_of(workshop, caller, *words, "exec", "env", "-0", cwd=cwd)


def sourced(workshop: Workshop, caller: dict[str, str], cwd: Path) -> dict[str, str]:
    script = f". '{workshop.directory}/activate'; env -0"
    return variables_of(workshop, caller, "bash", "-p", "-c", script, cwd=cwd)


@pytest.mark.parametrize("caller", CALLERS, ids=str)
def test_exec_gives_what_source_activate_gives(
    kind: Workshop, caller: dict[str, str], tmp_path: Path
) -> None:
    expected = sourced(kind, caller, tmp_path)
    assert executed(kind, caller, tmp_path) == expected
    assert executed(kind, caller, tmp_path) == expected  # which may have been kept
    assert expected["CND_OWN"] == "a b"
    assert "/never" not in expected["PATH"]


def test_the_working_directory_counts(kind: Workshop, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (there / "here").touch()
    for cwd in (tmp_path, there):
        assert executed(kind, {}, cwd) == sourced(kind, {}, cwd)


def test_only_what_scripts_can_tell_apart_runs_a_shell_again(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shell says itself each time that it runs."""
    monkeypatch.delenv("SHELLOPTS", raising=False)
    scripts = {
        "a.sh": 'if [ -n "$CND_SAYS" ]; then echo >/dev/null; export CND_X="$CND_SAYS"; fi\n'
    }
    with project(tmp_path, home, scripts) as made:
        made.run("-q", "mount")
        trace = tmp_path / "bin"
        trace.mkdir()
        (trace / "bash").write_text('#!/bin/sh\necho >> "$CND_LOG"\nexec /bin/bash "$@"\n')
        (trace / "bash").chmod(0o755)
        log = tmp_path / "log"
        path = {"PATH": f"{trace}:{os.environ['PATH']}", "CND_LOG": str(log)}
        for rank in range(3):
            for says in ("one", "two"):
                caller = {**path, "SLURM_PROCID": str(rank), "CND_SAYS": says}
                assert executed(made, caller, tmp_path)["CND_X"] == says
        assert log.read_text() == "\n\n"
        assert (made.runtime / f"{made.uuid}.results").stat().st_mode & 0o777 == 0o600
        made.run("-q", "umount")


def test_what_is_another_each_time_is_not_kept(home: Path, tmp_path: Path) -> None:
    with project(tmp_path, home, VOLATILE) as made:
        made.run("-q", "mount")
        found = {executed(made, {}, tmp_path)["CND_NUMBER"] for _ in range(3)}
        assert len(found) > 1
        made.run("-q", "umount")


def test_straight_scripts_start_no_shell(tmp_path: Path, home: Path) -> None:
    with project(tmp_path, home, STRAIGHT) as made:
        activation = image.read_manifest(made.image)["activation"]
        assert activation["scripts"] == []
        assert activation["variables"]["PERL5LIB"] == f"\0PERL5LIB\0:{made.prefix}/perl"


# Scripts that fail


FAILING = {
    "10-exit.sh": "export CND_NOT=1\nexit 7\n",
    "20-status.sh": "export CND_STATUS=1\nfalse\n",
    "30-says.sh": "echo CND_SAYS=1; read -r CND_READ; export CND_READ\n",
    "40-exec.sh": "export CND_NOT=1\nexec true\n",
    "50-syntax.sh": "export CND_NOT=1; if\n",
    "60-last.sh": 'export CND_LAST="$CND_STATUS"\n',
}


def test_scripts_that_fail_end_neither_build_nor_exec_nor_shell(home: Path, tmp_path: Path) -> None:
    with project(tmp_path, home, FAILING) as made:
        made.run("-q", "mount")
        said = made.build_log.read_text()
        assert "CND_SAYS=1" in said
        inside = executed(made, {}, tmp_path)
        assert (inside["CND_LAST"], inside["CND_READ"]) == ("1", "")
        assert "CND_NOT" not in inside
        script = f". '{made.directory}/activate' <<<input >/dev/null; env -0"
        found = variables_of(made, {}, "bash", "-c", script, cwd=tmp_path)
        assert found == inside
        made.run("-q", "umount")
        told = made.run("build", "--force").stderr
        directory = f"{made.prefix}/etc/conda/activate.d"
        assert f"{directory}/10-exit.sh ended the shell with status 7: it counts for noth" in told
        assert f"{directory}/20-status.sh ended with status 1" in told
        assert f"{directory}/40-exec.sh ended the shell with status 0: it counts for noth" in told
        assert "60-last.sh" not in told
        assert "activation sets PATH itself" in told


# What scripts can depend on


@pytest.mark.parametrize("text", [*PLAIN.values(), *STRAIGHT.values()])
def test_scripts_that_are_understood(text: str) -> None:
    assert dependence.of([text]).is_plain


def test_values_that_hold_the_home_directory_are_the_callers(
    workshop: Workshop, hard_channel: Path, tmp_path: Path
) -> None:
    """Built by one user, used by another: with a package's own script, end to end."""
    workshop.environment(
        "python", channel=hard_channel, more='variables:\n  CACHE: "$HOME/x"\n  MULTI: "a\\nb"\n'
    )
    workshop.run("build", "-q")
    done = workshop.run(
        "exec", "--", "sh", "-c", 'echo "$CACHE|$MULTI|$HOME"', variables={"HOME": str(tmp_path)}
    )
    assert done.stdout == f"$HOME/x|a\nb|{tmp_path}\n"
