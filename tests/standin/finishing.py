"""What comes after the files of a package are linked: bytecode, scripts, and the notes of it all.

rattler compiles nothing.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


def run_post_link_script(record: RepoDataRecord, prefix: Path) -> None:
    """Run a package's post-link script if it has one; like libmamba, whatever its status is."""
    name = record.name.normalized
    script = prefix / f"bin/.{name}-post-link.sh"
    if not script.exists():
        return
    path = os.pathsep.join([f"{prefix}/bin", os.environ.get("PATH", os.defpath)])
    environment = os.environ | {
        "PREFIX": str(prefix),
        "PKG_NAME": name,
        "PKG_VERSION": str(record.version),
        "PKG_BUILDNUM": str(record.build_number),
        "PATH": path,
    }
    subprocess.run(["bash", script], env=environment, cwd=prefix, check=False)


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
        file.write_text("\n".join([*known, str(prefix)]) + "\n")


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
