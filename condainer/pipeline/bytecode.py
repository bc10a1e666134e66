"""Compiles all Python modules that have no up-to-date `.pyc`, on all processors.

An image is read-only, so every program that starts would compile the others again. The
environment's own Python does it, since each version has its own format:
https://docs.python.org/3/reference/import.html#cached-bytecode-invalidation
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from condainer.errors import BuildError
from condainer.pipeline import tree
from condainer.system import files, process

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from condainer.pipeline.workplace import Workplace

# The working directory must not be on sys.path; an older Python has no option for that.
_ABOUT = """\
import sys
sys.path = [path for path in sys.path if path]
if sys.version_info < (3, 7):
    sys.exit(99)
import importlib.util, sysconfig
print(sys.implementation.cache_tag)
print(importlib.util.MAGIC_NUMBER.hex())
print(sysconfig.get_path("stdlib"))
"""
_TOO_OLD = 99
# Not with py_compile: on a full file system it writes half a `.pyc` and reports no error. Flag 1
# means that the `.pyc` holds a hash of its source, and that Python does not compare it. A source in
# an image never changes, and so the `.pyc` does not depend on the time of its source.
_WORKER = """\
import errno, importlib.util, marshal, os, struct, sys
def write(name):
    with open(name, "rb") as file:
        source = file.read()
    code = compile(source, name, "exec", dont_inherit=True)
    cached = importlib.util.cache_from_source(name)
    above, last = os.path.split(cached)
    try:
        os.mkdir(above)
    except FileExistsError:  # by another of these programs, at this very moment perhaps
        pass
    directory = os.open(above, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        new = last + ".new"
        try:
            os.unlink(new, dir_fd=directory)
        except FileNotFoundError:
            pass
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with open(os.open(new, flags, 0o644, dir_fd=directory), "wb") as file:
            file.write(importlib.util.MAGIC_NUMBER + struct.pack("<I", 1))
            file.write(importlib.util.source_hash(source))
            file.write(marshal.dumps(code))
        os.replace(new, last, src_dir_fd=directory, dst_dir_fd=directory)
    finally:
        os.close(directory)
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
_OURS = struct.pack("<I", 1)
"""The flags of those; packages hardly ever have them."""
_DONE = "+"
_HEADER = struct.Struct("<4sIII")
_REPORT_EVERY = 50
_LARGEST = 16 << 20
"""Bytes of a source: to compile a larger one takes gigabytes, if it is a source at all."""


@dataclass(frozen=True)
class Interpreter:
    """The environment's Python.

    Attributes:
        path: of the executable.
        library: the directory with its modules, site-packages included.
        cache_tag: as in `x.cpython-312.pyc`.
        magic: the first four bytes of its `.pyc` files.
    """

    path: Path
    library: Path
    cache_tag: str
    magic: bytes


async def find_interpreter(prefix: Path, workplace: Workplace) -> Interpreter | None:
    """Find the environment's Python, if it is newer than 3.6; for older ones nothing is compiled.

    Args:
        prefix: the environment.
        workplace: where it runs.

    Returns:
        The interpreter; None if there is none.

    Raises:
        BuildError: If it does not run, or has its modules elsewhere.
    """
    path = prefix / "bin" / "python"
    if not path.exists() or files.leads_out(path, within=prefix):
        return None
    answer = await workplace.run([str(path), "-B", "-E", "-s", "-S", "-c", _ABOUT], capture=True)
    if answer.returncode == _TOO_OLD:
        return None
    lines = answer.stdout.decode("utf-8", "replace").splitlines()
    if answer.returncode != 0 or len(lines) != 3:  # noqa: PLR2004  (what _ABOUT prints)
        last = answer.tail[-1] if answer.tail else answer.verdict
        raise BuildError(f"the environment's Python does not run: {last}")
    if files.leads_out(lines[2], within=prefix):
        raise BuildError(
            f"the environment's Python has its modules outside of the environment: {lines[2]}",
            "leave out the package that has put a link there",
        )
    return Interpreter(path, Path(lines[2]), lines[0], bytes.fromhex(lines[1]))


def uncompiled(interpreter: Interpreter, latest: int) -> list[Path]:
    """List the sources that have no up-to-date `.pyc`, largest first.

    Args:
        interpreter: of the environment.
        latest: in seconds since 1970; the image records no later times of sources.
    """
    if not interpreter.library.is_dir():
        return []
    found = [
        (entry.stat().st_size, Path(entry.path))
        for entry in tree.walk(interpreter.library, leave_out="__pycache__")
        if entry.name.endswith(".py") and entry.is_file(follow_symlinks=False)
        if not _is_up_to_date(entry, interpreter, latest)
    ]
    found = [(size, path) for size, path in found if size <= _LARGEST]
    return [path for _, path in sorted(found, key=lambda item: (-item[0], item[1]))]


async def compile_all(
    interpreter: Interpreter, sources: Sequence[Path], workplace: Workplace
) -> int:
    """Compile sources with as many processes as the workplace has processors.

    A source that cannot be compiled (a template, a test for syntax errors) is named in the log and
    left as it is.

    Args:
        interpreter: of the environment.
        sources: what to compile.
        workplace: where the interpreter runs.

    Returns:
        How many were compiled.

    Raises:
        BuildError: If a process fails.
    """
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
    interpreter: Interpreter,
    sources: Sequence[Path],
    take: Callable[[str], None],
    workplace: Workplace,
) -> None:
    answer = await workplace.run(
        [str(interpreter.path), "-B", "-I", "-S", "-W", "ignore", "-c", _WORKER],
        on_line=take,
        stdin=b"\0".join(os.fsencode(path) for path in sources),
    )
    if answer.returncode != 0:
        last = answer.tail[-1] if answer.tail else "it printed nothing"
        raise BuildError(f"compiling failed ({answer.verdict}): {last}")


def stays(cached: str, latest: int) -> bool:
    """Whether a `.pyc` is a package's own and, as far as is known, will not be compiled again.

    Args:
        cached: its path.
        latest: as for `uncompiled`.
    """
    directory, name = os.path.split(cached)
    source = f"{os.path.dirname(directory)}/{name.rsplit('.', 2)[0]}.py"  # noqa: PTH120
    header = _header(cached)
    try:
        return header[4:8] != _OURS and _matches(header, os.lstat(source), latest)
    except FileNotFoundError:
        return True  # there is no source to compile


def _is_up_to_date(entry: os.DirEntry[str], interpreter: Interpreter, latest: int) -> bool:
    """Whether Python would take the `.pyc` of a source as it is."""
    directory, name = os.path.split(entry.path)
    header = _header(f"{directory}/__pycache__/{name[:-3]}.{interpreter.cache_tag}.pyc")
    return header[:4] == interpreter.magic and _matches(header, entry.stat(), latest)


def _header(cached: str) -> bytes:
    """The first bytes of a `.pyc`; empty if it cannot be read."""
    try:
        # There are thousands, and one may be a pipe that nobody writes to.
        above, name = os.path.split(cached)
        directory = os.open(above, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
            descriptor = os.open(name, flags, dir_fd=directory)
        finally:
            os.close(directory)
        try:
            return os.read(descriptor, _HEADER.size)
        finally:
            os.close(descriptor)
    except OSError:
        return b""


def _matches(header: bytes, source: os.stat_result, latest: int) -> bool:
    """Whether a `.pyc` belongs to a source as it is."""
    if len(header) < _HEADER.size:
        return False
    _, flags, mtime, size = _HEADER.unpack(header)
    if flags:  # it holds a hash of its source, not a time
        return True
    is_of_it = mtime == int(source.st_mtime) & 0xFFFFFFFF and size == source.st_size & 0xFFFFFFFF
    return is_of_it and source.st_mtime < latest + 1
