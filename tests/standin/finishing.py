"""What comes after the files of a package are linked: bytecode, scripts, and the notes of it all.

rattler compiles nothing.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.standin.errors import CondaError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rattler import RepoDataRecord


def compile_modules(record: RepoDataRecord, prefix: Path) -> None:
    """Compile the modules of a `noarch: python` package, and note the results as its files."""
    python = prefix / "bin/python"
    if not record.noarch.python or not python.exists():
        return
    note = prefix / "conda-meta" / f"{_distribution(record)}.json"
    document = json.loads(note.read_text())
    sources = [path for path in document["files"] if path.endswith(".py")]
    subprocess.run(
        [python, "-Wi", "-m", "compileall", "-q", "-l", "-i", "-"],
        input="".join(f"{path}\n" for path in sources),
        stdout=subprocess.DEVNULL,
        cwd=prefix,
        text=True,
        check=False,  # a module that cannot be compiled is not an error
    )
    _note_compiled(sources, document, prefix)
    note.write_text(json.dumps(document, indent=2))


def run_script(record: RepoDataRecord, prefix: Path) -> None:
    """Run a package's post-link script if it has one; like libmamba, whatever its status is.

    libmamba takes the first bash on its own PATH, and gives it a file that it writes.
    """
    name = record.name.normalized
    script = prefix / f"bin/.{name}-post-link.sh"
    if not script.exists():
        return
    words = f"warning  libmamba Executing post-link script for package '{name}'.\n"
    sys.stderr.write(words)
    sys.stderr.flush()
    bash = shutil.which("bash") or shutil.which("sh") or "sh"
    with tempfile.NamedTemporaryFile("w", prefix="mamba") as file:
        file.write(f"export MAMBA_EXE='{sys.argv[0]}'\n\n. {script}")
        file.flush()
        subprocess.run(
            [bash, file.name], env=_environment(record, prefix), cwd=script.parent, check=False
        )


def run_script_as_conda(record: RepoDataRecord, prefix: Path) -> None:
    """Run a package's post-link script if it has one.

    Raises:
        CondaError: if it fails.
    """
    name = record.name.normalized
    script = prefix / f"bin/.{name}-post-link.sh"
    if not script.exists():
        return
    environment = _environment(record, prefix)
    bash = shutil.which("bash") or shutil.which("sh") or "sh"
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(f". {script}\n_CONDA_EXE_RC=$?\nexit $_CONDA_EXE_RC\n")
        file.flush()
        done = subprocess.run(
            [bash, file.name],
            env=environment,
            cwd=script.parent,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        package = f"{record.channel.rpartition('/')[0]}::{_distribution(record)}"
        raise CondaError(
            f"LinkError: post-link script failed for package {package}\n"
            f"location of failed script: {script}\n==> script messages <==\n<None>\n"
            f"==> script output <==\nstdout: {done.stdout}\nstderr: {done.stderr}\n"
            f"return code: {done.returncode}\n\n\n()"
        )


def _environment(record: RepoDataRecord, prefix: Path) -> dict[str, str]:
    """What the scripts of packages run with."""
    return os.environ | {
        "PREFIX": str(prefix),
        "PKG_NAME": record.name.normalized,
        "PKG_VERSION": str(record.version),
        "PKG_BUILDNUM": str(record.build_number),
        "PATH": os.pathsep.join([f"{prefix}/bin", os.environ.get("PATH", os.defpath)]),
    }


def write_history(
    prefix: Path, words: Sequence[str], specs: Sequence[str], records: Sequence[RepoDataRecord]
) -> None:
    """Note in the prefix what was done to it."""
    now = dt.datetime.now(tz=dt.timezone.utc)
    lines = [f"==> {now:%Y-%m-%d %H:%M:%S} <==", f"# cmd: {' '.join(words)}"]
    lines += ["# conda version: 3.8.0"]
    lines += [f"+{record.channel}/{record.subdir}::{_distribution(record)}" for record in records]
    lines += [f"# update specs: {json.dumps(list(specs))}"]
    (prefix / "conda-meta/history").write_text("\n".join(lines) + "\n")


def register(prefix: Path) -> None:
    """Leave traces in the home directory: a list of environments, and a directory of its own."""
    (Path.home() / ".mamba").mkdir(parents=True, exist_ok=True)
    file = Path.home() / ".conda/environments.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    known = file.read_text().splitlines() if file.exists() else []
    if str(prefix) not in known:
        with file.open("a") as list_of_all:  # in the last line, if that does not end
            list_of_all.write(f"{prefix}\n")


def _note_compiled(sources: Sequence[str], document: dict[str, Any], prefix: Path) -> None:
    """Add compiled modules to the files of a package."""
    for source in sources:
        module = Path(source)
        for compiled in sorted(prefix.glob(f"{module.parent}/__pycache__/{module.stem}.*.pyc")):
            path = str(compiled.relative_to(prefix))
            document["files"].append(path)
            document["paths_data"]["paths"].append({"_path": path, "path_type": "pyc_file"})


def _distribution(record: RepoDataRecord) -> str:
    return f"{record.name.normalized}-{record.version}-{record.build}"
