"""Wheels and source trees for pip, made by hand."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path


def make_wheel(directory: Path, name: str, version: str, *requirements: str) -> Path:
    """A wheel with one module, which knows its version."""
    directory.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    needed = "".join(f"Requires-Dist: {requirement}\n" for requirement in requirements)
    extra = "Provides-Extra: more\n" if any("extra ==" in text for text in requirements) else ""
    files = {
        f"{name}.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        f"{extra}{needed}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name} = {name}:main\n",
    }
    record = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
    wheel = directory / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(path, text)
    return wheel


def make_index(directory: Path) -> Path:
    """A package index as a directory, which pip reads from a file:// URL."""
    for wheel in directory.glob("*.whl"):
        name = wheel.name.partition("-")[0].replace("_", "-")
        (directory / "simple" / name).mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        page = directory / "simple" / name / "index.html"
        before = page.read_text() if page.exists() else ""
        link = f'<a href="{wheel.as_uri()}#sha256={digest}">{wheel.name}</a>\n'
        if link not in before:
            page.write_text(before + link)
    return directory / "simple"


def make_source(directory: Path, name: str) -> Path:
    """A source tree whose build needs nothing but itself."""
    (directory / "build").mkdir(parents=True)
    (directory / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["build"]\n'
    )
    code = Path(__file__).read_text()
    helper = code[code.index("def make_wheel") : code.index("def make_index")]
    (directory / "build/backend.py").write_text(
        "from __future__ import annotations\nimport zipfile\nfrom pathlib import Path\n"
        f"{helper}\n"
        "def build_wheel(directory, settings=None, metadata=None):\n"
        f"    return make_wheel(Path(directory), {name!r}, '1.0').name\n"
    )
    return directory
