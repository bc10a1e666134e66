"""`source activate` and `source deactivate`, in real shells."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pytest

from condainer.running import shell
from condainer.running.activation import Snapshot
from tests import support

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.support import Workshop

pytestmark = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.skipif(not shutil.which(name), reason=f"no {name}"))
        for name in ("bash", "zsh")
    ],
)

NO_FILES = {"bash": ("--norc", "--noprofile"), "zsh": ("-f",)}
SNAPSHOT = (
    "snapshot() { export -p | grep -vE ' (_|OLDPWD|RANDOM|SECONDS)='; "
    'printf "PS1=%s\\n" "${PS1-none}"; set | grep -i condainer_; '
    "typeset -f | grep -i condainer; }\n"
)


def source(
    name: str,
    workshop: Workshop,
    script: str,
    *options: str,
    cwd: Path | None = None,
    variables: Mapping[str, str] | None = None,
    **more: str,
) -> subprocess.CompletedProcess[str]:
    """Run lines of shell in a project directory."""
    given = {key: value for key, value in workshop.variables.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [name, *NO_FILES[name], *options, "-c", script],
        cwd=cwd or workshop.directory,
        env={**given, **(variables or {}), **more},
        capture_output=True,
        text=True,
        timeout=support.PATIENCE,
        check=False,
    )


def waiting(name: str, workshop: Workshop, script: str) -> subprocess.Popen[str]:
    """A shell that can be spoken to."""
    return subprocess.Popen(
        [name, *NO_FILES[name], "-c", script],
        cwd=workshop.directory,
        env=workshop.variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def lines(shell_process: subprocess.Popen[str]) -> IO[str]:
    assert shell_process.stdout is not None
    return shell_process.stdout


def say(shell_process: subprocess.Popen[str]) -> None:
    assert shell_process.stdin is not None
    shell_process.stdin.write("\n")
    shell_process.stdin.flush()


def test_activate_gives_what_conda_activate_gives(name: str, ready: Workshop) -> None:
    script = (
        "source ./activate && python -c 'import sys; print(sys.prefix)' && hard-activated && "
        'echo "$CONDA_PREFIX|$CONDA_DEFAULT_ENV|$CONDA_SHLVL|$CONDA_PROMPT_MODIFIER|'
        '$CONDAINER_TEST|$HARD_PREFIX"; source ./deactivate'
    )
    done = source(name, ready, script)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        str(ready.prefix),
        "activated",
        f"{ready.prefix}|test|1|(test) |a b|{ready.prefix}/share/hard-activate",
    ]
    assert done.returncode == 0


def test_activate_agrees_with_exec(name: str, ready: Workshop) -> None:
    done = source(name, ready, "source ./activate; env -0; source ./deactivate")
    executed = ready.run("exec", "--", "env", "-0").stdout
    own = ("_=", "SHLVL=", "PWD=", "OLDPWD=", "LC_CTYPE=", "LOGNAME=")  # of the shells
    shell_has, exec_has = (
        {item for item in text.split("\0") if not item.startswith(own)}
        for text in (done.stdout, executed)
    )
    assert shell_has == exec_has
    assert {"CONDAINER_TEST=a b", "CONDA_SHLVL=1", "PYTHONNOUSERSITE=1"} <= shell_has


@pytest.mark.parametrize("options", [(), ("-u",), ("-e",), ("-eu",)])
def test_deactivate_puts_back_what_was_there(
    name: str, ready: Workshop, options: tuple[str, ...]
) -> None:
    script = (
        f"{SNAPSHOT} PS1='$ '; snapshot > before; source ./activate; hard-activated; "
        "source ./deactivate; snapshot > after; echo end"
    )
    done = source(name, ready, script, *options, HARD_PREFIX="mine", CONDAINER_TEST="")
    assert (done.stdout, done.stderr) == ("activated\nend\n", "")
    before, after = (ready.directory / "before", ready.directory / "after")
    try:
        assert after.read_text() == before.read_text()
        assert "mine" in before.read_text()
    finally:
        before.unlink()
        after.unlink()
    support.wait_for(lambda: not ready.is_mounted())


def test_the_prompt(name: str, ready: Workshop) -> None:
    script = (
        'PS1=\'$ \'; source ./activate; echo "[$PS1]"; source ./deactivate; echo "[$PS1]"; '
        'unset PS1; source ./activate; echo "[${PS1-none}]"; source ./deactivate; '
        'echo "[${PS1-none}]"'
    )
    done = source(name, ready, script)
    without = "[none]" if name == "bash" else done.stdout.splitlines()[2]
    assert done.stdout.splitlines() == ["[(test) $ ]", "[$ ]", without, without]
    assert "(test)" not in without


def test_from_another_directory(name: str, ready: Workshop, tmp_path: Path) -> None:
    path = shlex.quote(str(ready.directory))
    script = f"source {path}/activate && pwd && hard-activated && source {path}/deactivate"
    done = source(name, ready, script, cwd=tmp_path)
    assert (done.stdout, done.stderr) == (f"{tmp_path}\nactivated\n", "")


def test_from_the_directory_above_with_cdpath(name: str, ready: Workshop, tmp_path: Path) -> None:
    decoy = tmp_path / ready.directory.name
    decoy.mkdir()
    there = shlex.quote(ready.directory.name)
    script = f"source {there}/activate && hard-activated && source {there}/deactivate"
    done = source(name, ready, script, cwd=ready.directory.parent, CDPATH=str(tmp_path))
    assert (done.stdout, done.stderr) == ("activated\n", "")


@pytest.mark.parametrize("directory", ["sp ace 'q\" $HOME", "-dash", "größe"])
def test_project_paths_that_need_quoting(
    name: str, ready: Workshop, tmp_path: Path, directory: str
) -> None:
    copy = ready.copy(tmp_path / directory)
    for place in ("./activate", shlex.quote(f"{copy.directory}/activate")):
        script = f"source {place} && hard-activated && source ./deactivate"
        done = source(name, copy, script)
        assert done.stderr == ""
        assert (done.stdout, done.stderr) == ("activated\n", "")


def test_project_path_that_the_locale_cannot_spell(
    name: str, ready: Workshop, tmp_path: Path
) -> None:
    copy = ready.copy(tmp_path / "größe")
    done = source(name, copy, "source ./activate && hard-activated", LC_ALL="C")
    assert (done.stdout, done.stderr) == ("activated\n", "")


def test_inside_another_conda_environment(name: str, ready: Workshop) -> None:
    script = (
        f"{SNAPSHOT} PS1='(base) $ '; snapshot > before; source ./activate; "
        'echo "$CONDA_SHLVL $CONDA_PREFIX_1 $PS1"; source ./deactivate; snapshot > after'
    )
    outer = {
        "CONDA_SHLVL": "1",
        "CONDA_PREFIX": "/opt/conda",
        "CONDA_DEFAULT_ENV": "base",
        "CONDA_PROMPT_MODIFIER": "(base) ",
    }
    done = source(name, ready, script, variables=outer)
    before, after = (ready.directory / "before", ready.directory / "after")
    try:
        assert (done.stdout, done.stderr) == ("2 /opt/conda (test) $ \n", "")
        assert after.read_text() == before.read_text()
    finally:
        before.unlink()
        after.unlink()


def test_what_path_got_meanwhile_stays(name: str, ready: Workshop) -> None:
    # The package's own script finds its entry only where it stands first.
    script = (
        'source ./activate; PATH="$PATH:/mine"; source ./deactivate; echo "$PATH"; '
        'source ./activate; PATH="/mine:$PATH"; source ./deactivate; echo "$PATH"'
    )
    done = source(name, ready, script)
    own = f"{ready.prefix}/share/hard-activate/bin"
    path = os.environ["PATH"]
    assert done.stderr == ""
    assert done.stdout.splitlines() == [f"{path}:/mine", f"/mine:{own}:{path}:/mine"]


def test_variables_that_the_user_changed_stay(name: str, ready: Workshop) -> None:
    script = (
        "source ./activate; export CONDAINER_TEST=changed NEW=1; source ./deactivate; "
        'echo "$CONDAINER_TEST $NEW ${HARD_PREFIX-unset}"'
    )
    done = source(name, ready, script, CONDAINER_TEST="before")
    assert done.stdout == "changed 1 unset\n"


def test_activating_twice_changes_nothing_more(name: str, ready: Workshop) -> None:
    script = (
        'source ./activate; one="$PATH $CONDA_SHLVL"; source ./activate; echo $?; '
        'test "$one" = "$PATH $CONDA_SHLVL" && source ./deactivate && '
        'echo "${CONDA_SHLVL-unset}"'
    )
    done = source(name, ready, script)
    assert (done.stdout, done.stderr) == ("0\nunset\n", "")


def test_activating_a_second_project_is_refused(
    name: str, ready: Workshop, workshop: Workshop
) -> None:
    snapshot = Snapshot(str(workshop.prefix), "other", ())
    (workshop.directory / "activate").write_text(shell.activate_script(snapshot, (), "/nowhere"))
    other = shlex.quote(f"{workshop.directory}/activate")
    script = f"source ./activate; source {other}; echo $?; hard-activated; source ./deactivate"
    done = source(name, ready, script)
    assert done.stdout == "1\nactivated\n"
    assert "another environment is active" in done.stderr
    support.wait_for(lambda: not ready.is_mounted())


def test_deactivate_when_nothing_is_active(name: str, ready: Workshop) -> None:
    script = f"{SNAPSHOT} snapshot > before; source ./deactivate; echo $?; snapshot > after"
    done = source(name, ready, script)
    before, after = (ready.directory / "before", ready.directory / "after")
    try:
        assert done.stdout == "1\n"
        assert "no environment of condainer is active" in done.stderr
        assert after.read_text() == before.read_text()
    finally:
        before.unlink()
        after.unlink()


@pytest.mark.parametrize("options", [(), ("-u",)])
def test_a_mount_that_fails_leaves_the_shell_as_it_was(
    name: str, ready: Workshop, tmp_path: Path, options: tuple[str, ...]
) -> None:
    copy = ready.copy(tmp_path / "copy")
    copy.image.unlink()
    script = f"{SNAPSHOT} snapshot > before; source ./activate; echo $?; snapshot > after"
    done = source(name, copy, script, *options)
    assert done.stdout == "1\n"
    assert done.stderr.startswith("condainer: error: there is no image")
    before, after = ((copy.directory / file).read_text() for file in ("before", "after"))
    assert before == after


def test_a_mount_that_is_used_stays_after_deactivate(name: str, ready: Workshop) -> None:
    script = (
        'set -e; source ./activate; cd "$CONDA_PREFIX"; '
        "sleep 86399 >/dev/null 2>&1 & echo $!; cd - >/dev/null; source ./deactivate; echo end"
    )
    done = source(name, ready, script)
    pid, end = done.stdout.split()
    try:
        assert (done.returncode, end, done.stderr) == (0, "end", "")
        assert (ready.prefix / "bin" / "python").exists()
    finally:
        os.kill(int(pid), signal.SIGKILL)
    support.wait_for(lambda: ready.run("-q", "umount", status=None).returncode == 0)


def test_two_shells_do_not_take_the_mount_from_each_other(name: str, ready: Workshop) -> None:
    first = "source ./activate; read -r go; source ./deactivate; echo out; read -r go"
    second = "source ./activate; echo in; read -r go; sleep 1; hard-activated"
    with waiting(name, ready, first) as one, waiting(name, ready, second) as two:
        assert lines(two).readline() == "in\n"
        say(one)
        assert lines(one).readline() == "out\n"
        assert two.communicate("\n")[0] == "activated\n"
        one.communicate("\n")
        assert (one.returncode, two.returncode) == (0, 0)


def test_a_shell_that_is_killed_leaves_no_mount(name: str, ready: Workshop) -> None:
    with waiting(name, ready, "source ./activate; echo in; read -r go") as killed:
        assert lines(killed).readline() == "in\n"
        assert ready.is_mounted()
        killed.kill()
    support.wait_for(lambda: not ready.is_mounted())


def test_umount_names_the_shell_that_is_in_the_environment(name: str, ready: Workshop) -> None:
    python = shlex.quote(sys.executable)
    script = f"source ./activate; {python} -m condainer umount; source ./deactivate"
    done = source(name, ready, script, PYTHONPATH=ready.variables["PYTHONPATH"])
    assert f"{ready.prefix} is in use by {name} (" in done.stderr


def test_a_mount_made_by_name_stays_after_deactivate(name: str, mounted: Workshop) -> None:
    done = source(name, mounted, "source ./activate; source ./deactivate")
    assert (done.returncode, done.stderr) == (0, "")
    assert mounted.is_mounted()


def test_condainer_is_found_on_path_where_it_has_moved(
    name: str, ready: Workshop, tmp_path: Path
) -> None:
    copy = ready.copy(tmp_path / "copy")
    text = (copy.directory / "activate").read_text()
    own = str(Path(sys.executable).parent / "condainer")
    assert own in text
    (copy.directory / "activate").write_text(text.replace(own, "/no/longer/there"))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    script = "source ./activate && hard-activated; source ./deactivate"
    assert source(name, copy, script, PATH=path).stdout == "activated\n"


def test_an_interactive_shell(name: str, ready: Workshop) -> None:
    variables = {**ready.variables, "PS1": "ready> ", "TERM": "dumb"}
    with support.terminal(
        [name, *NO_FILES[name], "-i"], cwd=ready.directory, env=variables
    ) as terminal:
        terminal.type("PS1='ready> '\n")
        terminal.expect("\nready> " if name == "bash" else "ready> ")
        terminal.type("source ./activate\n")
        terminal.expect("(test) ready> ")
        terminal.type("hard-activated\n")
        terminal.expect("\nactivated")
        terminal.expect("(test) ready> ")
        terminal.type("source ./deactivate; echo SHLVL=${CONDA_SHLVL-none}\n")
        terminal.expect("\nSHLVL=none")
        assert "(test)" not in terminal.expect("ready> ")
        terminal.type("exit\n")
        assert terminal.wait() == 0
    support.wait_for(lambda: not ready.is_mounted())


HOSTILE = "a'b\"c $(echo oops) `echo oops` \\ $HOME\nsecond %s größer"


def test_values_are_quoted(name: str, ready: Workshop, tmp_path: Path) -> None:
    """The script for an image whose variables hold what a shell could take for its own."""
    copy = ready.copy(tmp_path / "copy")
    snapshot = Snapshot(str(ready.prefix), "it's $HOME", (("HOSTILE", HOSTILE), ("NOT-A-NAME", "")))
    own = str(Path(sys.executable).parent / "condainer")
    text = shell.activate_script(snapshot, [("HOSTILE", HOSTILE)], own)
    (copy.directory / "activate").write_text(text)
    script = (
        'source ./activate; printf "%s|%s" "$HOSTILE" "$CONDA_DEFAULT_ENV"; source ./deactivate; '
        'printf "|%s" "${HOSTILE-unset}"'
    )
    done = source(name, copy, script)
    assert (done.stdout, done.stderr) == (f"{HOSTILE}|it's $HOME|unset", "")


def test_activation_while_the_last_user_goes(name: str, ready: Workshop, tmp_path: Path) -> None:
    """The file that the shell has opened is removed before it can hold anything with it."""
    lock = ready.runtime / f"{ready.uuid}.use"
    program = tmp_path / "condainer"
    program.write_text(
        "#!/bin/sh\n"
        f"case \"$*\" in *--for-shell) ;; *--for-shell*) [ -e '{tmp_path}/gone' ] ||\n"
        f"  {{ touch '{tmp_path}/gone'; rm '{lock}'; }};; esac\n"
        f'exec {shlex.join(support.CONDAINER)} "$@"\n'
    )
    program.chmod(0o755)
    script = ready.directory / "activate-here"
    text = (ready.directory / "activate").read_text()
    script.write_text(re.sub(r"^_condainer\(\) \{.*?^\}", "", text, flags=re.DOTALL | re.MULTILINE))
    try:
        done = source(
            name,
            ready,
            f'_condainer() {{ {shlex.quote(str(program))} "$@"; }}\n'
            'set -eu; . ./activate-here; echo "$CONDA_PREFIX"; hard-activated',
            PYTHONPATH=str(support.REPOSITORY),
        )
    finally:
        script.unlink()
    assert done.stdout == f"{ready.prefix}\nactivated\n"
    assert done.stderr == ""
    assert (tmp_path / "gone").exists()


STATE = {
    "bash": (
        "state() { builtin set +o; builtin shopt -p; builtin trap -p; builtin declare -f; "
        "builtin declare -F; builtin alias -p; builtin declare -p IFS POSIXLY_CORRECT LC_ALL "
        "2>/dev/null || builtin :; "
        'builtin echo "$-"; builtin umask; builtin compgen -v _CONDAINER || builtin :; }\n'
    ),
    "zsh": (
        "state() { builtin setopt; builtin unsetopt; builtin trap; builtin functions; "
        "builtin alias -L; builtin typeset -p IFS LC_ALL; builtin typeset -m '_CONDAINER*'; "
        'builtin echo "$-"; builtin umask; builtin :; } 2>/dev/null\n'
    ),
}
SHADOWS = (
    "cd echo test [ . source eval export unset local printf read set shift hash exec trap alias "
    "command type declare typeset return true false compgen shopt setopt unsetopt emulate disable "
    "enable pwd env sort dirname ls grep sed head tail basename cat"
)
ALIASED = (
    "cd echo test source eval export unset local printf read set hash exec if then case for while "
    "builtin return trap"
)
HARSH = {
    "all options": {
        "bash": "set -efu -o pipefail -o noclobber; set -a; set -o posix; set +o posix; "
        "IFS=$'\\n\\t'; set -k -E -T",
        "zsh": "setopt err_exit no_unset pipefail no_glob no_clobber all_export ksh_arrays "
        "sh_word_split warn_create_global rc_quotes ignore_braces; IFS=$'\\n\\t'",
    },
    "posix": {
        "bash": "set -o posix; export POSIXLY_CORRECT; set -u",
        "zsh": "emulate sh; setopt no_unset",
    },
    "strange": {
        "bash": "shopt -s extglob nullglob failglob dotglob nocasematch nocaseglob globstar "
        "xpg_echo expand_aliases; shopt -u sourcepath interactive_comments; set +h +B; IFS=_",
        "zsh": "setopt null_glob csh_null_glob glob_dots no_case_glob ksh_glob extended_glob "
        "bsd_echo glob_subst no_equals err_return no_multi_func_def no_hash_cmds; IFS=_",
    },
    "ksh": {
        "bash": "shopt -s extglob; unset IFS; set -o vi",
        "zsh": "emulate ksh; setopt no_unset; IFS=",
    },
    "xtrace": {
        "bash": "exec 2>/dev/null; set -xv; PS4='$(false)'",
        "zsh": "exec 2>/dev/null; set -xv",
    },
    "aliases": {
        name: f"{turn_on}alias " + " ".join(f"{word}='echo aliased'" for word in ALIASED.split())
        for name, turn_on in (("bash", "shopt -s expand_aliases; "), ("zsh", ""))
    },
    "functions": {
        name: "\n".join(f"function {word} {{ builtin false; }}" for word in SHADOWS.split())
        for name in ("bash", "zsh")
    },
    "traps": {
        "bash": "set -ET; for what in ERR RETURN EXIT; do "
        "trap \"builtin echo $what >> 'traps of mine'; builtin unset CC\" $what; done; "
        "trap - RETURN; trap \"[[ -z \\${_c_name+x} ]] || echo ERR >> 'traps of mine'\" DEBUG",
        "zsh": "trap \"builtin echo ZERR >> 'traps of mine'\" ZERR; trap : DEBUG EXIT",
    },
    "locale": dict.fromkeys(("bash", "zsh"), "{ export LC_ALL=tr_TR.UTF-8; } 2>/dev/null"),
}


@pytest.mark.parametrize("how", HARSH)
def test_the_callers_shell_makes_no_difference(
    name: str, how: str, ready: Workshop, tmp_path: Path
) -> None:
    """The same variables; and options, functions, aliases and traps are as they were."""
    copy = ready.copy(tmp_path / "copy")
    env = "/usr/bin/env -0"
    plain = f". ./activate\n{env} > within\n. ./deactivate\n{env} > after\n"
    assert source(name, copy, f"{env} > before\n{plain}").stderr == ""
    expected = [_variables(copy.directory / place) for place in ("before", "within", "after")]
    harsh = (
        f"{STATE[name]}{HARSH[how][name]}\n{env} >| before\nstate >| one\n"
        f"\\builtin . ./activate\n{env} >| within\n\\builtin . ./activate\n"
        f"\\builtin . ./deactivate\n"
        f"{env} >| after\nstate >| two\n\\builtin echo end\n"
    )
    done = source(name, copy, harsh)
    assert (done.stdout, done.stderr) == ("end\n", "")
    found = [_variables(copy.directory / place) for place in ("before", "within", "after")]
    changed = {
        key for key in expected[0] | expected[1] if expected[0].get(key) != expected[1].get(key)
    }
    assert {key: found[1].get(key) for key in changed} == {
        key: expected[1].get(key) for key in changed
    }
    assert found[2] == found[0]
    assert (copy.directory / "two").read_text() == (copy.directory / "one").read_text()
    assert not (copy.directory / "traps of mine").exists() or "ERR" not in (
        (copy.directory / "traps of mine").read_text()
    )


@pytest.mark.parametrize("how", ["all options", "posix", "ksh", "functions"])
def test_a_lock_file_that_goes_just_now_is_asked_for_again(
    name: str, how: str, ready: Workshop, tmp_path: Path
) -> None:
    """A socket stands for it: it is there when it is looked for, and cannot be opened."""
    copy = ready.copy(tmp_path / "copy")
    begin = "_condainer() {\n"
    once = "  if [[ ! -e asked ]]; then builtin : > asked; builtin echo socket; return; fi\n"
    script = copy.directory / "activate"
    script.write_text(script.read_text().replace(begin, begin + once))
    command = [sys.executable, "-c", "import socket as s; s.socket(s.AF_UNIX).bind('socket')"]
    subprocess.run(command, cwd=copy.directory, check=True)
    done = source(
        name,
        copy,
        f"{HARSH[how][name]}\n\\builtin . ./activate\n\\builtin echo $CONDA_DEFAULT_ENV\n"
        "\\builtin . ./deactivate\n\\builtin echo end\n",
    )
    assert (done.stdout, done.stderr) == ("test\nend\n", "")


@pytest.mark.parametrize("how", ["all options", "posix", "functions"])
def test_a_mount_that_fails_leaves_any_shell_as_it_was(
    name: str, how: str, ready: Workshop, tmp_path: Path
) -> None:
    copy = ready.copy(tmp_path / "copy")
    copy.image.unlink()
    dot = "builtin ." if how == "functions" else "."  # `builtin` takes the meaning from ||
    harsh = (
        f"{STATE[name]}{HARSH[how][name]}\nstate >| one\n"
        f"{dot} ./activate 2>| said || builtin :\nstate >| two\n\\builtin echo end\n"
    )
    done = source(name, copy, harsh)
    assert (done.stdout, done.stderr) == ("end\n", "")
    assert (copy.directory / "two").read_text() == (copy.directory / "one").read_text()
    assert "there is no image" in (copy.directory / "said").read_text()


def test_an_interrupted_activation_leaves_the_shell_as_it_was(
    name: str, ready: Workshop, tmp_path: Path
) -> None:
    copy = ready.copy(tmp_path / "copy")
    own = shlex.quote(str(Path(sys.executable).parent / "condainer"))
    slow = tmp_path / "condainer"
    slow.write_text("#!/bin/sh\necho has-begun >&2\nexec sleep 86399\n")
    slow.chmod(0o755)
    text = (copy.directory / "activate").read_text()
    assert own in text
    (copy.directory / "activate").write_text(text.replace(own, str(slow)))
    variables = {**ready.variables, "PS1": "ready> ", "TERM": "dumb"}
    with support.terminal(
        [name, *NO_FILES[name], "-i"], cwd=copy.directory, env=variables
    ) as terminal:
        terminal.type(
            "PS1='ready> '; alias mine='printf my%s alias'; ls() { printf my%s function; }"
        )
        terminal.type("\n")
        terminal.expect("ready> ")
        terminal.type("source ./activate\n")
        terminal.expect("has-begun")
        terminal.type("\x03")
        terminal.type('mine; ls; echo "[${_CONDAINER_PREFIX-none}]"\n')
        terminal.expect("myalias")
        terminal.expect("myfunction")
        terminal.expect("[none]\r\n")
        terminal.type("exit\n")
        terminal.wait()


OTHER_PYTHON = {"PYTHONPATH": str(support.REPOSITORY), "VIRTUAL_ENV": "/v", "PYTHONSTARTUP": "/s"}


def test_other_pythons_stay_out_as_in_exec(name: str, ready: Workshop, tmp_path: Path) -> None:
    """And come back, exported or not, as they were; two keys let them in."""
    say = (
        'echo "${PYTHONPATH-none}|${VIRTUAL_ENV-none}|${PYTHONNOUSERSITE-none}|${PYTHONHOME-none}"'
    )
    script = f"PYTHONHOME=/h; source ./activate; {say}; source ./deactivate; {say}; env"
    done = source(name, ready, script, variables=OTHER_PYTHON)
    within, after, *exported = done.stdout.splitlines()
    assert within == "none|none|1|none"
    assert after == f"{support.REPOSITORY}|/v|none|/h"
    assert "PYTHONHOME=/h" not in exported
    ready.wait_until_clean()
    copy = ready.copy(tmp_path / "copy")
    copy.configure(keep_python_path="true", user_site_packages="true")
    done = source(
        name, copy, f"source ./activate; {say}; source ./deactivate", variables=OTHER_PYTHON
    )
    assert done.stdout == f"{support.REPOSITORY}|/v|none|none\n"


def _variables(path: Path) -> dict[str, str]:
    pairs = (item.partition("=") for item in path.read_text(errors="replace").split("\0"))
    return {key: value for key, _, value in pairs if key not in {"_", "SHLVL"}}
