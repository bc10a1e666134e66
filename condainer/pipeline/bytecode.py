"""Compiles what has no up-to-date `.pyc`, on all processors.

An image is read-only, so what is not compiled now is compiled again by every program that starts.
The environment's own Python does the work, since each version writes its own format
(https://docs.python.org/3/reference/import.html#cached-bytecode-invalidation).
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from condainer import process
from condainer.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from condainer.pipeline.installers import Workplace

_ABOUT = (
    "import sys, importlib.util as u; print(sys.version_info[0], sys.version_info[1], "
    "sys.implementation.cache_tag, u.MAGIC_NUMBER.hex())"
)
# Not with py_compile: on a full file system it cuts a `.pyc` off and says nothing.
_WORKER = """\
import errno, importlib.util, marshal, os, struct, sys
def write(name):
    status = os.stat(name)
    with open(name, "rb") as file:
        code = compile(file.read(), name, "exec", dont_inherit=True)
    numbers = (0, int(status.st_mtime) & 0xFFFFFFFF, status.st_size & 0xFFFFFFFF)
    cached = importlib.util.cache_from_source(name)
    os.makedirs(os.path.dirname(cached), exist_ok=True)
    with open(cached + ".new", "wb") as file:
        file.write(importlib.util.MAGIC_NUMBER + struct.pack("<III", *numbers))
        file.write(marshal.dumps(code))
    os.replace(cached + ".new", cached)
for name in sys.stdin.buffer.read().split(b"\\0"):
    name = name.decode("utf-8", "surrogateescape")
    try:
        write(name)
    except Exception as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            sys.exit(str(error))
        reason = " ".join([type(error).__name__ + ":", *str(error).split()])
        print("not compiled:", ascii(name), reason.encode("ascii", "replace").decode())
    else:
        print("+")
"""
_DONE = "+"
_SINCE = (3, 7)
_OLDEST = "Python older than 3.7 is left to compile for itself"
_HEADER = struct.Struct("<4sIII")
_REPORT_EVERY = 50


@dataclass(frozen=True)
class Interpreter:
    """The environment's Python.

    Attributes:
        path: where it is.
        version: major and minor.
        cache_tag: as in `x.cpython-312.pyc`.
        magic: the first four bytes of its `.pyc` files.
    """

    path: Path
    version: tuple[int, int]
    cache_tag: str
    magic: bytes


async def find_interpreter(prefix: Path, workplace: Workplace) -> Interpreter | None:
    """The environment's Python, or None where it has none.

    Raises:
        BuildError: where there is one that does not run.
    """
    path = prefix / "bin" / "python"
    if not path.exists():
        return None
    answer = await process.run(
        [str(path), "-I", "-S", "-c", _ABOUT],
        on_line=workplace.on_line,
        env=workplace.environment,
        capture=True,
        pass_fds=workplace.pass_fds,
    )
    words = answer.stdout.decode("ascii", "replace").split()
    if answer.returncode != 0 or len(words) != 4:  # noqa: PLR2004  (what _ABOUT prints)
        last = answer.tail[-1] if answer.tail else answer.verdict
        raise BuildError(f"the environment's Python does not run: {last}")
    return Interpreter(path, (int(words[0]), int(words[1])), words[2], bytes.fromhex(words[3]))


def uncompiled(prefix: Path, interpreter: Interpreter) -> list[Path]:
    """The sources of the environment's modules that have no up-to-date `.pyc`, largest first."""
    top = prefix / "lib" / f"python{interpreter.version[0]}.{interpreter.version[1]}"
    found = [
        (entry.stat().st_size, Path(entry.path))
        for entry in _sources(top)
        if not _is_up_to_date(entry, interpreter)
    ]
    return [path for _, path in sorted(found, key=lambda item: (-item[0], item[1]))]


async def compile_all(
    interpreter: Interpreter, sources: Sequence[Path], workplace: Workplace
) -> int:
    """Compile sources with as many processes as the workplace has processors.

    A source that cannot be compiled (a template, a test for syntax errors) is named in the log
    and left as it is.

    Returns:
        how many were compiled.
    """
    if interpreter.version < _SINCE:
        workplace.on_line(_OLDEST)
        return 0
    compiled = seen = 0

    def take(line: str) -> None:
        nonlocal compiled, seen
        seen += 1
        if line == _DONE:
            compiled += 1
        else:
            workplace.on_line(line)
        if seen % _REPORT_EVERY == 0:
            workplace.on_progress(seen, len(sources), "")

    async with process.task_group() as group:
        for index in range(workplace.processors):
            share = sources[index :: workplace.processors]
            if share:
                group.start_soon(_compile, interpreter, share, take, workplace)
    return compiled


async def _compile(
    interpreter: Interpreter, sources: Sequence[Path], take: object, workplace: Workplace
) -> None:
    answer = await process.run(
        [str(interpreter.path), "-I", "-S", "-W", "ignore", "-c", _WORKER],
        on_line=take,  # type: ignore[arg-type]
        env=workplace.environment,
        stdin=b"\0".join(os.fsencode(path) for path in sources),
        pass_fds=workplace.pass_fds,
    )
    if answer.returncode != 0:
        last = answer.tail[-1] if answer.tail else "it printed nothing"
        raise BuildError(f"compiling failed ({answer.verdict}): {last}")


def _sources(directory: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            if entry.name != "__pycache__":
                yield from _sources(Path(entry.path))
        elif entry.name.endswith(".py") and entry.is_file(follow_symlinks=False):
            yield entry


def _is_up_to_date(entry: os.DirEntry[str], interpreter: Interpreter) -> bool:
    """Whether Python would take the `.pyc` of a source as it is."""
    directory, name = os.path.split(entry.path)
    cached = f"{directory}/__pycache__/{name[:-3]}.{interpreter.cache_tag}.pyc"
    try:
        with open(cached, "rb", buffering=0) as file:  # noqa: PTH123  (thousands of them)
            header = file.read(_HEADER.size)
        magic, flags, mtime, size = _HEADER.unpack(header)
    except (OSError, struct.error):
        return False
    if magic != interpreter.magic:
        return False
    status = entry.stat()
    by_hash = bool(flags)
    return by_hash or (
        mtime == int(status.st_mtime) & 0xFFFFFFFF and size == status.st_size & 0xFFFFFFFF
    )
