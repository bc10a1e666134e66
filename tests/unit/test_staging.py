"""The directory an environment is installed in: whatever is in it can be removed."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from condainer.system import removal
from tests import building

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    """As many open files as a careful administrator allows."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.usefixtures("few_descriptors")
@pytest.mark.parametrize("name", ["d", "directory"])
def test_directories_of_any_depth_are_removed(tmp_path: Path, name: str) -> None:
    """With the longer name the path is longer than the kernel takes."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("precious\n")
    top = tmp_path / "top"
    top.mkdir()
    before = len(list(Path("/proc/self/fd").iterdir()))
    with building.deep_directories(top, 2000, name):
        for directory in (top, top / name, top / name / name):
            (directory / "link").symlink_to(outside)
            (directory / "hard link").hardlink_to(outside / "file")
            (directory / "sibling/below").mkdir(parents=True)
            (directory / "sibling/below").chmod(0)
        removal.remove_tree(top)
        assert not top.exists()
        top.mkdir()
    assert (outside / "file").read_text() == "precious\n"
    assert len(list(Path("/proc/self/fd").iterdir())) == before
