"""The main job: environment.yml becomes an image, and programs run from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import Workshop


def test_build_and_exec(workshop: Workshop, hard_channel: Path) -> None:
    workshop.environment("python", "hard-hello", channel=hard_channel)
    workshop.run("build")
    answer = workshop.run("exec", "--", "python", "-c", "import sys; print(sys.prefix)")
    assert answer.stdout == f"{workshop.prefix}\n"
    assert answer.stderr == ""
    workshop.run("exec", "--", "sh", "-c", "exit 7", status=7)
