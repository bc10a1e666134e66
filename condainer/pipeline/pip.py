"""Runs pip in an installed environment, and finds out what it has added.

As with conda, the environment's own pip runs: first for the `pip:` list of environment.yml, in the
directory of that file, then for requirements.txt.
"""

from __future__ import annotations

import ast
import contextlib
import email.parser
import itertools
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from condainer.errors import BuildError
from condainer.pipeline import credentials, logins, tree
from condainer.pipeline.lockfile import PipPackage
from condainer.pipeline.packages import read_records
from condainer.pipeline.requirements import absolute
from condainer.pipeline.workplace import last_lines
from condainer.system import files

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from condainer.pipeline.workplace import Workplace
    from condainer.system.process import Finished

_ABOUT_PIP = """\
import pip, runpy, sys
print(pip.__version__, flush=True)
sys.argv[1:] = ["config", "list", "--disable-pip-version-check"]
try:
    runpy.run_module("pip", run_name="__main__")
except SystemExit:
    pass
"""
# Where packages may put something: https://docs.python.org/3/library/sysconfig.html
_PLACES = """\
import sysconfig
for name in ("data", "purelib", "platlib", "scripts", "include"):
    print(sysconfig.get_path(name))
"""
_REPORT_SINCE = (22, 2)
_OFFLINE = {
    # Nobody listens at this address, so pip takes answers from its own cache, or fails at once.
    # Indexes stay allowed: they may be directories of this machine.
    "PIP_PROXY": "http://127.0.0.1:9",
    "PIP_RETRIES": "0",
    "GIT_ALLOW_PROTOCOL": "file",
}
"""Variables that keep pip, and git if pip starts it, from asking servers."""
_SETTING = re.compile(r"(global|install)\.(?P<name>[a-z-]+)=(?P<value>.*)")
_NUMBER = re.compile("[0-9]{1,9}")


@dataclass(frozen=True)
class Requirements:
    """A requirements file for one run of pip.

    Attributes:
        file: its path.
        base: the directory that relative paths in it count from.
        origin: how messages name it.
    """

    file: Path
    base: Path
    origin: str


async def install(
    prefix: Path,
    requirements: Requirements,
    logins_from: Sequence[Path],
    *,
    locked: bool,
    offline: bool,
    workplace: Workplace,
) -> list[PipPackage] | None:
    """Install what a requirements file asks for.

    Args:
        prefix: the environment.
        requirements: what to install.
        logins_from: other requirements files; only their passwords are used, for the same hosts.
        locked: whether the file lists every package, so that no dependencies are looked up.
        offline: whether nothing may be asked for over the network.
        workplace: where pip runs.

    Returns:
        What pip has installed, with origin and checksum; None if this pip is too old to report it.

    Raises:
        BuildError: If pip fails; the message has its last lines.
    """
    python = prefix / "bin" / "python"
    with tempfile.TemporaryDirectory(dir=workplace.temporary) as directory:
        report = Path(directory, "report.json")
        await _check_places(prefix, python, workplace)
        version, configured = await _about(python, workplace)
        reported = ["--report", str(report)] if version >= _REPORT_SINCE else []
        told = {**configured, **workplace.environment}
        listed = [requirements.file, *logins_from]
        file, variables = logins.handed(listed, told, Path(directory))
        answer = await workplace.run(
            [*_command(python, locked=locked), *reported, "-r", str(file)],
            cwd=requirements.base,
            environment=_environment(workplace.environment, variables, directory, offline=offline),
        )
        if answer.returncode != 0:
            raise _failed(answer, requirements.origin, offline=offline)
        return _reported(report)


def _environment(
    given: Mapping[str, str], own: Mapping[str, str], directory: str, *, offline: bool
) -> dict[str, str]:
    # What is editable all the same must leave nothing in the project: PIP_SRC.
    own = {**own, "PIP_SRC": str(Path(directory, "src"))}
    return {**given, **own, **(_OFFLINE if offline else {})}


def _command(python: Path, *, locked: bool) -> list[str]:
    return [
        *(str(python), "-I", "-m", "pip", "install", "--no-input", "--no-compile"),
        *("--disable-pip-version-check", "--no-warn-script-location"),
        *("--progress-bar", "off", "--upgrade"),
        *(["--no-deps"] if locked else []),
    ]


def _failed(answer: Finished, origin: str, *, offline: bool) -> BuildError:
    errors = [line for line in answer.tail if line.lstrip().startswith(("ERROR", "error"))]
    last = last_lines(errors or answer.tail)
    hint = "with --offline, pip can use its own cache and files of this machine only"
    return BuildError(
        f"pip failed ({answer.verdict}) for {origin}:\n{last}", hint if offline else ""
    )


def _reported(report: Path) -> list[PipPackage] | None:
    if not report.exists():
        return None
    try:
        return _installed(files.read_json(report))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BuildError(
            f"cannot read what pip has installed from its report: {error!r}"
        ) from error


def list_installed(prefix: Path) -> list[tuple[str, str]]:
    """List name and version of the Python packages that no conda package owns.

    Args:
        prefix: the environment.

    Raises:
        BuildError: If a file about a package cannot be read.
    """
    lib = prefix / "lib"
    owned = {name for record in read_records(prefix) for name in record.files}
    return sorted(
        _name_and_version(path, prefix)
        # No link is followed: conda-forge has a link python3.1 to python3.10 and later ones.
        for python in files.names(lib, within=prefix)
        if python.startswith("python")
        for path in _metadata(lib / python / "site-packages", prefix)
        if str(path.relative_to(prefix)) not in owned
    )


def _metadata(directory: Path, prefix: Path) -> Iterator[Path]:
    """The files in which installed packages have their names."""
    for name in files.names(directory, within=prefix):
        for suffix, file in ((".dist-info", "METADATA"), (".egg-info", "PKG-INFO")):
            inside = directory / name
            if name.endswith(suffix) and file in files.names(inside, within=prefix):
                yield inside / file


async def _check_places(prefix: Path, python: Path, workplace: Workplace) -> None:
    """Check that pip writes into the environment, and not through a link to outside of it.

    Raises:
        BuildError: If a link leads out.
    """
    if files.leads_out(python, within=prefix):
        raise _leads_out(python)
    answer = await _ask(python, _PLACES, workplace)
    places = [Path(line) for line in answer.splitlines()]
    tops = (prefix / name for name in files.names(prefix, within=prefix))
    for path in (*places, *(top for top in tops if top.is_symlink()), *_dangling(prefix, places)):
        if files.leads_out(path, within=prefix):
            raise _leads_out(path)


def _dangling(prefix: Path, places: Iterable[Path]) -> Iterator[Path]:
    """Links in some directories that pip would write through: it replaces only links to files."""
    existing = {place for place in places if place.is_dir()} - {prefix}
    for entry in itertools.chain.from_iterable(map(tree.walk, existing)):
        if entry.is_symlink() and not os.path.isfile(entry.path):  # noqa: PTH113  (thousands)
            yield Path(entry.path)


def _leads_out(path: Path) -> BuildError:
    return BuildError(
        f"pip would write outside of the environment: {path} leads to {os.path.realpath(path)}",
        "leave out the package that has put it there",
    )


def _name_and_version(path: Path, prefix: Path) -> tuple[str, str]:
    try:
        text = files.read(path, within=prefix).decode(errors="replace")
    except OSError as error:
        raise BuildError(f"cannot read {path}: {error.strerror}") from error
    about = email.parser.HeaderParser().parsestr(text)
    return str(about["Name"]), str(about["Version"])


def apart(lines: Iterable[str]) -> list[list[str]]:
    """Separate lines without a checksum from those with one: pip wants it in all lines or in none.

    Args:
        lines: of a requirements file.
    """
    groups: list[list[str]] = [[], []]
    for line in lines:
        groups[" --hash=" in line].append(line)
    return groups


def write_requirements(lines: Sequence[str], base: Path, directory: Path) -> Path:
    """Write lines for pip to a file, for `-r`.

    Args:
        lines: as in environment.yml.
        base: the directory that relative paths count from. Lines that name other files get absolute
            paths, since pip counts from the directory of the new file.
        directory: where to write.
    """
    descriptor, name = tempfile.mkstemp(prefix="requirements-", suffix=".txt", dir=directory)
    os.close(descriptor)
    path = Path(name)
    text = "".join(f"{absolute(line, base)}\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    return path


async def _about(python: Path, workplace: Workplace) -> tuple[tuple[int, ...], dict[str, str]]:
    """Pip's version, and its configuration as the variables that mean the same."""
    first, *lines = (await _ask(python, _ABOUT_PIP, workplace)).splitlines()
    version = tuple(int(part) for part in first.split(".")[:2] if _NUMBER.fullmatch(part))
    configured = {}
    for match in filter(None, map(_SETTING.fullmatch, lines)):
        with contextlib.suppress(ValueError, SyntaxError):
            value = " ".join(str(ast.literal_eval(match["value"])).split())
            configured["PIP_" + match["name"].replace("-", "_").upper()] = value
    return version, configured


async def _ask(python: Path, code: str, workplace: Workplace) -> str:
    """What a few lines of Python print in the environment."""
    answer = await workplace.run(
        [str(python), "-B", "-I", "-c", code],
        capture=True,
    )
    if answer.returncode != 0:
        last = answer.tail[-1] if answer.tail else answer.verdict
        raise BuildError(f"the environment's Python does not run: {last}")
    return answer.stdout.decode("utf-8", "replace").strip()


def _installed(report: Any) -> list[PipPackage]:  # noqa: ANN401  (the environment's own pip says it)
    """The packages in pip's report.

    https://pip.pypa.io/en/stable/reference/installation-report/
    """
    packages = []
    for item in report.get("install", []):
        origin = item.get("download_info", {})
        url = credentials.without(str(origin.get("url", "")))
        control = origin.get("vcs_info")
        if control:
            url = f"{control['vcs']}+{url}@{control['commit_id']}"
        hashes = origin.get("archive_info", {}).get("hashes", {})
        metadata = item.get("metadata", {})
        packages.append(
            PipPackage(
                name=str(metadata.get("name", "")),
                version=str(metadata.get("version", "")),
                url=url,
                sha256=str(hashes.get("sha256", "")),
            )
        )
    return packages
