"""Which modules are compiled, and what becomes of those that cannot be."""

from __future__ import annotations

import importlib.util
import os
import py_compile
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from condainer.errors import BuildError
from condainer.pipeline import bytecode, space
from condainer.pipeline.bytecode import Interpreter
from condainer.pipeline.workplace import Workplace
from tests import building

if TYPE_CHECKING:
    from collections.abc import Callable


LATER = 1 << 62
"""A build that begins later than any file here has changed."""


def here(library: Path) -> Interpreter:
    """The running interpreter, with its modules in a directory."""
    return Interpreter(
        Path(sys.executable),
        library,
        str(sys.implementation.cache_tag),
        importlib.util.MAGIC_NUMBER,
    )


def workplace(lines: list[str], processors: int = 2) -> Workplace:
    return Workplace(
        processors=processors,
        on_line=lines.append,
        on_progress=lambda *_, **__: None,
        environment=dict(os.environ),
    )


def compile_all(sources: list[Path], processors: int = 2) -> tuple[int, list[str]]:
    lines: list[str] = []
    place = workplace(lines, processors)
    compiled = anyio.run(bytecode.compile_all, here(Path()), sources, place)
    return compiled, [line for line in lines if not line.startswith("$ ")]


@pytest.fixture
def module(tmp_path: Path) -> Path:
    """A module in a prefix, not compiled."""
    path = tmp_path / "lib/python/module.py"
    path.parent.mkdir(parents=True)
    path.write_text("VALUE = 1\n")
    return path


def age(path: Path) -> None:
    """A module that is a second newer than its bytecode."""
    py_compile.compile(str(path), invalidation_mode=py_compile.PycInvalidationMode.TIMESTAMP)
    moment = path.stat().st_mtime + 1
    os.utime(path, (moment, moment))


def grow(path: Path) -> None:
    """A module that has another size than its bytecode says, and the same time."""
    py_compile.compile(str(path), invalidation_mode=py_compile.PycInvalidationMode.TIMESTAMP)
    moment = path.stat().st_mtime
    path.write_text("VALUE = 10\n")
    os.utime(path, (moment, moment))


def spoil(path: Path) -> None:
    """Bytecode of another version of Python."""
    cached = Path(py_compile.compile(str(path)) or "")
    cached.write_bytes(b"\0\0\0\0" + cached.read_bytes()[4:])


def empty(path: Path) -> None:
    Path(py_compile.compile(str(path)) or "").write_bytes(b"")


def pipe(path: Path) -> None:
    cached = Path(importlib.util.cache_from_source(str(path)))
    cached.parent.mkdir()
    os.mkfifo(cached)


@pytest.mark.parametrize("prepare", [lambda _: None, age, grow, spoil, empty, pipe])
def test_what_python_would_not_take_is_compiled(
    module: Path, prepare: Callable[[Path], None]
) -> None:
    prepare(module)
    assert bytecode.uncompiled(here(module.parent), LATER) == [module]
    assert compile_all([module]) == (1, [])
    assert bytecode.uncompiled(here(module.parent), LATER) == []


@pytest.mark.parametrize("mode", list(py_compile.PycInvalidationMode))
def test_what_python_would_take_is_left_alone(
    module: Path, mode: py_compile.PycInvalidationMode
) -> None:
    py_compile.compile(str(module), invalidation_mode=mode)
    assert bytecode.uncompiled(here(module.parent), LATER) == []


def test_times_that_the_image_will_not_keep_are_not_relied_on(module: Path) -> None:
    time = int(module.stat().st_mtime)
    py_compile.compile(str(module), invalidation_mode=py_compile.PycInvalidationMode.TIMESTAMP)
    assert bytecode.uncompiled(here(module.parent), time) == []
    assert bytecode.uncompiled(here(module.parent), time - 1) == [module]
    assert compile_all([module]) == (1, [])
    assert bytecode.uncompiled(here(module.parent), time - 1) == []


def test_largest_come_first_and_links_are_not_followed(module: Path) -> None:
    small = module.with_name("a.py")
    small.touch()
    (module.parent / "package").mkdir()
    large = module.parent / "package/__init__.py"
    large.write_text("VALUE = 'long'\n" * 10)
    module.with_name("link.py").symlink_to(module)
    (module.parent / "again").symlink_to("package")
    assert bytecode.uncompiled(here(module.parent), LATER) == [large, module, small]


def test_module_in_deep_directories_is_found(tmp_path: Path) -> None:
    with building.deep_directories(tmp_path, 1500):
        module = tmp_path.joinpath(*["d"] * 1500, "module.py")
        module.write_text("VALUE = 1\n")
        assert bytecode.uncompiled(here(tmp_path), LATER) == [module]


def test_environment_without_modules_has_nothing_to_compile(tmp_path: Path) -> None:
    assert bytecode.uncompiled(here(tmp_path / "none"), LATER) == []


def test_any_file_name_is_compiled(module: Path) -> None:
    odd = [module.with_name(f"{name}.py") for name in ("größe", "new\nline", "sp ace", "q'\"")]
    undecodable = Path(os.fsdecode(os.fsencode(module.parent) + b"/\xff.py"))
    for path in (*odd, undecodable):
        path.write_text("VALUE = 1\n")
    sources = bytecode.uncompiled(here(module.parent), LATER)
    assert set(sources) == {module, undecodable, *odd}
    assert compile_all(sources) == (6, [])
    assert bytecode.uncompiled(here(module.parent), LATER) == []


def test_more_processors_than_modules(module: Path) -> None:
    assert compile_all([module], processors=8) == (1, [])


def test_two_that_need_the_same_directory_do_not_get_in_each_others_way(tmp_path: Path) -> None:
    """Each module of a directory goes to another process."""
    sources = [tmp_path / f"{number:04}" / name for number in range(1000) for name in "ab"]
    for source in sources:
        source.parent.mkdir(exist_ok=True)
        source.write_text("")
    assert compile_all(sources) == (2000, [])


def test_module_that_cannot_be_compiled_is_named_and_left(module: Path) -> None:
    broken = module.with_name("bro ken.py")
    broken.write_text("def (:\n")
    compiled, lines = compile_all([broken, module])
    assert compiled == 1
    assert len(lines) == 1
    assert str(broken) in lines[0]
    assert "SyntaxError" in lines[0]


def test_old_python_compiles_for_itself(tmp_path: Path) -> None:
    """What an interpreter before 3.7 answers."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\nexit 99\n")
    python.chmod(0o755)
    assert anyio.run(bytecode.find_interpreter, tmp_path, workplace([])) is None


def test_full_file_system_is_an_error_and_not_a_module_left_out(tmp_path: Path) -> None:
    with building.mounted_tmpfs(tmp_path / "full", "size=384k") as full:
        source = full / "module.py"
        source.write_text("".join(f"x{i} = [{i}, 'a{i}', {i}.5]\n" for i in range(10_000)))
        with pytest.raises(BuildError) as caught:
            compile_all([source])
        explained = space.explain(caught.value, [space.Destination(full, "compiled modules", 0)])
        assert explained is not None
        assert f"no space left for compiled modules in {full}" in explained.message


def test_python_that_does_not_run_is_an_error(tmp_path: Path) -> None:
    python = tmp_path / "bin/python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\necho cannot run here >&2; exit 1\n")
    python.chmod(0o755)
    with pytest.raises(BuildError, match="Python does not run: cannot run here"):
        anyio.run(bytecode.find_interpreter, tmp_path, workplace([]))


def test_environment_without_python_has_no_interpreter(tmp_path: Path) -> None:
    assert anyio.run(bytecode.find_interpreter, tmp_path, workplace([])) is None
