"""Runs the packages' activation scripts once and keeps what they did to the variables.

The order is conda's: the environment's own variables, then `etc/conda/activate.d/*.sh` by name.
Variables that belong to whoever activates (HOME, PATH and the like) hold a mark meanwhile, so
that the snapshot can later be filled with somebody else's.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from condainer import files, tools
from condainer.activation import Snapshot
from condainer.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from condainer.pipeline.installers import Workplace

_MARKED = (
    "HOME",
    "USER",
    "LOGNAME",
    "PATH",
    "LD_LIBRARY_PATH",
    "MANPATH",
    "INFOPATH",
    "XDG_DATA_DIRS",
    "PKG_CONFIG_PATH",
    "CMAKE_PREFIX_PATH",
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MARK = "@condainer-{}@"
_SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
_SHELL_OWN = {"PWD", "OLDPWD", "SHLVL", "_", "PS1", "BASH_ENV", "IFS"}
_SCRIPT = """\
for script in "$@"; do
  . "$script"
done
printf 'condainer-variables\\0' >&3
env -0 >&3
"""


def write_state(prefix: Path, variables: Iterable[tuple[str, str]]) -> None:
    """Write the variables of environment.yml where conda looks for them: conda-meta/state."""
    path = prefix / "conda-meta" / "state"
    state = {"version": 1, "env_vars": dict(variables)}
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)  # whatever a package has put there, a link or a pipe
    path.write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")


def package_variables(prefix: Path) -> list[tuple[str, str]]:
    """What packages set without a script: etc/conda/env_vars.d/*.json, by name.

    Raises:
        BuildError: where one is not a flat JSON object.
    """
    pairs: dict[str, str] = {}
    for path in sorted((prefix / "etc" / "conda" / "env_vars.d").glob("*.json")):
        try:
            found = files.read_json(path, within=prefix)
        except (OSError, ValueError) as error:
            raise BuildError(f"{path} does not hold variables: {error}") from error
        if not isinstance(found, dict) or not all(
            _is_variable(key, value) for key, value in found.items()
        ):
            raise BuildError(f"{path} does not hold variables: names and values that a shell has")
        pairs.update(found)
    return list(pairs.items())


def _is_variable(name: object, value: object) -> bool:
    return (
        isinstance(name, str)
        and isinstance(value, str)
        and bool(_NAME.fullmatch(name))
        and "\0" not in value
    )


async def capture(
    prefix: Path, name: str, variables: Iterable[tuple[str, str]], workplace: Workplace
) -> Snapshot:
    """Activate the environment in a shell and see what changed.

    Args:
        prefix: the installed environment.
        name: what the prompt is to show.
        variables: the environment's own.
        workplace: where the scripts run.

    Raises:
        BuildError: where the shell does not come to its end.
    """
    with tempfile.TemporaryDirectory(dir=workplace.temporary) as directory:
        return await _capture(prefix, name, variables, workplace, Path(directory))


async def _capture(
    prefix: Path,
    name: str,
    variables: Iterable[tuple[str, str]],
    workplace: Workplace,
    directory: Path,
) -> Snapshot:
    """Capture in an empty directory, which stands for the home directory, too."""
    own = [*package_variables(prefix), *variables]
    before = {
        **{key: _MARK.format(key) for key in _MARKED},
        "HOME": str(directory),
        "PATH": f"{_SYSTEM_PATH}:{_MARK.format('PATH')}",
        "LANG": "C.UTF-8",
        "TERM": "dumb",
    }
    activated = {
        **before,
        "PATH": f"{prefix}/bin:{before['PATH']}",
        "CONDA_PREFIX": str(prefix),
        "CONDA_DEFAULT_ENV": name,
        "CONDA_SHLVL": "1",
        "CONDA_PROMPT_MODIFIER": f"({name}) ",
        **dict(own),
    }
    scripts = _scripts(prefix / "etc" / "conda" / "activate.d")
    after = await _source(scripts, activated, workplace, directory) if scripts else activated
    changes: list[tuple[str, str | None]] = [
        (key, _template(after[key], home=str(directory)))
        for key in sorted(after.keys() - _SHELL_OWN)
        if after[key] != before.get(key)
    ]
    changes += [(key, None) for key in sorted(before.keys() - after.keys() - _SHELL_OWN)]
    return Snapshot(str(prefix), name, tuple(changes))


def _scripts(directory: Path) -> list[Path]:
    """The scripts of a directory by name.

    Raises:
        BuildError: where one is something that a shell would wait for.
    """
    scripts = sorted(directory.glob("*.sh"))
    for script in scripts:
        if script.exists() and not script.is_file():
            raise BuildError(
                f"{script} is not a regular file", "leave out the package that put it there"
            )
    return scripts


async def _source(
    scripts: list[Path], variables: dict[str, str], workplace: Workplace, cwd: Path
) -> dict[str, str]:
    """The variables after a shell has read some scripts.

    What the scripts print goes to the log: only the list of variables goes to standard output.
    """
    shell = tools.which("bash") or tools.which("sh")
    if shell is None:
        raise BuildError("no shell was found to run the activation scripts of the packages")
    body = f"exec 3>&1 1>&2\n{_SCRIPT}"
    answer = await workplace.run(
        [str(shell), "-c", body, "condainer", *map(str, scripts)],
        cwd=cwd,
        environment=variables,
        capture=True,
    )
    _, found, listing = answer.stdout.partition(b"condainer-variables\0")
    if answer.returncode != 0 or not found:
        last = answer.tail[-1] if answer.tail else "it printed nothing"
        raise BuildError(
            f"an activation script in {scripts[0].parent} failed ({answer.verdict}): {last}"
        )
    pairs = (item.partition(b"=") for item in listing.split(b"\0") if item)
    return {
        key.decode("utf-8", "surrogateescape"): value.decode("utf-8", "surrogateescape")
        for key, _, value in pairs
        if not key.startswith(b"BASH_FUNC_")
    }


def _template(value: str, *, home: str) -> str:
    """Turn the marks in a value into places that `variables.expand` fills."""
    value = value.replace(home, "\0HOME\0")
    value = value.replace(f"{_SYSTEM_PATH}:{_MARK.format('PATH')}", "\0PATH\0")
    for key in _MARKED:
        value = value.replace(_MARK.format(key), f"\0{key}\0")
    return value
