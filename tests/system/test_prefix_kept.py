"""The prefix is there from the check to the end of a build, and is the same directory all along."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from condainer.pipeline.installers import linking
from tests import building
from tests.localchannel.package import Package, put

if TYPE_CHECKING:
    from pathlib import Path

    from tests.localchannel.package import Recipe
    from tests.support import Workshop

GONE = "is no longer the directory that this build has made"


def scripted(name: str, script: str, *depends: str) -> Recipe:
    """A package with a post-link script."""

    def recipe(tree: Path) -> Package:
        put(tree, f"bin/.{name}-post-link.sh", f"#!/bin/bash\n{script}\n", 0o755)
        return Package(name=name, version="1.0", depends=depends)

    return recipe


def wrapped(micromamba: Path, directory: Path, script: str) -> Path:
    """The stand-in, with something that another process does before it is started."""
    directory.mkdir()
    program = directory / "micromamba"
    program.write_text(f'#!/bin/bash\n{script}\nexec "{micromamba}" "$@"\n')
    program.chmod(0o755)
    return program


@pytest.fixture
def project(workshop: Workshop, tmp_path: Path) -> Workshop:
    """A project of a package whose script notes what it sees of the prefix."""
    script = f'stat -c "script %a %i" "$PREFIX" >>{tmp_path}/note'
    channel = building.make_channel(tmp_path / "channel", scripted("plain", script))
    workshop.environment("plain", channel=channel)
    return workshop


@pytest.mark.parametrize("version", ["2.8.1", "2.1.0", "1.5.8"])
def test_it_is_there_and_closed_while_packages_are_found_and_installed(
    project: Workshop, tmp_path: Path, micromamba: Path, version: str
) -> None:
    """A libmamba before 2.2 takes no empty directory."""
    look = f'[ "$1" = --version ] || stat -c "$1 %a %i" {project.prefix} >>{tmp_path}/note'
    program = wrapped(micromamba, tmp_path / "bin", look)
    variables = {"STANDIN_VERSION": version}
    project.run("build", "-q", "--installer", str(program), variables=variables)
    seen = [line.split() for line in (tmp_path / "note").read_text().splitlines()]
    fills = "create" if version == "2.8.1" else "install"
    assert [step for step, *_ in seen] == ["create", fills, "script"]
    assert {mode for _, mode, _ in seen} == {"700"}
    assert len({inode for *_, inode in seen}) == 1
    project.run("exec", "--", "true")
    project.run("build", "-q", "--force", "--locked", "--installer", str(program))
    project.wait_until_clean()


@pytest.mark.parametrize("how", ["mkdir", "ln -s /tmp"])
def test_an_installer_that_finds_another_directory_there_is_not_believed(
    project: Workshop, tmp_path: Path, micromamba: Path, how: str
) -> None:
    """Whoever can write to the mount base directory could exchange it."""
    away = f"{project.prefix}.away"
    exchange = (
        f'case "$*" in --version|*--dry-run*) ;; *) "{micromamba}" "$@" >/dev/null; '
        f"mv {project.prefix} {away}; {how} {project.prefix}; exit ;; esac"
    )
    program = wrapped(micromamba, tmp_path / "bin", exchange)
    answer = project.run("build", "--installer", str(program), status=1)
    assert GONE in answer.stderr
    assert not project.image.exists()
    subprocess.run(["rm", "-r", away], check=True)
    assert project.left_over() == []


def test_the_next_script_does_not_run_in_a_directory_that_was_exchanged(
    workshop: Workshop, tmp_path: Path
) -> None:
    first = 'mv "$PREFIX" "$PREFIX.away"; cp -r "$PREFIX.away" "$PREFIX"'
    channel = building.make_channel(
        tmp_path / "channel",
        scripted("first", first),
        scripted("second", f"touch {tmp_path}/ran", "first"),
    )
    workshop.environment("second", channel=channel)
    assert GONE in workshop.run("build", status=1).stderr
    assert not (tmp_path / "ran").exists()
    subprocess.run(["rm", "-r", f"{workshop.prefix}.away"], check=True)
    assert workshop.left_over() == []


def test_a_prefix_that_another_process_of_the_user_makes_meanwhile_is_left(
    project: Workshop, tmp_path: Path, micromamba: Path
) -> None:
    look = f'[ "$1" = --version ] || mkdir {project.prefix} 2>>{tmp_path}/refused'
    program = wrapped(micromamba, tmp_path / "bin", look)
    project.run("build", "-q", "--installer", str(program))
    assert (tmp_path / "refused").read_text().count("File exists") == 2


@building.needs_root
def test_a_refused_package_that_cannot_be_moved_away_is_not_linked(tmp_path: Path) -> None:
    """A mountpoint cannot be renamed; what rattler needs to link the package goes all the same."""
    cache = tmp_path / "cache"
    put(cache, "odd-1.0-0/info/paths.json", "{}")
    put(cache, "odd-1.0-0/file", "file\n")
    package = cache / "odd-1.0-0"
    subprocess.run(["mount", "--bind", str(package), str(package)], check=True)
    try:
        linking.put_aside(package)
        assert not (package / "info").exists()
    finally:
        subprocess.run(["umount", str(package)], check=True)
    linking.put_aside(package)
    assert os.listdir(cache) == []  # noqa: PTH208
