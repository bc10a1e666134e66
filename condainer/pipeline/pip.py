"""What pip adds to an installed environment, and what it has added.

pip runs from the environment itself, as conda runs it: first the `pip:` list of environment.yml
in the directory of that file, then requirements.txt.
"""

from __future__ import annotations

import ast
import contextlib
import email.parser
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from condainer.errors import BuildError
from condainer.pipeline import credentials, logins, tree
from condainer.pipeline.lockfile import PipPackage
from condainer.pipeline.packages import read_records
from condainer.pipeline.requirements import absolute
from condainer.system import files

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from condainer.pipeline.workplace import Workplace

_LAST_LINES = 8
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
    # pip has what it asked before in its own cache, or fails at once, as nobody listens there.
    # Indexes stay allowed: they may be directories of this machine.
    "PIP_PROXY": "http://127.0.0.1:9",
    "PIP_RETRIES": "0",
    "GIT_ALLOW_PROTOCOL": "file",
}
"""What keeps pip, and git where pip starts it, from asking servers."""
_SETTING = re.compile(r"(global|install)\.(?P<name>[a-z-]+)=(?P<value>.*)")
_NUMBER = re.compile("[0-9]{1,9}")


async def install(
    prefix: Path,
    requirements: Sequence[Path],
    *,
    origin: str,
    cwd: Path,
    locked: bool,
    offline: bool,
    workplace: Workplace,
) -> list[PipPackage] | None:
    """Install what a requirements file asks for.

    Args:
        prefix: the environment.
        requirements: the file; all others only tell passwords for the same places.
        origin: what people call it.
        cwd: the directory that relative paths in the file count from.
        locked: the file lists every package, so look at no dependencies.
        offline: ask for nothing over the network.
        workplace: where pip runs.

    Returns:
        what pip installed, with origin and checksum; None where this pip is too old to tell.

    Raises:
        BuildError: with pip's last lines.
    """
    python = prefix / "bin" / "python"
    with tempfile.TemporaryDirectory(dir=workplace.temporary) as directory:
        report = Path(directory, "report.json")
        argv = [
            *(str(python), "-I", "-m", "pip", "install", "--no-input", "--no-compile"),
            *("--disable-pip-version-check", "--no-warn-script-location"),
            *("--progress-bar", "off", "--upgrade"),
            *(["--no-deps"] if locked else []),
        ]
        await _check_places(prefix, python, workplace)
        version, configured = await _about(python, workplace)
        if version >= _REPORT_SINCE:
            argv += ["--report", str(report)]
        told = {**configured, **workplace.environment}
        file, variables = logins.handed(requirements, told, Path(directory))
        answer = await workplace.run(
            [*argv, "-r", str(file)],
            cwd=cwd,
            environment={
                **workplace.environment,
                **variables,
                # Of what is editable all the same nothing is to be left in the project.
                "PIP_SRC": str(Path(directory, "src")),
                **(_OFFLINE if offline else {}),
            },
        )
        if answer.returncode != 0:
            last = "\n".join(f"  {line}" for line in _matter(answer.tail))
            raise BuildError(
                f"pip failed ({answer.verdict}) for {origin}:\n{last}",
                "with --offline pip has its own cache, and files of this machine"
                if offline
                else "",
            )
        if not report.exists():
            return None
        try:
            return _installed(files.read_json(report))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise BuildError(f"pip does not tell what it has installed: {error!r}") from error


def list_installed(prefix: Path) -> list[tuple[str, str]]:
    """Name and version of the Python packages that no package of conda owns.

    Raises:
        BuildError: names what cannot be read.
    """
    lib = prefix / "lib"
    owned = {name for record in read_records(prefix) for name in record.files}
    return sorted(
        _name_and_version(path, prefix)
        # No link is followed: conda-forge has python3.1 for those from 3.10 on.
        for python in files.names(lib, within=prefix)
        if python.startswith("python")
        for path in _metadata(lib / python / "site-packages", prefix)
        if str(path.relative_to(prefix)) not in owned
    )


def _metadata(directory: Path, prefix: Path) -> Iterator[Path]:
    """The files by which installed packages tell their names."""
    for name in files.names(directory, within=prefix):
        for suffix, file in ((".dist-info", "METADATA"), (".egg-info", "PKG-INFO")):
            inside = directory / name
            if name.endswith(suffix) and file in files.names(inside, within=prefix):
                yield inside / file


async def _check_places(prefix: Path, python: Path, workplace: Workplace) -> None:
    """See that pip writes into the environment, and not through a link to outside of it.

    Raises:
        BuildError: names what leads out.
    """
    if files.leads_out(python, within=prefix):
        raise _leads_out(python)
    answer = await _ask(python, _PLACES, workplace)
    places = [Path(line) for line in answer.splitlines()]
    tops = (prefix / name for name in files.names(prefix, within=prefix))
    for path in (*places, *(top for top in tops if top.is_symlink())):
        if files.leads_out(path, within=prefix):
            raise _leads_out(path)
    for place in {place for place in places if place.is_dir()} - {prefix}:
        for entry in tree.walk(place):
            # pip puts what it installs in the place of a link to a file that is there.
            if entry.is_symlink() and not os.path.isfile(entry.path):  # noqa: PTH113  (thousands)
                path = Path(entry.path)
                if files.leads_out(path, within=prefix):
                    raise _leads_out(path)


def _leads_out(path: Path) -> BuildError:
    return BuildError(
        f"pip would write outside of the environment: {path} leads to {os.path.realpath(path)}",
        "leave out the package that put it there",
    )


def _name_and_version(path: Path, prefix: Path) -> tuple[str, str]:
    try:
        text = files.read(path, within=prefix).decode(errors="replace")
    except OSError as error:
        raise BuildError(f"cannot read {path}: {error.strerror}") from error
    about = email.parser.HeaderParser().parsestr(text)
    return str(about["Name"]), str(about["Version"])


def apart(lines: Iterable[str]) -> list[list[str]]:
    """Lines without and with a checksum of their own: where one has it, pip wants it of all."""
    groups: list[list[str]] = [[], []]
    for line in lines:
        groups[" --hash=" in line].append(line)
    return groups


def write_requirements(lines: Sequence[str], base: Path, directory: Path) -> Path:
    """Write lines for pip to a file in a directory, for `-r`.

    Args:
        lines: as they stand in environment.yml.
        base: what relative paths count from. pip takes those of other files that a file names
            from that file's own directory, so they become absolute.
        directory: where to write.
    """
    descriptor, name = tempfile.mkstemp(prefix="requirements-", suffix=".txt", dir=directory)
    os.close(descriptor)
    path = Path(name)
    text = "".join(f"{absolute(line, base)}\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    return path


async def _about(python: Path, workplace: Workplace) -> tuple[tuple[int, ...], dict[str, str]]:
    """Pip's version, and what its files of configuration say, as variables that say the same."""
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
        raise BuildError(f"the environment's Python cannot be asked: {last}")
    return answer.stdout.decode("utf-8", "replace").strip()


def _matter(tail: Sequence[str]) -> list[str]:
    """The lines of pip's that say what went wrong."""
    errors = [line for line in tail if line.lstrip().startswith(("ERROR", "error"))]
    return (errors or list(tail))[-_LAST_LINES:]


def _installed(report: Any) -> list[PipPackage]:  # noqa: ANN401  (the environment's own pip says it)
    """What was installed, by pip's report: https://pip.pypa.io/en/stable/reference/installation-report/."""
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
