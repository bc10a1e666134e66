"""How many processors a build takes: the budget of a command, and what a node allows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import building, localchannel
from tests.support import CONDAINER, REPOSITORY, compressing, wait_for

if TYPE_CHECKING:
    from tests.support import Workshop


def test_default_is_what_this_process_may_use() -> None:
    code = "from condainer.pipeline import schedule; print(schedule.default_jobs())"
    one = str(min(os.sched_getaffinity(0)))
    done = subprocess.run(
        ["taskset", "--cpu-list", one, sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "1\n"


def allowed_to(pid: int) -> set[int]:
    """How many processors each thread of a process may run on."""
    return {
        len(os.sched_getaffinity(int(task.name))) for task in Path(f"/proc/{pid}/task").iterdir()
    }


def test_jobs_bind_all_programs_and_threads(workshop: Workshop) -> None:
    if len(os.sched_getaffinity(0)) == 1:
        pytest.skip("there is only one processor")
    workshop.configure(compression="xz")
    workshop.environment("hard-big", channel=localchannel.ensure("big"))
    build = workshop.start("build", "--jobs", "1")
    wait_for(lambda: compressing(workshop))
    (mksquashfs,) = compressing(workshop)
    line = Path(f"/proc/{mksquashfs}/cmdline").read_text().split("\0")
    assert line[line.index("-processors") + 1] == "1"
    assert allowed_to(mksquashfs) == {1}
    assert allowed_to(build.pid) == {1}
    build.terminate()
    build.communicate()


def test_more_jobs_than_this_process_may_use(workshop: Workshop, hard_channel: Path) -> None:
    workshop.environment("hard-text", channel=hard_channel)
    one = str(min(os.sched_getaffinity(0)))
    done = subprocess.run(
        ["taskset", "--cpu-list", one, *CONDAINER, "build", "-j", "99999999999"],
        cwd=workshop.directory,
        env=workshop.variables,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "-j 99999999999: using 1, as this process may use no more\n" in done.stderr
    assert "Using 1 processor\n" in workshop.build_log.read_text()


def test_mksquashfs_gets_all_jobs(workshop: Workshop, hard_channel: Path) -> None:
    jobs = min(2, len(os.sched_getaffinity(0)))
    workshop.environment("hard-text", channel=hard_channel)
    workshop.run("build", "-q", "-j", str(jobs))
    unit = "processor" if jobs == 1 else "processors"
    assert f"Using {jobs} {unit}\n" in workshop.build_log.read_text()


def test_several_projects_are_built_in_one_command(
    workshop: Workshop, hard_channel: Path, tmp_path: Path, home: Path
) -> None:
    with (
        building.new_workshop(tmp_path / "second", home) as second,
        building.new_workshop(tmp_path / "third", home) as third,
    ):
        projects = (workshop, second, third)
        for project in projects:
            project.environment("python", "hard-hello", channel=hard_channel)
        third.environment("hard-nowhere", channel=hard_channel)
        directories = [str(project.directory) for project in projects]
        answer = workshop.run("build", "--jobs", "1", *directories, status=1)
        for project in (workshop, second):
            assert f"{project.directory.name}: publish: " in answer.stderr
            assert "Using 1 processor\n" in project.build_log.read_text()
            done = project.run("exec", "hard-hello")
            assert done.stdout == f"hello from {project.prefix}\n"
        assert f"condainer: {third.directory}:\ncondainer: error: " in answer.stderr
        assert not third.image.exists()


def test_project_that_is_named_twice_is_built_once(workshop: Workshop, hard_channel: Path) -> None:
    workshop.environment("hard-text", channel=hard_channel)
    link = workshop.directory.with_name("link")
    link.symlink_to(workshop.directory)
    answer = workshop.run("build", ".", str(workshop.directory), str(link))
    assert answer.stderr.count("publish: ") == 1


def test_project_and_its_copy_are_not_built_together(workshop: Workshop, tmp_path: Path) -> None:
    copy = workshop.copy(tmp_path / "copy")
    answer = workshop.run("build", "--force", ".", str(copy.directory), status=1)
    words = f"{workshop.directory} and {copy.directory} have the same uuid and mountpoint: "
    assert answer.stderr.startswith(f"condainer: error: {words}")
    assert len(answer.stderr.splitlines()) == 2
