"""What fetches and links packages: one small interface, and the choice between those there are.

`mamba` drives an executable of the mamba family, `rattler` the engine that comes as a dependency.
Both install at the very prefix the image will be mounted at.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

from condainer.errors import BuildError, ToolError
from condainer.pipeline import credentials
from condainer.pipeline.installers import channels
from condainer.system import files, process, tools

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from anyio import Event

    from condainer.project.config import Config
    from condainer.system.process import Finished

RATTLER = "rattler"
_FIRST = "the first installer there is"

_NAME_OF_SPEC = re.compile(r"\s*(?:.*::)?([^\s=<>!~\[]*).*", re.DOTALL)
_LONG_WORD = 300
"""Of longer arguments, such as a few lines of Python, the log shows the beginning."""


@dataclass(frozen=True)
class Package:
    """One package of a solution or of a prefix; empty text and 0 where nobody said.

    `channel` and `url` are without credentials.
    """

    name: str
    version: str
    build: str
    build_number: int
    channel: str
    subdir: str
    url: str
    md5: str
    sha256: str
    size: int

    @property
    def stem(self) -> str:
        """name-version-build, as installers print it."""
        return f"{self.name}-{self.version}-{self.build}"


def check_names(packages: Iterable[Package]) -> None:
    """See that each package has its own place in a package cache, and none elsewhere.

    Raises:
        BuildError: names one whose name, version or build, as its channel lists it, leads away.
    """
    for package in packages:
        if "/" in package.stem or not package.stem.isprintable():
            raise BuildError(
                f"the channel {package.channel or package.url} lists a package whose name, version "
                f"or build is no part of a file's name: {package.stem!a}",
                "leave that package out, and report it to its channel",
            )


def package_from_json(entry: Mapping[str, Any]) -> Package:
    """A package as conda-meta and the mamba family's --json describe it.

    Raises:
        ValueError: where it is something else.
    """

    def text(*keys: str) -> str:
        value = next((entry[key] for key in keys if entry.get(key)), "")
        if not isinstance(value, str):
            raise ValueError(f"'{keys[0]}' is not text")  # noqa: TRY004
        return value

    def number(key: str) -> int:
        value = entry.get(key) or 0
        if not isinstance(value, int):
            raise ValueError(f"'{key}' is not a whole number")  # noqa: TRY004
        return value

    package = Package(
        name=text("name"),
        version=text("version"),
        build=text("build_string", "build"),
        build_number=number("build_number"),
        channel=credentials.without(text("channel")).rstrip("/"),
        subdir=text("subdir", "platform"),
        url=credentials.without(text("url")).replace(" ", "%20"),
        md5=text("md5"),
        sha256=text("sha256"),
        size=number("size"),
    )
    if not (package.name and package.version and package.build):
        raise ValueError("name, version or build is missing")
    return package


def merged(record: Package, plan: Package) -> Package:
    """A package by its record, with what that leaves out taken from the plan."""
    fields = asdict(record)
    return Package(**{key: value or getattr(plan, key) for key, value in fields.items()})


@dataclass(frozen=True)
class Record:
    """What conda-meta says of an installed package.

    Attributes:
        package: which.
        files: the paths it has below the prefix.
        needs: the names of the packages it depends on, be they installed or not.
    """

    package: Package
    files: tuple[str, ...]
    needs: tuple[str, ...]


def read_records(prefix: Path) -> list[Record]:
    """The packages of conda in a prefix, by the names of their records.

    Raises:
        BuildError: names a record that is none.
    """
    return [_read_record(path, prefix) for path in notes(prefix) if path.suffix == ".json"]


def notes(prefix: Path) -> list[Path]:
    """What installers have noted in a prefix: a record of each package, and their history.

    Raises:
        BuildError: where they have noted it elsewhere.
    """
    directory = prefix / "conda-meta"
    if directory.is_symlink():
        raise BuildError(f"{directory} is a symbolic link", "leave out the package that made it")
    return [directory / name for name in files.names(directory, within=prefix)]


def _read_record(path: Path, prefix: Path) -> Record:
    try:
        return _record(files.read_json(path, within=prefix))
    except OSError as error:
        raise BuildError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise BuildError(
            f"{path} is not the record of a package: {error}",
            "leave out the package that put it there",
        ) from error


def _record(entry: object) -> Record:
    if not isinstance(entry, dict):
        raise ValueError("it holds no JSON object")  # noqa: TRY004
    owned = _texts(entry, "files", "paths")
    needs = [_NAME_OF_SPEC.sub(r"\1", spec) for spec in _texts(entry, "depends", "specs")]
    return Record(package_from_json(entry), owned, tuple(needs))


def _texts(entry: dict[str, Any], key: str, what: str) -> tuple[str, ...]:
    listed = entry.get(key, [])
    if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
        raise ValueError(f"'{key}' is not a list of {what}")
    return tuple(listed)


@dataclass(frozen=True)
class Request:
    """What is to be installed, and how.

    Attributes:
        specs: what environment.yml asks for; not used where `locked` is given.
        channels: names and URLs in order of priority, and no others than these; empty means
            those that the installer is configured for.
        locked: the exact packages; empty means solve.
        prefix: where to install.
        package_cache: where packages are kept; None means the installer's own place.
        channel_priority: one of `config.CHANNEL_PRIORITIES`; empty means as conda is configured.
        offline: whether nothing may be asked for over the network.
    """

    specs: tuple[str, ...]
    channels: tuple[str, ...]
    locked: tuple[Package, ...]
    prefix: Path
    package_cache: Path | None
    channel_priority: str = ""
    offline: bool = False

    @property
    def sources(self) -> tuple[str, ...]:
        """All channels that are named, those that specs name as well."""
        return (*self.channels, *filter(None, (channels.of_spec(spec)[0] for spec in self.specs)))


@dataclass(frozen=True)
class Solution:
    """The packages to install, each after those it depends on.

    Attributes:
        packages: what is to be installed.
        to_fetch: bytes of those that are not in the package cache yet; 0 where nobody knows.
        cache: where packages are unpacked and linked from; None where nobody knows.
        records: the installer's own form of the same, handed back to its `install`.
    """

    packages: tuple[Package, ...]
    to_fetch: int = 0
    cache: Path | None = None
    records: object = None


class Final(NamedTuple):
    """A file of a package that will stay as it is, unless something interferes.

    Attributes:
        name: its path below the prefix.
        path: where it is in a package cache.
        sha256: of its content; empty where nobody said.
        is_copied: whether the one in the prefix will be a copy, instead of the same file.
    """

    name: str
    path: str
    sha256: str
    is_copied: bool = False


Listing: TypeAlias = "Callable[[], Iterable[Final]]"
"""Gives the files of a package that are final, where it has such."""

OnReady: TypeAlias = "Callable[[str, Listing], None]"
"""Takes the name of a package whose files are there, and what lists them; from any thread."""


class OnProgress(Protocol):
    """Takes how far a stage is, from any thread."""

    def __call__(
        self, done: int, total: int | None, text: str, *, bytes_done: int = 0, bytes_total: int = 0
    ) -> None:
        """Take it.

        Args:
            done: packages, files or blocks, as the stage counts.
            total: how many there are; None where nobody knows.
            text: what is being done right now, a few words.
            bytes_done: what has been fetched so far.
            bytes_total: what is to be fetched, as far as that is known.
        """


@dataclass(frozen=True)
class Workplace:
    """What a stage is given to work with.

    Attributes:
        processors: how many it may keep busy.
        on_line: takes each line that a program prints.
        on_progress: takes how far it is.
        environment: the variables programs run with.
        temporary: where temporary files go; None means where all programs put theirs.
        pass_fds: descriptors programs inherit.
        on_ready: is told of packages whose files are there while others are not yet.
        check: called before a program is run; raises an error where nothing may be run any more.
    """

    processors: int
    on_line: Callable[[str], None]
    on_progress: OnProgress
    environment: Mapping[str, str]
    temporary: Path | None = None
    pass_fds: Sequence[int] = ()
    on_ready: OnReady = lambda _name, _listing: None
    check: Callable[[], None] = lambda: None

    async def run(  # noqa: PLR0913  (as of `process.run`)
        self,
        argv: Sequence[str],
        *,
        on_line: Callable[[str], None] | None = None,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: bytes | int | None = None,
        capture: bool = False,
        terminal: bool = False,
        aside: Event | None = None,
    ) -> Finished:
        """Run a program here; its command and its output go to the log.

        The arguments and errors are those of `process.run`.
        """
        self.check()
        words = [word if len(word) < _LONG_WORD else f"{word[:_LONG_WORD]}…" for word in argv]
        self.on_line("$ " + shlex.join(words).replace("\n", " "))
        finished = await process.run(
            argv,
            on_line=on_line or self.on_line,
            cwd=cwd,
            env=self.environment if environment is None else environment,
            stdin=stdin,
            capture=capture,
            terminal=terminal,
            pass_fds=self.pass_fds,
            aside=aside,
        )
        if b"\0" not in finished.stdout:
            for line in finished.stdout.decode("utf-8", "replace").splitlines():
                self.on_line(line)
        return finished


class Installer(Protocol):
    """What the pipeline asks of an installer."""

    @property
    def description(self) -> str:
        """Name and version, for people and for the manifest."""

    @property
    def vouches_for_scripts(self) -> bool:
        """Whether `install` fails where a post-link script that it runs itself does."""

    def check(self, request: Request) -> None:
        """See whether it can do what is asked.

        Raises:
            ToolError: where it cannot.
        """

    async def solve(self, request: Request, workplace: Workplace) -> Solution:
        """Find the packages.

        Raises:
            BuildError: with the installer's own explanation.
        """

    async def install(
        self, request: Request, solution: Solution, workplace: Workplace
    ) -> frozenset[str]:
        """Fetch and link them in the prefix, an empty directory; ended and silent when cancelled.

        What is there has been compared with the checksums that the solution names.

        Returns:
            the names of packages of which it has run a script itself.

        Raises:
            BuildError: with the installer's own explanation.
        """


def choose(
    config: Config,
    asked: str = "",
    *,
    only_looks: bool = False,
    on_note: Callable[[str], None] = lambda _: None,
) -> Installer:
    """The installer to use.

    Args:
        config: its `conda_exe` counts after `asked` and the variable CONDAINER_INSTALLER.
        asked: name or path from the command line.
        only_looks: whether nothing may be run that a project brings along: `conda_exe` then only
            chooses between the usual names on PATH.
        on_note: told in one line where another is taken than the project names.

    Raises:
        ToolError: where one that was asked for is not there.
    """
    from condainer.pipeline.installers import mamba

    own = config.conda_exe
    for name, strict, is_project in (
        (asked, True, False),
        (os.environ.get("CONDAINER_INSTALLER", ""), True, False),
        # Older projects name a 'mamba' that they brought along: no error where there is none.
        (own, "/" in own, own not in tools.MAMBA_FAMILY),
    ):
        if name == RATTLER:
            return _rattler()
        if name:
            path = _executable(name)
            if path is not None and only_looks and is_project:
                on_note(f"conda_exe: '{name}' is run by a build alone; taking {_FIRST}")
                continue
            if path is not None:
                return mamba.Mamba(path)
            if strict:
                raise ToolError(
                    f"the installer '{name}' was not found",
                    f"name one of {', '.join(tools.MAMBA_FAMILY)}, a path to one, or {RATTLER}",
                )
            on_note(f"conda_exe: '{name}' was not found; taking {_FIRST}")
    for name in tools.MAMBA_FAMILY:
        path = tools.which(name)
        if path is not None:
            return mamba.Mamba(path)
    return _rattler()


def _rattler() -> Installer:
    from condainer.pipeline.installers.rattler import Rattler

    return Rattler()


def _executable(name: str) -> Path | None:
    if "/" not in name:
        return tools.which(name)
    path = Path(os.path.expanduser(name)).absolute()  # noqa: PTH111  (there may be no such user)
    return path if os.access(path, os.X_OK) and path.is_file() else None
