"""Finds out what activation does to the variables: those of a build's programs, and any caller's.

The order is conda's: the environment's own variables, then `etc/conda/activate.d/*.sh` by name.
`dependence` decides how scripts are handled. Straight ones run with marks in place of the caller's
values, so the snapshot can be filled in for another caller later. All others are left to each
caller to run, and are only tried here. A script that fails does not end a build: conda goes on as
well, and a node without a GPU may build for one that has it.
"""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from condainer.errors import BuildError, ToolError
from condainer.pipeline import dependence
from condainer.running.activation import SCRIPTS, Snapshot
from condainer.running.shell import PackageScripts
from condainer.running.sourcing import LIMIT, Sourced, Sourcing, ended, too_slow
from condainer.running.variables import LEVEL, MARK, WHERE_GIVEN, apply
from condainer.system import files

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from condainer.pipeline.dependence import Dependence
    from condainer.pipeline.workplace import Workplace

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MARK = "@condainer-{}@"
_SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
_LARGEST = 1_000_000
"""Bytes of an activation script that is examined."""
_CHANGES = re.compile(
    r"(?:\b(?:export|unset)[ \t]+(?:-\w+[ \t]+)*)?\b([A-Za-z_]\w*)=|\bunset[ \t]+(\w+)"
)
_RESERVED = frozenset(("PATH", "CONDA_PREFIX", "CONDA_DEFAULT_ENV", LEVEL, "CONDA_PROMPT_MODIFIER"))
"""Variables that activation itself sets."""
_UNSET = "***unset***"
"""Means no value in conda-meta/state, see conda's `CONDA_ENV_VARS_UNSET_VAR`."""


@dataclass(frozen=True)
class Captured:
    """The snapshot, and the result of the scripts here."""

    snapshot: Snapshot
    sourced: Sourced

    @property
    def troubles(self) -> tuple[str, ...]:
        """What to tell the user about scripts that failed."""
        return (*self.sourced.failed, *self.sourced.left_out)


def write_state(prefix: Path, variables: Iterable[tuple[str, str]]) -> None:
    """Write the variables of environment.yml to conda-meta/state, where conda looks for them.

    Args:
        prefix: the environment.
        variables: names and values.
    """
    path = prefix / "conda-meta" / "state"
    state = {"version": 1, "env_vars": dict(variables)}
    files.make_directory(path.parent, within=prefix)
    files.write(path, json.dumps(state, ensure_ascii=False).encode(), within=prefix)


def package_variables(prefix: Path) -> list[tuple[str, str]]:
    """Read the variables that packages set without a script: etc/conda/env_vars.d/*.json, by name.

    Args:
        prefix: the environment.

    Raises:
        BuildError: If a file is not a flat JSON object.
    """
    pairs: dict[str, str] = {}
    for path in _listed(prefix, "etc/conda/env_vars.d", ".json"):
        try:
            found = files.read_json(path, within=prefix)
        except (OSError, ValueError) as error:
            raise BuildError(f"{path} does not hold variables: {error}") from error
        if not isinstance(found, dict) or not all(
            _is_variable(key, value) for key, value in found.items()
        ):
            raise BuildError(
                f"{path} does not hold variables: a JSON object with names and texts, as shells "
                "have them"
            )
        pairs.update(found)
    return list(pairs.items())


def _is_variable(name: object, value: object) -> bool:
    return (
        isinstance(name, str)
        and isinstance(value, str)
        and bool(_NAME.fullmatch(name))
        and "\0" not in value
    )


def own_variables(prefix: Path, variables: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """List what activation sets without a script: first the packages' variables, then the others.

    As in conda, PATH and its like are not among them.

    Args:
        prefix: the environment.
        variables: those of environment.yml.

    Raises:
        BuildError: If a package's variables cannot be read.
    """
    own = {**dict(package_variables(prefix)), **dict(variables)}
    return [(key, value) for key, value in own.items() if key not in _RESERVED and value != _UNSET]


def reserved(variables: Iterable[tuple[str, str]]) -> list[str]:
    """List the names of variables of environment.yml that are ignored, as in conda.

    Args:
        variables: names and values.
    """
    return [name for name, _ in variables if name in _RESERVED]


async def activate(
    prefix: Path, name: str, variables: Iterable[tuple[str, str]], workplace: Workplace
) -> Workplace:
    """Make a workplace whose programs run as in the activated environment.

    Args:
        prefix: the installed environment, as far as it is there.
        name: what the prompt shows.
        variables: those of environment.yml.
        workplace: where the scripts run; the result is a changed copy.

    Raises:
        BuildError: If there is no shell, or a script or variable cannot be read.
    """
    given = workplace.environment
    base = apply(_base(prefix, name, own_variables(prefix, variables)), given)
    with tempfile.TemporaryDirectory(dir=workplace.temporary) as home:
        # What scripts leave in a home directory must not reach the user's own.
        found = {**base, "HOME": home}
        sourced = await _source(prefix, scripts_of(prefix), found, workplace, home)
    own_home = given.get("HOME", "")
    after = {key: value.replace(home, own_home) for key, value in sourced.variables.items()}
    if "HOME" not in given:
        after.pop("HOME", None)
    # A build needs these as they were: the directory for temporary files, and its time.
    kept = {key: given[key] for key in ("TMPDIR", "SOURCE_DATE_EPOCH") if key in given}
    return replace(workplace, environment={**after, **kept})


async def capture(
    prefix: Path, name: str, variables: Iterable[tuple[str, str]], workplace: Workplace
) -> Captured:
    """Find out what activation does to the variables of any caller.

    Args:
        prefix: the installed environment.
        name: what the prompt will show.
        variables: those of environment.yml.
        workplace: where the scripts run.

    Raises:
        BuildError: If there is no shell, or a script or variable cannot be read.
    """
    base = _base(prefix, name, own_variables(prefix, variables))
    scripts = scripts_of(prefix)
    if not scripts:
        return Captured(Snapshot(str(prefix), name, tuple(base)), Sourced({}))
    texts = [_text(prefix / script, prefix) for script in scripts]
    depends = dependence.of(text for text in texts if text is not None)
    if None in texts:
        depends = replace(depends, is_straight=False, is_plain=False)
    with tempfile.TemporaryDirectory(dir=workplace.temporary) as directory:
        trial = _Trial(prefix, name, base, scripts, workplace, Path(directory))
        if depends.is_straight:
            return await _capture_straight(trial, depends)
        return await _capture_others(trial, depends, [text or "" for text in texts])


@dataclass(frozen=True)
class _Trial:
    """An environment whose scripts are tried, and a directory for that."""

    prefix: Path
    name: str
    base: list[tuple[str, str | None]]
    scripts: list[str]
    workplace: Workplace
    directory: Path

    async def run(self, caller: Mapping[str, str]) -> tuple[dict[str, str], Sourced]:
        """Run the scripts for a caller; returns all variables before and after them."""
        before = apply(self.base, caller)
        place = (self.workplace, self.directory)
        return before, await _source(self.prefix, self.scripts, before, *place)

    def snapshot(self, changes: Iterable[tuple[str, str | None]], touched: set[str]) -> Snapshot:
        """The snapshot of an environment that leaves no scripts to its callers."""
        return Snapshot(
            *(str(self.prefix), self.name, tuple(sorted(changes))), touched=tuple(sorted(touched))
        )


async def _capture_straight(trial: _Trial, depends: Dependence) -> Captured:
    """Run scripts with marks as the caller's values, and once more without values.

    They have no conditions, so each variable becomes the same pieces for every caller. If the
    caller has no value, a variable that is set, but not exported, does not reach programs.
    """
    ours = {key for key, _ in trial.base}
    marked = {key: _MARK.format(key) for key in depends.names - ours}
    before, sourced = await trial.run({**marked, "PATH": _MARK.format("PATH")})
    _, without = await trial.run({"PATH": _SYSTEM_PATH})
    after, exported = sourced.variables, without.variables.keys()
    changes = dict(trial.base)
    for key in before.keys() | after.keys():
        value = after.get(key)
        if value is None:
            changes[key] = None
        elif value != before.get(key) or (key in exported and key in marked):
            value = _template(value, {*marked, "PATH"})
            changes[key] = value if key in exported else f"{WHERE_GIVEN}{value}"
    touched = changes.keys() - ours
    return Captured(trial.snapshot(changes.items(), set(touched)), sourced)


async def _capture_others(trial: _Trial, depends: Dependence, texts: list[str]) -> Captured:
    """Leave scripts to each caller; find which variables they change, and whether they fail."""
    home = str(trial.directory)
    caller = {"HOME": home, "PATH": _SYSTEM_PATH, "LANG": "C.UTF-8", "TERM": "dumb"}
    before, sourced = await trial.run(caller)
    after = sourced.variables
    touched = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    touched.update(a or b for text in texts for a, b in _CHANGES.findall(text))
    touched = {name for name in touched if not dependence.OF_THE_SHELL.fullmatch(name)}
    snapshot = replace(
        trial.snapshot(trial.base, touched),
        scripts=tuple(trial.scripts),
        depends=tuple(sorted(depends.names)) if depends.is_plain else None,
        is_kept=not depends.is_volatile,
    )
    return Captured(snapshot, sourced)


def _base(prefix: Path, name: str, own: Iterable[tuple[str, str]]) -> list[tuple[str, str | None]]:
    """What activation changes before any script runs."""
    changes: dict[str, str | None] = {
        "PATH": f"{prefix}/bin:{MARK}PATH{MARK}",
        "CONDA_PREFIX": str(prefix),
        "CONDA_DEFAULT_ENV": name,
        LEVEL: "1",
        "CONDA_PROMPT_MODIFIER": f"({name}) ",
    }
    return list({**changes, **dict(own)}.items())


def _listed(prefix: Path, directory: str, suffix: str) -> list[Path]:
    """The files of a kind, by name, in a directory that conda reads when it activates."""
    names = files.names(prefix / directory, within=prefix)
    listed = sorted(name for name in names if name.endswith(suffix) and name[0] != ".")
    return [prefix / directory / name for name in listed]


def scripts_of(prefix: Path, directory: str = SCRIPTS) -> list[str]:
    """List the scripts of a directory by name, as paths relative to the prefix.

    Args:
        prefix: the environment.
        directory: relative to the prefix.

    Raises:
        BuildError: If one is not a regular file, or leads out of the environment.
    """
    scripts = _listed(prefix, directory, ".sh")
    for script in scripts:
        if files.leads_out(script, within=prefix):
            raise BuildError(
                f"{script} is a link that leads out of the environment",
                "leave out the package that has put it there",
            )
        if script.exists() and not script.is_file():
            raise BuildError(
                f"{script} is not a regular file", "leave out the package that has put it there"
            )
    return [f"{directory}/{script.name}" for script in scripts if script.exists()]


def for_shells(prefix: Path) -> tuple[PackageScripts, PackageScripts]:
    """List the packages' scripts for activation and for deactivation, as `activate` runs them.

    Args:
        prefix: the environment.

    Raises:
        BuildError: If one is not a regular file, or leads out of the environment.
    """
    after = [f"etc/conda/{name}" for name in ("activate.d", "deactivate.d")]
    found = [scripts_of(prefix, directory) for directory in after]
    found[1].reverse()
    return _for_shell(prefix, found[0]), _for_shell(prefix, found[1])


def _for_shell(prefix: Path, scripts: list[str]) -> PackageScripts:
    texts = [_text(prefix / script, prefix) for script in scripts]
    is_tame = None not in texts and dependence.of(text for text in texts if text).is_plain
    return PackageScripts(tuple(scripts), may_end_the_shell=not is_tame)


def _text(script: Path, prefix: Path) -> str | None:
    """The text of a script; None if it cannot be examined."""
    try:
        return files.read(script, within=prefix, most=_LARGEST).decode("latin-1")
    except OSError:
        return None


async def _source(
    prefix: Path,
    scripts: list[str],
    variables: Mapping[str, str],
    workplace: Workplace,
    cwd: Path | str,
) -> Sourced:
    """Run scripts; their output goes to the log.

    Raises:
        BuildError: If there is no shell.
    """
    if not scripts:
        return Sourced(dict(variables))
    try:
        sourcing = Sourcing([f"{prefix}/{script}" for script in scripts], variables)
    except ToolError as error:
        raise BuildError(error.message) from error
    try:
        place = replace(workplace, pass_fds=[*workplace.pass_fds, sourcing.reports])
        while sourcing.left:
            verdict = too_slow()
            with anyio.move_on_after(LIMIT):
                answer = await place.run(
                    sourcing.argv, cwd=Path(cwd), environment=sourcing.variables
                )
                verdict = ended(answer.returncode)
            sourcing.take(verdict)
    except ToolError as error:
        raise BuildError(error.message) from error
    finally:
        sourcing.end()
    return sourcing.result


def _template(value: str, names: Iterable[str]) -> str:
    """Turn the marks in a value into places that `variables.expand` fills in."""
    for name in names:
        value = value.replace(_MARK.format(name), f"{MARK}{name}{MARK}")
    return value
