"""Keeps the mamba family from running the packages' link scripts unseen.

micromamba goes on whatever a script's exit status is. All of them run scripts with the first `bash`
on PATH, or `sh`. So a program of ours comes first there. It skips post-link scripts, which the
pipeline runs after all packages are linked, and notes the exit status of other scripts. If an
installer finds another shell all the same, a script runs twice, which is better than unseen.
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
"""Installers run a script as an argument of `bash`, or by a line of a small file that is one."""
_LINE = r"^[[:space:]]*(\.|source|exec|bash|sh)[[:space:]].*/bin/\.[^/]+-(pre|post)-(un)?link\.sh"

_SCRIPT = re.compile(r"/bin/\.(?P<package>[^/]+)-(?P<kind>(?:pre|post)-(?:un)?link)\.sh")


class Doorkeeper:
    """The program that comes before the real `bash` on PATH.

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
        """Make a PATH that leads to it first.

        Args:
            path: the PATH so far; empty means the default.
        """
        return f"{self._place}:{path or os.defpath}"

    @property
    def left(self) -> frozenset[str]:
        """The packages whose post-link scripts were skipped."""
        return frozenset(package for _, package, _ in self._noted(self._left))

    @property
    def ran(self) -> frozenset[str]:
        """The packages of which another script was run."""
        return frozenset(package for _, package, _ in self._noted(self._ran))

    def failure(self) -> str:
        """Say which script failed first; empty if none did."""
        for status, package, kind in self._noted(self._ran):
            if status != "0":
                return f"the {kind} script of {package} failed (exit status {status})"
        return ""

    def _noted(self, file: Path) -> list[tuple[str, str, str]]:
        """First word, package and kind of script in each line of a note."""
        if not file.exists():
            return []
        found = ((line, _SCRIPT.search(line)) for line in file.read_text().splitlines())
        return [(line.split()[0], m["package"], m["kind"]) for line, m in found if m]


def scripted(prefix: Path, packages: Iterable[Package]) -> frozenset[str]:
    """Find the names of the packages that have a post-link script.

    Args:
        prefix: the environment.
        packages: that are linked there.
    """
    names = (package.name for package in packages)
    return frozenset(n for n in names if os.path.lexists(f"{prefix}/bin/.{n}-post-link.sh"))
