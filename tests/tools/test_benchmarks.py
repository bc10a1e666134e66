"""The benchmarks: figures that follow from samples, a whole report, and an end that leaves nothing.

Nothing here looks at how long something took.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from benchmarks import compare, host, report, results, suites, summary, writing
from benchmarks.results import Results, UnusableError
from benchmarks.samples import Sample, Table
from benchmarks.suites import read, startup
from condainer.system import mounttable
from tests import support

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

HOST = {**dict.fromkeys(host.MACHINE, "the same"), "kernel": "6.1", "page caches": "dropped"}
ENVIRONMENT = {"packages": 3, "files": 1000, "bytes": 50_000_000, "image bytes": 10_000_000}
WAYS = ("directory", "squashfuse_ll", "python")
PNG = b"\x89PNG\r\n\x1a\n"


def made(*samples: Sample) -> Results:
    return Results(
        date="2026-01-02T03:04:05+00:00",
        complete=True,
        host=HOST,
        settings={"suites": [*suites.NAMES], "rounds": 3, "quick": False, "seconds": {}},
        environment=ENVIRONMENT,
        samples=samples,
    )


def starts(name: str, *seconds: float) -> list[Sample]:
    return [
        Sample(
            "startup",
            f"bare Python, {when}",
            name,
            number,
            {"wall_s": wall, "cpu_s": 0.5, "daemon_cpu_s": 0.1},
        )
        for when in ("first", "again")
        for number, wall in enumerate(seconds, 1)
    ]


def everything() -> Iterator[Sample]:
    """Samples of each suite, as many as a report needs to show all that it can show."""
    for name in WAYS:
        yield from starts(name, 0.1, 0.2, 0.3)
    for number in (1, 2, 3):
        for name in WAYS:
            values = {"wall_s": 0.2, "daemon_cpu_s": 0.1, "bytes": 1e6, "bytes_per_s": 5e6}
            yield Sample("read", read.SMALL, name, number, values, {"page caches": "dropped"})
        for count in (1, 8):
            for name in ("interpreter", "exec, live", "exec, cold"):
                about = {"at once": count}
                values = {"wall_s": 0.1 * count * number, "mounts": 0.0}
                yield Sample("exec", f"{count} at once", name, number, values, about)
        for name in ("condainer, at once", "create + mksquashfs"):
            yield Sample("build", "build", name, number, {"wall_s": 3.0, "bytes": 1e6})
        for setting in (writing.PLAIN, writing.DEFAULT):
            values = {"wall_s": 1.0, "bytes": 1e6}
            yield Sample("build", "compress", setting.name, number, values)
            values = {"wall_s": 1.0, "daemon_cpu_s": 0.0, "bytes": 1e6, "bytes_per_s": 1e6}
            backend = {"file system": "python"}
            for work in (read.SMALL, read.SMALL_RANDOM, read.LARGE, read.LARGE_RANDOM):
                yield Sample("read", work, setting.name, number, values, backend)
            values = {"wall_s": 1.0, "daemon_cpu_s": 0.2, "image_bytes": 1e6, "write_s": 1.0}
            yield Sample("read", read.START, setting.name, number, values, backend)


def test_medians_and_ratios() -> None:
    samples = [*starts("directory", 1.0, 2.0, 4.0), *starts("python", 3.0, 3.0, 6.0)]
    own = summary.pick(samples, "bare Python, first", "python")
    base = summary.pick(samples, "bare Python, first", "directory")
    assert summary.median(own, "wall_s") == 3.0
    # Round by round 3, 1.5 and 1.5; the ratio of the medians would be the same, that of the
    # means not.
    assert summary.ratio(own, base, "wall_s") == 1.5
    assert summary.ratio(own[1:], base[:1], "wall_s") is None
    row = startup.tables(samples)[0].rows[1]
    assert row[:4] == ("bare Python", "python", "3.00 (3.00-6.00)", "1.50")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.01234, "0.0123"), (0.5, "0.500"), (1.234, "1.23"), (12345.6, "12,346")],
)
def test_numbers(value: float, text: str) -> None:
    assert summary.number(value) == text


def test_default_follows() -> None:
    """Of what is neither slow to write nor large, and starts about as quickly as any, the best."""

    def start(name: str, image: float, write: float, wall: float) -> Sample:
        values = {"wall_s": wall, "image_bytes": image, "write_s": write}
        return Sample("read", read.START, name, 1, values)

    plain = start(writing.PLAIN.name, 100, 10, 1)
    large, slow = start("lz4, 256 KiB", 120, 0.5, 0.5), start("xz, 256 KiB", 50, 20, 1.0)
    quick, late = start("zstd 6, 128 KiB", 97, 1.5, 1.0), start("zstd 6, 1024 KiB", 90, 1.5, 1.2)
    small = start("zstd 6, 256 KiB", 95, 1.5, 1.04)
    assert read.follows([plain, large, slow, quick, small, late]) == "zstd 6, 256 KiB"
    assert read.follows([quick, small]) == ""


def noisy(seed: int, slowed: str = "") -> Results:
    """Six contenders that do twenty things; the machine is up to twice as slow in some rounds."""
    rng = random.Random(seed)  # noqa: S311  (the same noise each time)
    samples = []
    for work in range(20):
        for number in (1, 2, 3):
            disturbance = rng.uniform(1, 2)
            for place, name in enumerate(("directory", "kernel", "squashfuse_ll", "python", "x")):
                wall = (1 + work) * (1 + place) * disturbance * rng.lognormvariate(0, 0.05)
                wall *= 1.5 if name == slowed else 1
                values = {"wall_s": wall, "operations": 100.0 * place}
                samples.append(Sample("startup", f"work {work}", name, number, values))
    return made(*samples)


def slower(old: Results, new: Results, *, timed: bool = True) -> list[compare.Key]:
    changes, _ = compare.compare(old, new, timed=timed)
    return [change.key for change in changes if change.verdict == "slower"]


def test_noise_is_not_taken_for_a_change() -> None:
    # One comparison of two results in twenty may cry wolf, over one of its 180 figures.
    found = [slower(noisy(seed), noisy(seed + 100)) for seed in range(40)]
    assert sum(bool(each) for each in found) <= 2
    assert max(len(each) for each in found) <= 1


def test_a_slowed_contender_shows() -> None:
    found = slower(noisy(1), noisy(101, slowed="python"))
    assert {key[2] for key in found} == {"python"}
    assert len(found) == 20


def test_counts_are_compared_on_any_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = noisy(1)
    more = replace(old.samples[1], values={"wall_s": 99.0, "operations": 500.0})
    rest = [s for s in old.samples if (s.work, s.contender) != (more.work, more.contender)]
    new = made(*rest, *(replace(more, round=number) for number in (1, 2, 3)))
    new = replace(new, host={**HOST, "CPU": "another"})
    files = [results.write(each, tmp_path / name) for each, name in ((old, "a"), (new, "b c"))]
    assert compare.main(*files) == 1
    said = capsys.readouterr().out
    assert "times are not compared: another machine (CPU)" in said
    assert "1 slower, 0 faster" in said
    assert compare.main(files[0], files[0]) == 0


def test_results_are_kept(tmp_path: Path) -> None:
    first = made(*everything())
    path = results.write(first, tmp_path)
    assert results.read(path) == first
    second = made(*starts("python", 1.0))
    results.write(second, tmp_path)
    assert results.read(tmp_path) == second
    assert results.read(tmp_path / "results.1.json") == first
    assert sorted(file.name for file in tmp_path.iterdir()) == ["results.1.json", "results.json"]


@pytest.mark.parametrize("text", ["", "[]", '{"format": 2}', '{"format": 1}', '{"format": 1, "x'])
def test_other_files_are_no_results(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UnusableError, match=r"results\.json"):
        results.read(tmp_path)


def test_report_is_whole(tmp_path: Path) -> None:
    found = replace(
        made(*everything()),
        missing={"kernel": "only root can mount"},
        failed={"read: python": "in round 2: it <b>broke</b> | so"},
    )
    page = report.write(found, tmp_path).read_text()
    web = (tmp_path / "report.html").read_text()
    for suite, name in report.measured(found):
        assert f"\n## {suite.TITLE}\n" in page
        tables, figures = suite.tables(found.of(name)), suite.figures(found.of(name))
        assert tables
        assert figures
        for figure in figures:
            assert f"]({figure.name}.png)" in page
        for table in tables:
            check(table, page)
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", page)
    assert sorted(pictures) == sorted(file.name for file in tmp_path.glob("*.png"))
    for name in pictures:
        content = (tmp_path / name).read_bytes()
        assert content.startswith(PNG)
        assert content.endswith(b"IEND\xaeB\x60\x82")
    sources = re.findall(r'(?:src|href)="([^"]*)"', web)
    assert len(sources) == len(pictures)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "only root can mount" in page
    assert "it &lt;b&gt;broke" in web
    assert "1,000 files and directories became 1 file" in page


def check(table: Table, page: str) -> None:
    """A table is complete, and on the page."""
    assert table.rows
    assert {len(row) for row in table.rows} == {len(table.columns)}
    assert f"### {table.title}\n" in page


def test_the_same_results_give_the_same_report(tmp_path: Path) -> None:
    found = made(*everything())
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        report.write(found, tmp_path / name)
    first, second = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in "ab"
    )
    assert first == second


def run(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """Start the benchmarks as a user does, in a process group of their own."""
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *arguments, "--directory", str(cwd)],
        cwd=support.REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory to measure in, of which nothing may be mounted or left in the end."""
    directory = tmp_path_factory.mktemp("place")
    yield directory
    assert list(directory.iterdir()) == []
    assert mounttable.mounts_at_or_below(directory) == []


def test_a_run(tmp_path: Path, place: Path) -> None:
    out = tmp_path / "my results"
    with run("exec", "--quick", "--rounds", "1", "--out", str(out), cwd=place) as process:
        said, errors = process.communicate(timeout=support.PATIENCE * 3)
    assert process.returncode == 0, errors
    found = results.read(out)
    assert found.complete
    assert {sample.contender for sample in found.samples} == {
        *("interpreter", "exec, live", "exec, cold")
    }
    assert found.environment["files"] > 1000
    assert "Starting many at once" in said
    assert str(out / "report.md") in said
    assert {file.name for file in out.iterdir()} == {
        *("exec.png", "report.html", "report.md", "results.json")
    }
    again = [sys.executable, "-m", "benchmarks", "--compare", str(out), str(out)]
    assert subprocess.run(again, cwd=support.REPOSITORY, check=False).returncode == 0


def test_an_interruption_leaves_nothing_but_what_was_measured(tmp_path: Path, place: Path) -> None:
    with run("read", "--quick", "--rounds", "9", "--out", str(tmp_path), cwd=place) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "round 1 of 9: squashfuse" in line:
                break
        time.sleep(0.1)  # so that it is in the middle of something
        os.killpg(process.pid, signal.SIGINT)
        said, errors = process.communicate(timeout=support.PATIENCE)
    assert process.returncode == 128 + signal.SIGINT, errors
    found = json.loads((tmp_path / "results.json").read_text())
    assert not found["complete"]
    assert found["samples"]
    assert "interrupted" in (tmp_path / "report.md").read_text()
    assert "Reading the image of a build" in said
