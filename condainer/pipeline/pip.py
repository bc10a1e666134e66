"""What pip adds to an installed environment, and what it has added.

pip runs from the environment itself, as conda runs it: first the `pip:` list of environment.yml
in the directory of that file, then requirements.txt.
"""

from __future__ import annotations

import email.parser
import re
import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from condainer import files
from condainer.errors import BuildError
from condainer.pipeline import installers
from condainer.pipeline.lockfile import PipPackage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from condainer.pipeline.installers import Workplace

_LAST_LINES = 8
_PIP_VERSION = "import pip; print(pip.__version__)"
_REPORT_SINCE = (22, 2)
_NUMBER = re.compile("[0-9]{1,9}")
_NAMES_A_FILE = re.compile(
    r"(?P<option>-[rcf]|--requirement|--constraint|--find-links)(\s+|\s*=\s*|(?<=-[rcf]))"
    r"(?P<quote>[\"']?)(?P<file>[^\"'\s].*?)(?P=quote)\s*"
)


async def install(
    prefix: Path,
    requirements: Path,
    *,
    origin: str,
    cwd: Path,
    locked: bool,
    workplace: Workplace,
) -> list[PipPackage] | None:
    """Install what a requirements file asks for.

    Args:
        prefix: the environment.
        requirements: the file.
        origin: what people call it.
        cwd: the directory that relative paths in the file count from.
        locked: the file lists every package, so look at no dependencies.
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
            *(str(python), "-m", "pip", "install", "--no-input", "--no-compile"),
            *("--disable-pip-version-check", "--no-warn-script-location"),
            *("--progress-bar", "off", "--upgrade"),
            *(["--no-deps"] if locked else []),
        ]
        if await _version(python, workplace) >= _REPORT_SINCE:
            argv += ["--report", str(report)]
        answer = await workplace.run(
            [*argv, "-r", str(requirements)],
            cwd=cwd,
        )
        if answer.returncode != 0:
            last = "\n".join(f"  {line}" for line in _matter(answer.tail))
            raise BuildError(f"pip failed ({answer.verdict}) for {origin}:\n{last}")
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
    owned = {name for record in installers.read_records(prefix) for name in record.files}
    return sorted(
        _name_and_version(path, prefix)
        for directory in (prefix / "lib").glob("python*/site-packages")
        if not directory.parent.is_symlink()  # conda-forge has python3.1 for those from 3.10 on
        for pattern in ("*.dist-info/METADATA", "*.egg-info/PKG-INFO")
        for path in directory.glob(pattern)
        if str(path.relative_to(prefix)) not in owned
    )


def _name_and_version(path: Path, prefix: Path) -> tuple[str, str]:
    try:
        text = files.read(path, within=prefix).decode(errors="replace")
    except OSError as error:
        raise BuildError(f"cannot read {path}: {error.strerror}") from error
    about = email.parser.HeaderParser().parsestr(text)
    return str(about["Name"]), str(about["Version"])


def write_requirements(lines: Sequence[str], base: Path, directory: Path) -> Path:
    """Write lines for pip to a file in a directory, for `-r`.

    Args:
        lines: as they stand in environment.yml.
        base: what relative paths count from. pip takes those of other files that a file names
            from that file's own directory, so they become absolute.
        directory: where to write.
    """
    path = directory / "requirements.txt"
    text = "".join(f"{_absolute(line, base)}\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    return path


def _absolute(line: str, base: Path) -> str:
    match = _NAMES_A_FILE.fullmatch(re.sub(r"\s#.*", "", line))
    if match is None or re.match(r"[a-z+]+:", match["file"]):
        return line
    return f"{match['option']} {shlex.quote(str(base / match['file']))}"


async def _version(python: Path, workplace: Workplace) -> tuple[int, ...]:
    text = await _ask(python, _PIP_VERSION, workplace)
    return tuple(int(part) for part in text.split(".")[:2] if _NUMBER.fullmatch(part))


async def _ask(python: Path, code: str, workplace: Workplace) -> str:
    """What a few lines of Python print in the environment."""
    answer = await workplace.run(
        [str(python), "-I", "-c", code],
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
        url = str(origin.get("url", ""))
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
