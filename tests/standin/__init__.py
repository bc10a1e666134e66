"""A stand-in for micromamba 2.8.1 and conda 26.7 that can be had without a conda channel.

It prints what the released versions were seen to print, exits as they do, and installs for real,
with py-rattler. `write_program` makes the executable; `command` is what the executable runs, as
micromamba or, where that is its name, as conda. Where its package cache has packages is another
matter of the version: the variable STANDIN_LAYOUT, see `packages.place`. STANDIN_PAUSE has conda
take so many seconds more for its package cache.
"""

from __future__ import annotations

import sys
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[2]
_LONGEST_SHEBANG = 127  # the limit of Linux before 5.1

_PROGRAM = f"""\
import sys

sys.path.insert(0, {str(_CHECKOUT)!r})

from tests.standin.command import run

run(sys.argv[0].rpartition("/")[2], sys.argv[1:])
"""


def write_program(
    directory: Path, name: str = "micromamba", *, interpreter: str = sys.executable
) -> Path:
    """Write the executable.

    Args:
        directory: Where it goes; made if need be.
        name: What it is called, and so whose ways it has.
        interpreter: The Python that runs it, with py-rattler.
    """
    directory.mkdir(parents=True, exist_ok=True)
    executable = directory / name
    executable.write_text(f"{_shebang(interpreter)}\n{_PROGRAM}")
    executable.chmod(0o755)
    return executable


def _shebang(interpreter: str) -> str:
    """Write a first line that starts an interpreter, wherever that is.

    The kernel splits a shebang at spaces and cuts a long one off. Then a shell starts the
    interpreter, in a line that is a string to Python.
    """
    line = f"#!{interpreter}"
    if len(line) <= _LONGEST_SHEBANG and not set(line) & set(" \t"):
        return line
    quoted = "'" + interpreter.replace("'", "'\\''") + "'"
    return f"#!/bin/sh\n'''exec' {quoted} \"$0\" \"$@\"\n' '''"
