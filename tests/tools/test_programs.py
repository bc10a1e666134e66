"""The programs that an installed condainer has: they start wherever it is installed."""

from __future__ import annotations

import os
import site
import subprocess
import venv
from typing import TYPE_CHECKING

import pytest

import condainer
from tests import support

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("hatchling")


@pytest.mark.parametrize("name", ["plain", "with a space", "long" * 40])
def test_programs_start_from_whatever_directory_they_are_in(tmp_path: Path, name: str) -> None:
    """What follows `#!` ends at a space, and after 127 characters in older kernels."""
    venv.create(tmp_path / name, symlinks=True)
    programs = tmp_path / name / "bin"
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(site.getsitepackages())}
    subprocess.run(
        [
            *(programs / "python", "-m", "pip", "install", "-q", "--no-index", "--no-deps"),
            *("--no-build-isolation", "--ignore-installed", support.REPOSITORY),
        ],
        env=variables,
        check=True,
    )
    for program in ("condainer", "cnd"):
        (tmp_path / program).symlink_to(programs / program)
        for path in (programs / program, tmp_path / program):
            done = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
            assert done.stdout.split() == ["condainer", condainer.__version__]
    first = (programs / "condainer").read_text().splitlines()[0]
    assert first == (f"#!{programs}/python" if name == "plain" else "#!/bin/sh")
