"""Keeps the mamba family from running the packages' link scripts unseen.

micromamba goes on whatever a script's exit status is. All of them run scripts with the first `bash`
on PATH, or `sh`: there stands one that leaves a post-link script alone, since the pipeline runs it
when all is linked, and notes how other scripts have ended. Where they find another one all the
same, a script runs twice: better than unseen.
"""

from __future__ import annotations

import os
import re
import shlex
from typing import TYPE_CHECKING

from condainer.system import tools

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from condainer.pipeline.packages import Package

_PROGRAM = """\
#!/bin/sh
for word in "$@"; do
  case "$word" in */bin/.*link.sh) ;; *)
    if [ -f "$word" ]; then word="$word $(head -c 100000 "$word" | grep -a -m 1 -E {line})"; fi
  esac
  case "$word" in
    */bin/.*-post-link.sh*) printf '%s\\n' "$word" >>{left}; exit 0 ;;
    */bin/.*-link.sh* | */bin/.*-unlink.sh*)
      {shell} "$@"
      status=$?
      printf '%s\\n' "$status $word" >>{ran}
      exit $status ;;
  esac
done
exec {shell} "$@"
"""
"""Scripts are arguments themselves, or a line of a small file that is one runs them."""
_LINE = r"^[[:space:]]*(\.|source|exec|bash|sh)[[:space:]].*/bin/\.[^/]+-(pre|post)-(un)?link\.sh"

_SCRIPT = re.compile(r"/bin/\.(?P<package>[^/]+)-(?P<kind>(?:pre|post)-(?:un)?link)\.sh")


class Doorkeeper:
    """The `bash` that stands before the real one.

    Args:
        directory: an empty directory to work in.
    """

    def __init__(self, directory: Path) -> None:
        self._place = directory / "bin"
        self._left, self._ran = directory / "left", directory / "ran"
        self._place.mkdir()
        name = "bash" if tools.which("bash") else "sh"
        program = self._place / name
        program.write_text(
            _PROGRAM.format(
                line=shlex.quote(_LINE),
                left=shlex.quote(str(self._left)),
                ran=shlex.quote(str(self._ran)),
                shell=shlex.quote(str(tools.which(name) or "/bin/sh")),
            )
        )
        program.chmod(0o755)

    def path(self, path: str) -> str:
        """The PATH of a program that is to find it."""
        return f"{self._place}:{path or os.defpath}"

    @property
    def left(self) -> frozenset[str]:
        """The packages whose post-link scripts have not been run."""
        return frozenset(package for _, package, _ in self._noted(self._left))

    @property
    def ran(self) -> frozenset[str]:
        """The packages of which another script has been run."""
        return frozenset(package for _, package, _ in self._noted(self._ran))

    def failure(self) -> str:
        """Which script failed first, in words; empty where none did."""
        for status, package, kind in self._noted(self._ran):
            if status != "0":
                return f"the {kind} script of {package} failed (exit status {status})"
        return ""

    def _noted(self, file: Path) -> list[tuple[str, str, str]]:
        """First word, package and kind of script of each line of a note."""
        if not file.exists():
            return []
        found = ((line, _SCRIPT.search(line)) for line in file.read_text().splitlines())
        return [(line.split()[0], m["package"], m["kind"]) for line, m in found if m]


def scripted(prefix: Path, packages: Iterable[Package]) -> frozenset[str]:
    """The names of the packages that have a post-link script."""
    names = (package.name for package in packages)
    return frozenset(n for n in names if os.path.lexists(f"{prefix}/bin/.{n}-post-link.sh"))
