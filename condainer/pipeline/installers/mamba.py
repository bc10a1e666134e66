"""Drives micromamba, mamba or conda as a program.

A dry run tells the packages, then they are installed: from the specs, or with --locked from an
@EXPLICIT file. On a pipe these programs say nothing while they fetch, so progress comes from the
lines they print while they link.
"""

from __future__ import annotations

import os
import re
import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from condainer import files, process, tools
from condainer.errors import BuildError, ToolError
from condainer.pipeline import credentials, lockfile
from condainer.pipeline.installers import (
    Package,
    Request,
    Solution,
    Workplace,
    failures,
    package_from_json,
    ready,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_LINKING = re.compile(r"Linking (\S+)")
_PREFIX = re.compile(r"^(critical|error|warning|info)\s+libmamba\s?")
_CONTINUED = " " * 4
"""How the lines begin that belong to an error; tables of packages are less indented."""
_CAUSE = re.compile(r"(critical|error)\s+libmamba|[A-Z]\w*(Error|NotFound|Channel): ")
"""How the first line of an explanation begins; conda has names of exceptions there."""
_UNSOLVED = re.compile(r"Could not solve for|Unsatisfiable|PackagesNotFound|ResolvePackageNotFound")
_UNREADABLE = re.compile(r"Download error|Subdir \S+ not loaded|CondaHTTPError|InvalidChannel")
_BOILERPLATE = (
    "If you run into this error",
    "Please try running `mamba clean",
    "If you still are having issues",
    "https://github.com/mamba-org/mamba/issues",
)
_LAST_LINES = 8


class Mamba:
    """An executable of the mamba family.

    Args:
        path: the executable; must be called micromamba, mamba or conda.
    """

    runs_link_scripts = True
    makes_prefix = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version = ""

    @property
    def description(self) -> str:
        """Name and version."""
        if not self._version:
            answer = tools.version_of(self._path)
            self._version = answer.split()[-1] if answer else "of unknown version"
        return f"{self._path.name} {self._version}"

    def check(self, request: Request) -> None:
        """See whether the mamba family can do what is asked."""
        for channel in (*request.sources, *(p.url for p in request.locked)):
            if "%20" in channel or " " in channel:
                raise ToolError(
                    f"{self._path.name} cannot read a channel whose path has a space: {channel}",
                    "move the channel, or use '--installer rattler'",
                )

    async def solve(self, request: Request, workplace: Workplace) -> Solution:
        """Ask for the packages in a dry run."""
        if request.locked:
            return Solution(request.locked)
        argv = [*self._create(request), "--dry-run", *self._wanted(request)]
        answer = await self._run([*argv, "--json"], workplace, workplace.on_line, capture=True)
        actions = _actions(answer.stdout)
        if answer.returncode != 0 or actions is None:
            raise await self._unsolved(request, argv, workplace)
        packages, to_fetch = self._packages(actions)
        return Solution(packages, to_fetch=to_fetch, cache=request.package_cache)

    async def _unsolved(
        self, request: Request, argv: list[str], workplace: Workplace
    ) -> BuildError:
        """Ask again for the explanation that people can read, which --json leaves out."""
        lines: list[str] = []

        def take(line: str) -> None:
            workplace.on_line(line)
            lines.append(line)

        answer = await self._run(argv, workplace, take)
        why = explanation(lines)
        channels = request.channels
        if _UNSOLVED.search(why):
            return failures.unsolved(self._path.name, why, channels)
        if _UNREADABLE.search(why):
            return failures.unreadable(why, channels)
        return BuildError(f"{self._path.name} failed ({answer.verdict}):\n{why}")

    async def install(self, request: Request, solution: Solution, workplace: Workplace) -> None:
        """Fetch and link the packages of a solution."""
        total = len(solution.packages)
        linked = 0
        lines: list[str] = []

        def take(line: str) -> None:
            nonlocal linked
            workplace.on_line(line)
            lines.append(line)
            match = _LINKING.match(line)
            if match:
                linked += 1
                workplace.on_progress(linked, total, match[1])

        workplace.on_progress(0, total, "fetching and unpacking")
        with tempfile.TemporaryDirectory(dir=workplace.temporary) as directory:
            argv = self._create(request)
            if request.locked:
                # Only here: some versions spoil their package cache when they are given URLs.
                file = Path(directory, "explicit.txt")
                urls = [
                    credentials.restored(line, request.sources)
                    for line in lockfile.explicit_lines(request.locked)
                ]
                file.write_text("\n".join(["@EXPLICIT", *urls, ""]))
                argv += ["--file", str(file)]
            else:
                argv += self._wanted(request)
            recorder = _Recorder(Path(directory), request.prefix)
            path = f"{recorder.directory}:{workplace.environment.get('PATH', os.defpath)}"
            caches = ready.caches(workplace.environment, self._path)
            packages, on_ready = solution.packages, workplace.on_ready
            watch = ready.CacheWatch(caches, request.prefix, packages, on_ready)
            async with process.task_group() as group:
                group.start_soon(watch.run)
                answer = await self._run(argv, workplace, take, PATH=path)
                group.cancel_scope.cancel()
            watch.look(is_over=True)
            failed = recorder.failed_script()
        if answer.returncode != 0:
            raise BuildError(f"{self._path.name} failed ({answer.verdict}):\n{explanation(lines)}")
        if failed:
            last = "\n".join(f"  {line}" for line in answer.tail[-_LAST_LINES:])
            raise BuildError(f"{failed}; the last lines of {self._path.name}:\n{last}")

    def _packages(self, actions: dict[str, Any]) -> tuple[tuple[Package, ...], int]:
        """The packages that a dry run lists, and how many bytes of them are to be fetched."""
        try:
            fetched = {_identity(entry): entry for entry in actions.get("FETCH", [])}
            linked = actions.get("LINK", [])
            listed = ({**fetched.get(_identity(entry), {}), **entry} for entry in linked)
            sizes = (package_from_json(entry).size for entry in fetched.values())
            return tuple(map(package_from_json, listed)), sum(sizes)
        except (AttributeError, TypeError, ValueError) as error:
            message = f"{self._path.name} lists something that is not a package: {error}"
            raise BuildError(message) from error

    def _create(self, request: Request) -> list[str]:
        return [str(self._path), "create", "-y", "-p", str(request.prefix)]

    def _wanted(self, request: Request) -> list[str]:
        channels = [part for channel in request.channels for part in ("-c", channel)]
        # Aliases and mirrors that are configured stay; conda refuses the option without channels.
        only = ["--override-channels"] if channels else []
        return [*channels, *only, *request.specs]

    async def _run(
        self,
        argv: list[str],
        workplace: Workplace,
        on_line: Callable[[str], None],
        *,
        capture: bool = False,
        **variables: str,
    ) -> process.Finished:
        threads = str(workplace.processors)
        environment = {
            **workplace.environment,
            "MAMBA_EXTRACT_THREADS": threads,
            "CONDA_EXECUTE_THREADS": threads,
            # The staging directory is gone when the build has ended.
            "CONDA_REGISTER_ENVS": "false",
            **variables,
        }
        return await workplace.run(argv, on_line=on_line, environment=environment, capture=capture)


class _Recorder:
    """A `bash` that stands before the real one on PATH and notes which link script failed.

    libmamba runs the packages' link scripts with the first bash on PATH, and goes on whatever
    their exit status is.

    Args:
        directory: an empty directory to work in.
        prefix: of the environment.
    """

    def __init__(self, directory: Path, prefix: Path) -> None:
        self.directory = directory / "bin"
        self._note = directory / "failed"
        self._prefix = prefix
        bash = tools.which("bash")
        self.directory.mkdir()
        if bash is not None:
            script = self.directory / "bash"
            script.write_text(
                f'#!/bin/sh\n{shlex.quote(str(bash))} "$@"\nstatus=$?\n'
                'for script in "$@"; do :; done\n'
                f'case "$status $script" in 0*) ;; *" {prefix}/bin/."*-link.sh)\n'
                f'  echo "$status $script" >>{shlex.quote(str(self._note))} ;; esac\n'
                "exit $status\n"
            )
            script.chmod(0o755)

    def failed_script(self) -> str:
        """Which script failed first, in words; empty where none did."""
        if not self._note.exists():
            return ""
        status, _, script = self._note.read_text().splitlines()[0].partition(" ")
        name = Path(script).name.removeprefix(".").removesuffix(".sh")
        return f"the script {name} failed (exit status {status})"


def explanation(lines: Sequence[str]) -> str:
    """What matters of what a failed program has said: its errors, without their trimmings."""
    first = next((place for place, line in enumerate(lines) if _CAUSE.match(line)), None)
    if first is None:
        return failures.excerpt(lines[-_LAST_LINES:])
    lines = lines[first:]
    if any(_PREFIX.match(line) for line in lines):
        lines = [line for line in lines if _PREFIX.match(line) or line.startswith(_CONTINUED)]
    texts = (_PREFIX.sub("", line) for line in lines)
    return failures.excerpt(t for t in texts if not any(mark in t for mark in _BOILERPLATE))


def _actions(stdout: bytes) -> dict[str, Any] | None:
    try:
        document = files.parse_json(stdout)
    except ValueError:
        return None
    if not isinstance(document, dict) or document.get("success") is False:
        return None
    actions = document.get("actions")
    return actions if isinstance(actions, dict) else None


def _identity(entry: dict[str, Any]) -> tuple[str, str, str]:
    build = entry.get("build") or entry.get("build_string") or ""
    return str(entry.get("name")), str(entry.get("version")), str(build)
