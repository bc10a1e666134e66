"""`./run demo`: what it says and leaves where it does not come to its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.support import PATIENCE, wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import Workshop

DEMO = """\
import sys
from pathlib import Path
from tests import demo
demo.PROJECT = Path.cwd()
demo.ENVIRONMENT = "channels:\\n  - {channel}\\ndependencies:\\n  - hard-post-link-sleeps\\n"
demo._channel = lambda: (sys.argv[1], "the test")
sys.exit(demo.main())
"""


def test_control_c_waits_until_condainer_has_tidied_up(
    workshop: Workshop, hard_channel: Path
) -> None:
    """It goes to the whole group, as a terminal sends it."""
    process = subprocess.Popen(
        [sys.executable, "-c", DEMO, hard_channel],
        cwd=workshop.directory,
        env=workshop.variables,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    asleep = workshop.prefix / "hard-sleeping.txt"
    wait_for(lambda: asleep.exists() or process.poll() is not None)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=PATIENCE * 2)[0]
    assert process.returncode == 128 + signal.SIGINT, said
    assert "Traceback" not in said
    assert not workshop.left_over()
    assert not workshop.image.exists()
