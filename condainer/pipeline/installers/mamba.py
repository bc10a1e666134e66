"""Drives micromamba, mamba or conda as a program.

Two steps: a dry run that only solves, then the installation of exactly those packages from an
@EXPLICIT file. On a pipe these programs say nothing while they fetch, so progress comes from the
lines they print while they link.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from condainer import process, tools
from condainer.errors import BuildError, ToolError
from condainer.pipeline import lockfile
from condainer.pipeline.installers import Package, Request, Solution, Workplace

if TYPE_CHECKING:
    from collections.abc import Iterable

_LINKING = re.compile(r"Linking (\S+)")
_PREFIX = re.compile(r"^(critical|error|warning|info)\s+libmamba\s?")
_CONTINUED = " " * 4
"""How the lines begin that belong to an error; tables of packages are less indented."""
_BOILERPLATE = (
    "If you run into this error",
    "Please try running `mamba clean",
    "If you still are having issues",
    "https://github.com/mamba-org/mamba/issues",
)
_EXPLANATION_LINES = 25


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
        for channel in request.channels:
            if "%20" in channel or " " in channel:
                raise ToolError(
                    f"{self._path.name} cannot read a channel whose path has a space: {channel}",
                    "move the channel, or use '--installer rattler'",
                )

    async def solve(self, request: Request, workplace: Workplace) -> Solution:
        """Ask for the packages in a dry run."""
        if request.locked:
            return Solution(tuple(lockfile.package_from_url(url) for url in request.locked))
        argv = [*self._create(request), "--dry-run", *self._wanted(request)]
        answer = await self._run([*argv, "--json"], workplace, capture=True)
        actions = _actions(answer.stdout)
        if answer.returncode != 0 or actions is None:
            # The explanation that people can read comes only without --json.
            answer = await self._run(argv, workplace)
            raise BuildError(f"{self._path.name} found no solution:\n{explanation(answer.tail)}")
        fetched = {_identity(entry): entry for entry in actions.get("FETCH", [])}
        linked = actions.get("LINK", [])
        return Solution(tuple(_package({**fetched.get(_identity(e), {}), **e}) for e in linked))

    async def install(self, request: Request, solution: Solution, workplace: Workplace) -> None:
        """Fetch and link the packages of a solution."""
        total = len(solution.packages)
        linked = 0

        def take(line: str) -> None:
            nonlocal linked
            workplace.on_line(line)
            match = _LINKING.match(line)
            if match:
                linked += 1
                workplace.on_progress(linked, total, match[1])

        workplace.on_progress(0, total, "fetching and unpacking")
        with tempfile.TemporaryDirectory(prefix="condainer-") as directory:
            argv = self._create(request)
            if all(package.url for package in solution.packages):
                file = Path(directory, "explicit.txt")
                file.write_text(
                    "\n".join(["@EXPLICIT", *lockfile.explicit_lines(solution.packages), ""])
                )
                argv += ["--file", str(file)]
            else:  # conda names no URL for what it has in its cache
                argv += self._wanted(request)
            answer = await self._run(argv, workplace, on_line=take)
        if answer.returncode != 0:
            raise BuildError(
                f"{self._path.name} failed ({answer.verdict}):\n{explanation(answer.tail)}"
            )

    def _create(self, request: Request) -> list[str]:
        return [str(self._path), "create", "-y", "-p", str(request.prefix)]

    def _wanted(self, request: Request) -> list[str]:
        channels = [part for channel in request.channels for part in ("-c", channel)]
        override = ["--override-channels"] if request.override_channels else []
        return [*channels, *override, *request.specs]

    async def _run(
        self,
        argv: list[str],
        workplace: Workplace,
        *,
        capture: bool = False,
        on_line: Any = None,  # noqa: ANN401
    ) -> process.Finished:
        threads = str(workplace.processors)
        environment = {
            **workplace.environment,
            "MAMBA_EXTRACT_THREADS": threads,
            "CONDA_EXECUTE_THREADS": threads,
            # The staging directory is gone when the build has ended.
            "CONDA_REGISTER_ENVS": "false",
        }
        return await process.run(
            argv,
            on_line=on_line or workplace.on_line,
            env=environment,
            capture=capture,
            pass_fds=workplace.pass_fds,
        )


def explanation(lines: Iterable[str]) -> str:
    """What matters of the last lines of a failed program: errors, without their trimmings."""
    lines = list(lines)
    kept: list[str] = []
    if any(_PREFIX.match(line) for line in lines):
        lines = [line for line in lines if _PREFIX.match(line) or line.startswith(_CONTINUED)]
    for line in lines:
        text = _PREFIX.sub("", line).rstrip()
        if text.strip() and not any(mark in text for mark in _BOILERPLATE) and text not in kept:
            kept.append(text)
    return "\n".join(f"  {line}" for line in kept[-_EXPLANATION_LINES:])


def _actions(stdout: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(stdout)
    except ValueError:
        return None
    if not isinstance(document, dict) or document.get("success") is False:
        return None
    actions = document.get("actions")
    return actions if isinstance(actions, dict) else None


def _identity(entry: dict[str, Any]) -> tuple[str, str, str]:
    build = entry.get("build") or entry.get("build_string") or ""
    return str(entry.get("name")), str(entry.get("version")), str(build)


def _package(entry: dict[str, Any]) -> Package:
    return Package(
        name=str(entry.get("name", "")),
        version=str(entry.get("version", "")),
        build=str(entry.get("build_string") or entry.get("build") or ""),
        build_number=int(entry.get("build_number") or 0),
        channel=str(entry.get("channel") or ""),
        subdir=str(entry.get("subdir") or entry.get("platform") or ""),
        url=str(entry.get("url") or ""),
        md5=str(entry.get("md5") or ""),
        sha256=str(entry.get("sha256") or ""),
        size=int(entry.get("size") or 0),
    )
