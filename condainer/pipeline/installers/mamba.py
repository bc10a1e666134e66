"""Runs micromamba, mamba or conda as a program.

A dry run tells the packages. Then they are installed: from the specs, or with --locked from an
@EXPLICIT file. The pipeline runs their post-link scripts. These programs write nothing to a pipe
while they fetch, so progress comes from the lines that they write while they link.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from condainer.errors import BuildError, ToolError
from condainer.pipeline import tree
from condainer.pipeline.installers import (
    answers,
    checking,
    complaints,
    failures,
    linkscripts,
    ready,
    secrets,
    sharing,
    urlspecs,
)
from condainer.pipeline.installers.interface import Request, Solution
from condainer.pipeline.packages import Package, merged, read_records
from condainer.system import files, process, tools

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterator,
        Callable,
        Container,
        Iterable,
        Iterator,
        Mapping,
        Sequence,
    )

    from condainer.pipeline.workplace import Workplace

_LINKING = re.compile(r"Linking (\S+)")
_UNSOLVED = re.compile(r"Could not solve for|Unsatisfiable|PackagesNotFound|ResolvePackageNotFound")
_UNREADABLE = re.compile(r"Download error|Subdir \S+ not loaded|CondaHTTPError|InvalidChannel")
_TAKES_EMPTY = (2, 2)
"""The first version of libmamba that creates an environment in an empty directory."""


class Mamba:
    """An executable of the mamba family.

    Args:
        path: of the executable, which must be called micromamba, mamba or conda.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version = ""
        self._is_conda = path.name == "conda"

    @property
    def vouches_for_scripts(self) -> bool:
        """Whether it fails if a script does: conda then undoes everything, the others go on."""
        return self._is_conda

    @property
    def description(self) -> str:
        """Name and version."""
        if not self._version:
            answer = tools.version_of(self._path)
            self._version = answer.split()[-1] if answer else "of unknown version"
        return f"{self._path.name} {self._version}"

    def check(self, request: Request) -> None:
        """Check that this executable can do what is asked.

        Args:
            request: what to install.

        Raises:
            ToolError: If it cannot.
        """
        if self._is_conda:
            urlspecs.check(request)
            return
        for channel in (*request.sources, *(p.url for p in request.locked)):
            if "%20" in channel or " " in channel:
                raise ToolError(
                    f"{self._path.name} cannot read a channel whose path has a space: {channel}",
                    "move the channel, or use '--installer rattler'",
                )

    async def solve(self, request: Request, workplace: Workplace) -> Solution:
        """Ask for the packages in a dry run.

        Args:
            request: what to install.
            workplace: where the executable runs.

        Raises:
            BuildError: If there is no solution.
        """
        if request.locked:
            return Solution(request.locked, cache=request.package_cache)
        with self._wanted(request, workplace) as wanted:
            argv = [*self._create(request), "--dry-run", *wanted.words]
            async with self._alone(workplace):
                answer = await self._run(
                    [*argv, "--json"], workplace, workplace.on_line, wanted.variables, capture=True
                )
            if answer.returncode != 0 or not answers.is_solved(answer.stdout):
                raise await self._unsolved(request, argv, wanted.variables, workplace)
        packages, fetched = answers.packages(answer.stdout, self._path.name)
        packages = await anyio.to_thread.run_sync(_completed, packages)
        to_fetch = [package for package in packages if package.stem in fetched]
        return Solution(
            packages,
            to_fetch=sum(package.size for package in to_fetch),
            cache=request.package_cache,
            records=frozenset(package.stem for package in to_fetch),
        )

    async def _unsolved(
        self, request: Request, argv: list[str], variables: dict[str, str], workplace: Workplace
    ) -> BuildError:
        """Run it again without --json, for an explanation that people can read."""
        lines: list[str] = []

        def take(line: str) -> None:
            workplace.on_line(line)
            lines.append(line)

        answer = await self._run(argv, workplace, take, variables)
        why = complaints.explanation(lines)
        channels = request.channels
        if _UNSOLVED.search(why):
            return failures.unsolved(self._path.name, why, channels)
        if _UNREADABLE.search(why):
            return failures.unreadable(why, channels)
        return BuildError(f"{self._path.name} failed ({answer.verdict}):\n{why}")

    async def install(
        self, request: Request, solution: Solution, workplace: Workplace
    ) -> frozenset[str]:
        """Fetch and link the packages of a solution.

        Args:
            request: what to install.
            solution: what `solve` returned.
            workplace: where the executable runs.

        Returns:
            The names of the packages of which it has run a script.

        Raises:
            BuildError: If the executable or a script fails, or a package is damaged.
        """
        prefix, environment = request.prefix, workplace.environment
        to_fetch = solution.records if isinstance(solution.records, frozenset) else None
        with (
            tempfile.TemporaryDirectory(dir=workplace.temporary) as directory,
            self._wanted(request, workplace, solution.packages) as wanted,
            sharing.unregistered(prefix, environment),
        ):
            door = linkscripts.Doorkeeper(Path(directory))
            variables = {**wanted.variables, "PATH": door.path(environment.get("PATH", ""))}
            caches = ready.caches({**environment, **variables}, self._path)
            async with self._alone(workplace):
                watch = ready.CacheWatch(
                    caches, prefix, solution.packages, to_fetch, workplace.on_ready
                )
                kept = await anyio.to_thread.run_sync(watch.kept)
                sound = await checking.mend(kept, workplace, is_locked=bool(request.locked))
                if request.offline and not self._is_conda:
                    _check_kept(solution.packages, kept, sound, caches[0])
                argv = [*self._fill(request), *wanted.words]
                await self._link(argv, solution, prefix, watch, workplace, variables)
            if failure := door.failure():
                raise BuildError(failure, "the log has the script's output")
            checked = {(p.sha256, place) for p in kept for place in kept[p] if place in sound}
            left = _unchecked(prefix, solution.packages, watch, checked)
            await checking.check(left, workplace, is_locked=bool(request.locked))
            await anyio.to_thread.run_sync(_identify, prefix, solution.packages, watch)
            return door.ran | (linkscripts.scripted(prefix, solution.packages) - door.left)

    async def _link(
        self,
        argv: list[str],
        solution: Solution,
        prefix: Path,
        watch: ready.CacheWatch,
        workplace: Workplace,
        variables: dict[str, str],
    ) -> None:
        """Have the executable link all packages, and watch its caches meanwhile.

        Raises:
            BuildError: If it does not.
        """
        try:
            async with process.task_group() as group:
                group.start_soon(watch.run)
                lines = await self._run_linking(argv, len(solution.packages), workplace, variables)
                group.cancel_scope.cancel()
            workplace.check()
            self._check_linked(solution, prefix, lines)
            await anyio.to_thread.run_sync(partial(watch.look, is_over=True))
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(watch.close)

    async def _run_linking(
        self, argv: list[str], total: int, workplace: Workplace, variables: dict[str, str]
    ) -> list[str]:
        """Run the executable, and return the lines that it prints.

        Raises:
            BuildError: If it fails.
        """
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
        answer = await self._run(argv, workplace, take, variables)
        if answer.returncode != 0:
            raise BuildError(
                f"{self._path.name} failed ({answer.verdict}):\n{complaints.explanation(lines)}"
            )
        return lines

    def _check_linked(self, solution: Solution, prefix: Path, lines: list[str]) -> None:
        """Check that all packages are there: conda may give up, and exit with 0 all the same.

        Raises:
            BuildError: If one is not; the message has what the executable has printed.
        """
        there = {record.package.stem for record in read_records(prefix)}
        missing = [package.stem for package in solution.packages if package.stem not in there]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise BuildError(
                f"{self._path.name} reported no error, but has not installed {missing[0]}{more}:\n"
                f"{complaints.explanation(lines)}",
                "build again",
            )

    @contextlib.asynccontextmanager
    async def _alone(self, workplace: Workplace) -> AsyncIterator[None]:
        """Wait for other condas; micromamba and mamba wait for each other themselves."""
        if not self._is_conda:
            yield
            return
        environment = workplace.environment

        def tell(text: str) -> None:
            workplace.on_progress(0, None, text)

        caches = ready.caches(environment, self._path)
        if environment.get("CONDA_PKGS_DIRS"):
            with contextlib.suppress(OSError):  # conda says what is wrong with it
                caches[0].mkdir(parents=True, exist_ok=True)
        async with sharing.alone(caches, environment, tell):
            yield

    def _create(self, request: Request) -> list[str]:
        return [str(self._path), "create", *self._options(request)]

    def _fill(self, request: Request) -> list[str]:
        """The command that installs into an empty directory.

        libmamba 2.2 and later create an environment in one. Older ones can only `install`, into an
        environment that exists already, even if it is empty. A mamba before 2 is like conda here.
        """
        version = self.description.rpartition(" ")[2]
        numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
        is_libmamba = self._path.name == "micromamba" or numbers >= (2,)
        if not numbers or numbers >= _TAKES_EMPTY or not is_libmamba:
            return self._create(request)
        history = request.prefix / "conda-meta/history"
        history.parent.mkdir()
        history.touch()
        return [str(self._path), "install", *self._options(request)]

    def _options(self, request: Request) -> list[str]:
        offline = ["--offline"] if request.offline else []
        return ["-y", *offline, "-p", str(request.prefix)]

    @contextlib.contextmanager
    def _wanted(
        self, request: Request, workplace: Workplace, solved: Sequence[Package] = ()
    ) -> Iterator[secrets.Wanted]:
        """How the program is told what to install: the lock, or specs and channels.

        With a lock, no channel is read. Without one, no URLs are given, since with them some
        versions damage their package cache; but micromamba writes stars in place of a token when
        it fetches what it has solved, so with a token it is given URLs.

        Args:
            request: what to install.
            workplace: has the variables of the program.
            solved: the packages, if they are known.
        """
        environment = workplace.environment
        with tempfile.TemporaryDirectory(dir=workplace.temporary) as name:
            directory = Path(name)
            specs = [
                urlspecs.without_url(spec) if self._is_conda else spec for spec in request.specs
            ]
            # Configured aliases and mirrors still count; conda refuses the option without channels.
            only = ["--override-channels"] if request.channels else []
            has_secrets = secrets.are_in([*request.sources, *specs])
            hidden = solved if has_secrets and not self._is_conda else ()
            exact = request.locked or hidden
            if exact:
                wanted = secrets.for_lock(exact, [*request.sources, *specs], directory)
            elif has_secrets and self._is_conda:
                wanted = secrets.for_conda(request.channels, specs, directory, environment)
            elif has_secrets:
                wanted = secrets.for_mamba(request.channels, specs, directory)
            else:
                channels = [word for channel in request.channels for word in ("-c", channel)]
                wanted = secrets.Wanted([*channels, *specs], {})
            words = wanted.words if exact else [*only, *wanted.words]
            own = self._private_cache(environment) if has_secrets else {}
            yield secrets.Wanted(words, {**wanted.variables, **own})

    def _private_cache(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Variables for a private package cache; packages in other caches are found as well."""
        caches = ready.caches(environment, self._path)
        is_named = bool(environment.get("CONDA_PKGS_DIRS"))
        own = secrets.private_directory(caches[0] if is_named else sharing.own_cache(environment))
        return {"CONDA_PKGS_DIRS": ",".join(map(str, [own, *filter(Path.is_dir, caches)]))}

    async def _run(
        self,
        argv: list[str],
        workplace: Workplace,
        on_line: Callable[[str], None],
        variables: Mapping[str, str],
        *,
        capture: bool = False,
    ) -> process.Finished:
        threads = str(workplace.processors)
        environment = {
            **workplace.environment,
            "MAMBA_EXTRACT_THREADS": threads,
            "CONDA_EXECUTE_THREADS": threads,
            # The staging directory does not exist after the build.
            "CONDA_REGISTER_ENVS": "false",
            **variables,
        }
        try:
            return await workplace.run(
                argv, on_line=on_line, environment=environment, capture=capture
            )
        finally:
            # libmamba lets its group write to the directory of channels' lists, each time anew.
            for cache in ready.caches(environment, self._path):
                tree.close_own(cache / "cache")


def _check_kept(
    packages: Iterable[Package],
    kept: Mapping[Package, Sequence[Path]],
    sound: frozenset[Path],
    cache: Path,
) -> None:
    """See that all packages are here, since libmamba fetches packages with --offline, too.

    Raises:
        BuildError: names what is missing.
    """
    here = {package.stem for package, places in kept.items() if sound.intersection(places)}
    missing = [
        package.url
        for package in packages
        if package.stem not in here and checking.local(package.url) is None
    ]
    if missing:
        raise failures.unfetched(missing, cache)


def _recorded(prefix: Path, packages: Iterable[Package]) -> list[tuple[Package, Package]]:
    """Packages, each also as the lock file will list it: conda's dry run shows no checksums."""
    records = {record.package.stem: record.package for record in read_records(prefix)}
    return [(package, merged(records[package.stem], package)) for package in packages]


def _unchecked(
    prefix: Path,
    packages: Iterable[Package],
    watch: ready.CacheWatch,
    checked: Container[tuple[str, Path]],
) -> dict[Package, list[Path]]:
    """The packages that have not been compared yet, and where they may be linked from."""
    left = {}
    for package, record in _recorded(prefix, packages):
        places = watch.places(package)
        unchecked = [place for place in places if (record.sha256, place) not in checked]
        if unchecked or not places:
            left[record] = unchecked
    return left


def _identify(prefix: Path, packages: Iterable[Package], watch: ready.CacheWatch) -> None:
    """Record the checksums of archives that no channel lists, since no program has done that."""
    for package, record in _recorded(prefix, packages):
        found = checking.identified(record, watch.places(package))
        path = prefix / "conda-meta" / f"{package.stem}.json"
        if found == record or files.is_absent(path):
            continue
        document = files.read_json(path, within=prefix)
        assert isinstance(document, dict)  # noqa: S101  (`_recorded` has read it)
        document |= {"sha256": found.sha256, "md5": found.md5, "size": found.size}
        files.write(path, json.dumps(document).encode(), within=prefix)


def _completed(packages: Iterable[Package]) -> tuple[Package, ...]:
    return tuple(map(checking.completed, packages))
