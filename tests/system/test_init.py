"""`init`: what it writes, and what it leaves alone."""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING

import pytest
import yaml

from condainer.project import config
from condainer.project.config import Config

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import Workshop


def test_init_writes_both_files(workshop: Workshop) -> None:
    (workshop.directory / "condainer.yml").unlink()
    done = workshop.run("init")
    assert done.stdout == ""
    assert f"wrote {workshop.directory}/condainer.yml" in done.stderr
    found = config.load(workshop.directory)
    assert found == Config(uuid=found.uuid)
    made = uuid.UUID(found.uuid)
    assert (made.version, made.variant) == (4, uuid.RFC_4122)
    document = yaml.safe_load((workshop.directory / "environment.yml").read_text())
    assert document["dependencies"]


def test_init_gives_each_project_a_uuid_of_its_own(workshop: Workshop, tmp_path: Path) -> None:
    for name in ("a", "b"):
        workshop.run("-d", str(tmp_path / name), "init")
    assert config.load(tmp_path / "a").uuid != config.load(tmp_path / "b").uuid


@pytest.mark.parametrize("kind", ["file", "link"])
def test_init_never_overwrites(workshop: Workshop, kind: str) -> None:
    target = workshop.directory / "condainer.yml"
    if kind == "link":
        target.unlink()
        target.symlink_to("nowhere")
    before = target.lstat()
    done = workshop.run("init", status=1)
    assert "is a condainer project already" in done.stderr
    assert target.lstat() == before
    assert not (workshop.directory / "environment.yml").exists()
    assert not (workshop.directory / "nowhere").exists()


@pytest.mark.parametrize("kind", ["file", "link"])
def test_init_leaves_an_environment_alone(workshop: Workshop, kind: str) -> None:
    (workshop.directory / "condainer.yml").unlink()
    there = workshop.directory / "environment.yml"
    if kind == "link":
        there.symlink_to("nowhere")
    else:
        there.write_text("mine")
    before = there.lstat()
    workshop.run("init")
    assert there.lstat() == before
    assert not (workshop.directory / "nowhere").exists()


def test_init_makes_the_directory(workshop: Workshop, tmp_path: Path) -> None:
    workshop.run("-d", str(tmp_path / "a" / "b c"), "init")
    assert (tmp_path / "a" / "b c" / "condainer.yml").exists()


def test_init_dry_run_writes_nothing(workshop: Workshop, tmp_path: Path) -> None:
    done = workshop.run("-n", "-d", str(tmp_path / "new"), "init")
    assert f"would write {tmp_path}/new/condainer.yml" in done.stderr
    assert not (tmp_path / "new").exists()


def test_init_where_nothing_can_be_written(workshop: Workshop) -> None:
    done = workshop.run("-d", "/proc/project", "init", status=1)
    assert done.stderr.startswith("condainer: error: cannot write /proc/project")


@pytest.mark.parametrize(
    "name",
    ["env.yml", "my: env #1.yml", "größe 'x' \"y\".yml", " spaces .yml", "null", "-", "3.10"],
)
def test_init_takes_any_environment(workshop: Workshop, tmp_path: Path, name: str) -> None:
    project = tmp_path / "project"
    project.mkdir()
    for place in (project, tmp_path):
        (place / name).write_text("dependencies: [python]\n")
        done = workshop.run("-d", str(project), "init", "--environment", str(place / name))
        assert "environment.yml" not in done.stderr.splitlines()[0]
        found = config.load(project).environment_yml
        assert found == (name if place == project else str(tmp_path / name))
        assert not (project / "environment.yml").exists()
        (project / "condainer.yml").unlink()


def test_init_with_an_environment_that_is_not_there(workshop: Workshop, tmp_path: Path) -> None:
    project = tmp_path / "project"
    done = workshop.run("-d", str(project), "init", "--environment", "nowhere.yml", status=1)
    assert "there is no nowhere.yml" in done.stderr
    assert not project.exists()


def test_init_with_a_broken_environment(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "env.yml").write_text("dependencies: python\n")
    project = tmp_path / "project"
    path = str(tmp_path / "env.yml")
    done = workshop.run("-d", str(project), "init", "--environment", path, status=1)
    assert f"{path}, line 1: 'dependencies' must be a list" in done.stderr
    assert not project.exists()


def test_init_with_an_environment_whose_name_is_not_utf8(
    workshop: Workshop, tmp_path: Path
) -> None:
    path = tmp_path / os.fsdecode(b"\xff.yml")
    path.write_text("dependencies: [python]\n")
    project = tmp_path / "project"
    done = workshop.run("-d", str(project), "init", "--environment", str(path), status=1)
    assert "a name that is not UTF-8" in done.stderr
    assert not (project / "condainer.yml").exists()


def test_a_working_directory_that_has_gone(workshop: Workshop, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = 'cd "$1" && rmdir "$1" && shift && "$@"'
    done = workshop_shell(workshop, script, str(gone))
    assert "the working directory does not exist any more" in done


def workshop_shell(workshop: Workshop, script: str, *words: str) -> str:
    import subprocess

    from tests.support import CONDAINER

    done = subprocess.run(
        ["sh", "-c", script, "sh", *words, *CONDAINER, "status"],
        env=workshop.variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    return done.stderr
