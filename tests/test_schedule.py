"""How many processors a build takes: the budget of a command, and what a node allows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from condainer.pipeline import schedule
from tests import building, localchannel
from tests.support import CONDAINER, REPOSITORY, compressing, wait_for

if TYPE_CHECKING:
    from tests.support import Workshop


# The budget


@settings(deadline=None)
@given(
    processors=st.integers(1, 8),
    builds=st.lists(st.lists(st.none() | st.integers(1, 8), max_size=5), min_size=1, max_size=5),
)
def test_budget_is_never_exceeded(processors: int, builds: list[list[int | None]]) -> None:
    taken = most = finished = 0

    async def build(budget: schedule.Budget, stages: list[int | None]) -> None:
        nonlocal taken, most, finished
        async with budget.build():
            for at_most in stages:
                async with budget.take(at_most) as share:
                    assert 1 <= share <= (at_most or processors)
                    taken += share
                    most = max(most, taken)
                    await anyio.lowlevel.checkpoint()
                    taken -= share
        finished += 1

    async def main() -> None:
        budget = schedule.Budget(processors)
        async with anyio.create_task_group() as group:
            for stages in builds:
                group.start_soon(build, budget, stages)

    anyio.run(main)
    assert most <= processors
    assert finished == len(builds)


def test_one_build_gets_all_and_two_share() -> None:
    async def main() -> list[int]:
        budget = schedule.Budget(8)
        async with budget.build():
            async with budget.take() as alone:
                pass
            async with budget.build(), budget.take() as first, budget.take() as second:
                return [alone, first, second]

    assert anyio.run(main) == [8, 4, 4]


def test_cancelled_stage_gives_its_processors_back() -> None:
    async def main() -> int:
        budget = schedule.Budget(2)
        with anyio.CancelScope() as scope:
            async with budget.take():
                scope.cancel()
                await anyio.lowlevel.checkpoint()
        async with budget.take() as share:
            return share

    assert anyio.run(main) == 2


# What a node allows


def put(group: Path, **files: str) -> None:
    group.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (group / name.replace("__", ".")).write_text(f"{text}\n")


@pytest.mark.parametrize(
    ("own", "above", "expected"),
    [
        ("max 100000", "max 100000", None),
        ("250000 100000", "max 100000", 2.5),
        ("max 100000", "150000 50000", 3.0),
        ("400000 100000", "200000 100000", 2.0),
        ("50000 100000", "max 100000", 0.5),
        ("nonsense", "max", None),
        ("100000 0", "max 100000", None),
    ],
)
def test_quota_of_version_2(tmp_path: Path, own: str, above: str, expected: float | None) -> None:
    put(tmp_path / "jobs/mine", cpu__max=own)
    put(tmp_path / "jobs", cpu__max=above)
    assert schedule.cgroup_quota("0::/jobs/mine\n", tmp_path) == expected


@pytest.mark.parametrize("directory", ["cpu,cpuacct", "cpu"])
def test_quota_of_version_1(tmp_path: Path, directory: str) -> None:
    put(tmp_path / directory / "jobs/mine", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    put(tmp_path / directory / "jobs", cpu__cfs_quota_us="300000", cpu__cfs_period_us="100000")
    membership = "12:pids:/jobs/mine\n5:cpu,cpuacct:/jobs/mine\n1:name=systemd:/jobs\n"
    assert schedule.cgroup_quota(membership, tmp_path) == 3.0


def test_quota_in_a_container_that_sees_only_its_own_group(tmp_path: Path) -> None:
    put(tmp_path / "cpu", cpu__cfs_quota_us="150000", cpu__cfs_period_us="100000")
    membership = "3:cpu:/docker/0123456789\n0::/docker/0123456789\n"
    assert schedule.cgroup_quota(membership, tmp_path) == 1.5


def test_quota_of_both_versions_side_by_side(tmp_path: Path) -> None:
    put(tmp_path / "cpu/jobs", cpu__cfs_quota_us="400000", cpu__cfs_period_us="100000")
    put(tmp_path / "unified/jobs", cpu__max="max 100000")
    assert schedule.cgroup_quota("4:cpu:/jobs\n0::/jobs\n", tmp_path) == 4.0


def test_no_quota_where_there_are_no_control_groups(tmp_path: Path) -> None:
    assert schedule.cgroup_quota("0::/\n", tmp_path) is None
    assert schedule.cgroup_quota("", tmp_path) is None


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


# Builds


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
