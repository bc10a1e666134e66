"""What a clone installs is pinned, and what is installed starts as it should."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import REPOSITORY

PINS = sorted((REPOSITORY / "requirements").glob("*.txt"))
_NAME = re.compile(r"^([A-Za-z0-9._-]+)", re.MULTILINE)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("file", PINS, ids=lambda file: file.stem)
def test_each_requirement_has_one_version_and_its_hashes(file: Path) -> None:
    lines = file.read_text().replace("\\\n", " ").splitlines()
    entries = [line for line in lines if not line.startswith("#")]
    assert entries
    assert all("==" in entry and "--hash=sha256:" in entry for entry in entries)


def test_all_that_the_project_needs_is_pinned() -> None:
    project = (REPOSITORY / "pyproject.toml").read_text()
    lists = re.findall(
        r"^(?:dependencies|bench|dev) = \[\n(.*?)^\]", project, re.MULTILINE | re.DOTALL
    )
    wanted = {
        normal(name)
        for text in lists
        for name in re.findall(r'^ +"([A-Za-z0-9._-]+)', text, re.MULTILINE)
    }
    pinned = {
        normal(name) for name in _NAME.findall((REPOSITORY / "requirements/dev.txt").read_text())
    }
    assert len(lists) == 3
    assert wanted - {"condainer"} <= pinned


@pytest.mark.parametrize("name", ["condainer", "cnd"])
def test_the_installed_program_imports_nothing_before_condainer(name: str) -> None:
    program = Path(sys.prefix, "bin", name)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", program, "exec"],
        capture_output=True,
        text=True,
        check=False,
    )
    names = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "|" in line]
    after_site = names[names.index("site") + 1 :]
    assert after_site.index("condainer") == 0
    assert "exec needs a command" in done.stderr


@pytest.mark.parametrize("path", ["", ":", "{here}", "{here}/missing:.", "nothing:{here}/"])
def test_the_installed_program_imports_nothing_of_the_working_directory(
    tmp_path: Path, path: str
) -> None:
    for name in ("fcntl", "argparse", "condainer", "_posixsubprocess", "yaml"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('it was imported')\n")
    variables = {**os.environ, "PYTHONPATH": path.format(here=tmp_path)}
    for command in (("exec", "true"), ("status",), ("init", "--dry-run")):
        done = subprocess.run(
            [Path(sys.prefix, "bin", "condainer"), *command],
            cwd=tmp_path,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "it was imported" not in done.stderr
        assert done.returncode in {0, 1, 125}
