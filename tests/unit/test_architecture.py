"""Holds the house to its plan: who may import whom, and who may start programs."""

from __future__ import annotations

import ast
import importlib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import condainer
from condainer import cli

PACKAGE = Path(condainer.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
TOP_OF_THE_HOUSE = {"condainer.cli", "condainer.commands.prereq", "condainer.__main__"}


def imports(path: Path) -> set[str]:
    """What a module imports while it runs, as dotted names; for type checking does not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in _running(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _running(node: ast.AST) -> list[ast.AST]:
    found = [node]
    for child in ast.iter_child_nodes(node):
        guarded = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
        if not guarded:
            found += _running(child)
    return found


def names(path: Path) -> set[str]:
    """The attributes a module uses, as `module.name`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }


def within(module: str, *rooms: str) -> bool:
    return any(module == room or module.startswith(f"{room}.") for room in rooms)


def importers(*rooms: str) -> set[str]:
    return {
        module
        for module, path in MODULES.items()
        if any(within(name, *rooms) for name in imports(path))
    }


def inside(room: str) -> set[str]:
    return {module for module in MODULES if within(module, room)}


def rooms_of(place: str) -> set[str]:
    """The rooms that a room or a module imports from."""
    own = {name for module in inside(place) for name in imports(MODULES[module])}
    return {name.split(".")[1] for name in own if within(name, "condainer") and "." in name}


def module_of(name: str) -> str | None:
    """The module of the house that a dotted name is, or is in; None if it is of another house."""
    while name:
        found = next((m for m in (name, f"{name}.__init__") if m in MODULES), None)
        if found:
            return found
        name = name.rpartition(".")[0]
    return None


def test_the_reading_of_imports_sees_something() -> None:
    assert module_of("condainer.errors.BuildError") == "condainer.errors"
    assert module_of("condainer.pipeline.errors") == "condainer.pipeline.__init__"
    assert module_of("pathlib.Path") is None
    assert "condainer.cli" in MODULES
    assert "condainer.running.execute.become" not in imports(MODULES["condainer.start"])
    assert "condainer.running.execute" in imports(MODULES["condainer.start"])
    assert importers("yaml") >= {"condainer.project.yamlfile"}


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports inside functions count as well: they put a circle off, and do not take it away."""
    graph = {m: {module_of(name) for name in imports(path)} - {m} for m, path in MODULES.items()}
    circle = None
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle = " → ".join(map(str, error.args[1]))
    assert circle is None


def test_mounting_and_pipeline_meet_only_in_the_image() -> None:
    assert not {m for m in importers("condainer.pipeline") if within(m, "condainer.mounting")}
    assert not {m for m in importers("condainer.mounting") if within(m, "condainer.pipeline")}


def test_only_process_starts_programs() -> None:
    assert importers("subprocess") == {"condainer.system.process"}
    assert importers("multiprocessing", "pty", "concurrent.futures.process") == set()
    starters = {
        "anyio.open_process",
        "anyio.run_process",
        *(f"os.{name}" for name in ("system", "popen", "posix_spawn", "posix_spawnp", "spawnv")),
        *(f"os.{name}" for name in ("fork", "forkpty", "execv", "execve", "execvp", "execvpe")),
        *(f"asyncio.create_subprocess_{kind}" for kind in ("exec", "shell")),
    }
    used = {module: names(path) & starters for module, path in MODULES.items()}
    assert {module: found for module, found in used.items() if found} == {
        "condainer.system.process": {"anyio.open_process"},
        "condainer.running.execute": {"os.execve"},
        "condainer.mounting.keeper": {"os.fork"},
        "condainer.mounting.asking": {"os.fork"},  # it may never come to an end
        "condainer.system.impersonation": {"os.fork"},  # a user is a process's own
        "condainer.mounting.namespace": {"os.fork"},  # a namespace is a process's own
        # A program of its own, which is to start fast and may import nothing of the rest.
        "condainer.fuse.__main__": {"os.fork"},
        "condainer.fuse.attach": {"os.posix_spawn"},
    }


def test_nobody_imports_tests_or_benchmarks() -> None:
    assert importers("tests", "benchmarks") == set()


def test_nobody_imports_the_command_line() -> None:
    assert importers("condainer.cli") == {"condainer.start"}
    assert importers("condainer.start") == {"condainer.__main__"}


def test_the_reader_of_squashfs_imports_nothing_of_the_rest() -> None:
    assert rooms_of("condainer.squashfs") == {"squashfs"}


def test_the_file_system_knows_the_reader_and_what_is_read_first() -> None:
    assert rooms_of("condainer.fuse") == {"fuse", "squashfs", "startup"}
    used = {name for module in inside("condainer.fuse") for name in imports(MODULES[module])}
    assert {name for name in used if within(name, "condainer.startup")} == {
        "condainer.startup.note",
        "condainer.startup.record.Recorder",
    }


def test_nobody_imports_the_file_system_that_mounts() -> None:
    assert {m for m in importers("condainer.fuse") if not within(m, "condainer.fuse")} == set()


def test_errors_import_nothing_of_the_house() -> None:
    assert not {name for name in imports(MODULES["condainer.errors"]) if within(name, "condainer")}


@pytest.mark.parametrize(
    ("room", "allowed"),
    [
        ("condainer.units", set()),
        ("condainer.system", {"errors", "units"}),
        ("condainer.project", {"errors", "units", "system", "squashfs"}),
        ("condainer.startup", {"errors", "system", "project", "squashfs"}),
        ("condainer.mounting", {"errors", "units", "system", "project", "running", "squashfs"}),
        ("condainer.running", {"errors", "system", "project", "mounting"}),
        (
            "condainer.pipeline",
            {"errors", "units", "system", "project", "running", "startup", "squashfs"},
        ),
        ("condainer.commands.progress", {"pipeline", "units"}),
    ],
)
def test_a_room_imports_only_what_is_below_it(room: str, allowed: set[str]) -> None:
    assert rooms_of(room) - {room.split(".")[1]} <= allowed


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("condainer.project.config", {"errors", "system.files", "project"}),
        ("condainer.project.environment", {"errors", "system.files", "project.yamlfile"}),
        ("condainer.project.places", set()),
        ("condainer.project.values", set()),
        ("condainer.project.yamlfile", {"errors"}),
        ("condainer.running.activation", {"errors", "system.files", "project", "running"}),
        ("condainer.running.shell", {"system.files", "running.variables"}),
        ("condainer.running.sourcing", {"errors", "system.process"}),
        ("condainer.running.variables", set()),
        ("condainer.system.notes", set()),
        (
            "condainer.system.process",
            {"errors", "system.groups", "system.signals", "system.streams"},
        ),
        ("condainer.system.groups", {"system.processtable"}),
        ("condainer.system.processtable", set()),
        ("condainer.system.signals", {"errors"}),
        ("condainer.system.streams", set()),
        ("condainer.system.trust", {"errors"}),
    ],
)
def test_a_module_imports_only_what_is_below_it(module: str, allowed: set[str]) -> None:
    below = {f"condainer.{name}" for name in allowed}
    own = {name for name in imports(MODULES[module]) if within(name, "condainer")}
    assert {name for name in own if not within(name, *below)} == set()


def test_progress_knows_only_the_events_of_the_pipeline() -> None:
    found = {name for name in imports(MODULES["condainer.commands.progress"]) if "pipeline" in name}
    assert found
    assert all(within(name, "condainer.pipeline.events") for name in found)


def test_the_command_line_imports_commands_only_when_they_run() -> None:
    own = {name for name in imports(MODULES["condainer.cli"]) if within(name, "condainer.commands")}
    assert own == {"condainer.commands.console"}


def test_each_command_is_a_module_of_its_name() -> None:
    for name in cli.COMMANDS:
        module = importlib.import_module(f"condainer.commands.{name}")
        assert module.__doc__
        assert module.__doc__.startswith(f"`{name}`: ")
        assert f"condainer {name}" in module.EXAMPLES
        assert callable(module.run)
        assert callable(module.add_arguments)


def test_only_the_command_line_and_progress_write_to_the_user() -> None:
    """Where standard output and error are written to, or anything is printed."""
    writers = {
        module
        for module, path in MODULES.items()
        if {"sys.stdout", "sys.stderr"} & names(path) or "print" in _called(path)
    }
    programs = {
        *("condainer.fuse.__main__", "condainer.fuse.portable"),
        *(f"condainer.squashfs.{name}" for name in ("program", "unpack")),
        *(f"condainer.startup.{name}" for name in ("locate", "record")),
    }
    own = {f"condainer.commands.{name}" for name in ("console", "progress")}
    assert writers <= {"condainer.cli", *own, *programs}
    assert own <= writers


def _called(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }


def test_every_module_says_what_it_is_for() -> None:
    without = [
        name
        for name, path in MODULES.items()
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert without == []
