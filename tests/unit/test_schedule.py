"""How many processors a build takes: the budget of a command, and what a node allows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from condainer.pipeline import schedule

if TYPE_CHECKING:
    from pathlib import Path


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
