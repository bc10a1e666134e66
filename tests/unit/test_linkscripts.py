"""The order in which post-link scripts run."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import anyio
import pytest

from condainer.pipeline import scripts
from condainer.pipeline.packages import package_from_json
from condainer.pipeline.workplace import Workplace
from tests.localchannel.package import put

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("listed", "needs", "expected"),
    [
        (("b", "a"), {"a": [], "b": ["a"]}, ("a", "b")),
        (("c", "a", "b"), {"a": [], "b": ["ch::a>=1"], "c": ["b[build=0]"]}, ("a", "b", "c")),
        # What needs something by way of a package without a script.
        (("c", "-b", "a"), {"a": [], "-b": ["a 1.*"], "c": ["-b"]}, ("a", "c")),
        (("a", "b", "c"), {"a": ["b"], "b": ["a", "c"], "c": []}, ("c", "b", "a")),
        (("b", "a"), {"a": ["__glibc >=2.17", "gone"], "b": ["gone", "a"]}, ("a", "b")),
        (("a", "d", "c", "b"), {"a": [], "b": ["a"], "c": ["a"], "d": []}, ("a", "d", "c", "b")),
    ],
    ids=["mixed", "mixed-chain", "no-script-between", "circle", "not-installed", "sorted"],
)
def test_post_link_scripts_run_after_those_of_what_they_need(
    tmp_path: Path, listed: tuple[str, ...], needs: dict[str, list[str]], expected: tuple[str, ...]
) -> None:
    for name, depends in needs.items():
        record = {"name": name, "version": "1", "build": "0", "depends": depends}
        put(tmp_path, f"conda-meta/{name}-1-0.json", json.dumps(record))
        if not name.startswith("-"):
            put(tmp_path, f"bin/.{name}-post-link.sh", 'echo "$PKG_NAME" >>"$PREFIX/ran"\n')
    packages = [package_from_json({"name": name, "version": "1", "build": "0"}) for name in listed]
    workplace = Workplace(
        1, on_line=lambda _: None, on_progress=lambda *_, **__: None, environment=dict(os.environ)
    )
    anyio.run(scripts.run_post_link, tmp_path, packages, workplace)
    assert (tmp_path / "ran").read_text().split() == list(expected)
