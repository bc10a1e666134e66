"""Many programs that use one mount at once, some of which are killed in the middle of a request."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests import support

pytestmark = pytest.mark.slow


@pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="nothing can be mounted")
@pytest.mark.parametrize(
    "how",
    [
        (),
        ("--", "-s"),
        ("--subdir", "modules", "--offset", "12345", "--", "-o", "timeout=1"),
    ],
)
def test_many_use_it_and_some_are_killed(how: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "tests.endure_fuse", "--readers", "8", "--seconds", "3", *how]
    done = subprocess.run(
        command, cwd=support.REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.match(r"\d+ readers\n\d+ MiB at most, ", done.stdout)
