"""The programs that a wheel brings along: they have to start wherever it is installed."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NAMES = ("condainer", "cnd")
LONGEST = 127
"""Of a first line `#!PROGRAM`, on older kernels."""

START = b"""#!/bin/sh
'''exec' "$(dirname -- "$(readlink -f -- "$0")")/python" "$0" "$@"
' '''
"""


class Programs(BuildHookInterface):  # type: ignore[type-arg]
    """Takes `condainer` and `cnd` into the wheel.

    These are files of our own, not entry points: older installers write programs that import `re`
    first, which is half of what `exec` takes. But what follows `#!` ends at a space for the kernel,
    and pip minds that only in the programs that it writes itself. So where the interpreter's path
    does not fit into a first line, they start a shell, which starts the interpreter beside them.
    Nowhere else: a shell takes time, and drops some variables. pip builds with the interpreter that
    it installs for.
    """

    _temporary: TemporaryDirectory[str] | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Name the programs, and write them anew where that is needed."""
        source = Path(self.root) / "scripts" / "condainer"
        self._temporary = TemporaryDirectory()
        for name in NAMES:
            program = Path(self._temporary.name) / name
            code = source.read_bytes()
            if re.search(r"\s", sys.executable) or len(f"#!{sys.executable}") > LONGEST:
                code = START + code.split(b"\n", 1)[1]
            program.write_bytes(code)
            program.chmod(0o755)
            build_data["shared_scripts"][str(program)] = name

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Remove what was written: the wheel holds it."""
        if self._temporary is not None:
            self._temporary.cleanup()
