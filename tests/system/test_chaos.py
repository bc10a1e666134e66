"""A few rounds of `tests.chaos`; many more, other backends and users are for running it by hand."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from tests import chaos

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import Workshop


def test_kills_among_many_commands_at_once(ready: Workshop, tmp_path: Path) -> None:
    marked = dataclasses.replace(ready, variables={**ready.variables, "CHAOS": ready.uuid})
    site = chaos.Site(marked, chaos.some_files(marked, tmp_path), seed=4)
    chaos.play(site, rounds=24, at_once=8)
    assert site.problems == []
    assert site.done["kill_server"]
