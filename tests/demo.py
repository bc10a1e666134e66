"""The demonstration behind `./run demo`: a real environment.yml becomes one file, and runs.

Uses conda-forge where it can be reached, and else a channel made on this machine from the running
interpreter and ordinary wheels.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

CONDA_FORGE = "https://conda.anaconda.org/conda-forge/noarch/repodata.json.zst"
PROJECT = Path(__file__).parent.parent / "demo-project"
CONDAINER = str(Path(sys.executable).parent / "condainer")

ENVIRONMENT = """\
name: demo
channels:
  - {channel}
  - nodefaults
dependencies:
  - python
  - numpy
  - pandas
"""

SCRIPT = """\
import sys

import numpy as np
import pandas as pd

table = pd.DataFrame({"x": np.arange(5), "square": np.arange(5) ** 2})
print(table.to_string(index=False))
print(f"Python {sys.version.split()[0]}, numpy {np.__version__}, pandas {pd.__version__}")
print(f"from {sys.prefix}")
"""


def main() -> int:
    """Run the demonstration; gives the exit status."""
    try:
        return _demonstrate()
    except subprocess.CalledProcessError as failure:
        return failure.returncode if failure.returncode >= 0 else 128 - failure.returncode
    except KeyboardInterrupt:
        _say("interrupted; it can be run again")
        return 128 + signal.SIGINT
    except RuntimeError as error:
        _say(str(error))
        return 1


def _demonstrate() -> int:
    ready = subprocess.run([CONDAINER, "prereq"], capture_output=True, text=True, check=False)
    if ready.returncode != 0:
        sys.stderr.write("demo: this machine lacks something (condainer prereq):\n")
        sys.stderr.write(ready.stdout + ready.stderr)
        return 1
    channel, origin = _channel()
    _say(f"packages come from {origin}")
    PROJECT.mkdir(exist_ok=True)
    if not (PROJECT / "condainer.yml").exists():
        _condainer("init")
    (PROJECT / "environment.yml").write_text(ENVIRONMENT.format(channel=channel))
    (PROJECT / "script.py").write_text(SCRIPT)
    _condainer("build", "--force")
    _say("condainer exec -- python script.py")
    _condainer("exec", "--", "python", str(PROJECT / "script.py"))
    answer = _condainer("status", "--json", capture=True)
    image = json.loads(answer)["image"]
    _say(
        f"done: {image['files']:,} files became one of {image['bytes'] / 1e6:.0f} MB, "
        f"{PROJECT.name}/{Path(image['path']).name}"
    )
    _say(f"go on:  cd {PROJECT.name} && source ./activate")
    return 0


def _channel() -> tuple[str, str]:
    """The channel to use, and where it is in words."""
    request = urllib.request.Request(CONDA_FORGE, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=10):  # noqa: S310  (a constant)
            return "conda-forge", "conda-forge"
    except (urllib.error.URLError, OSError):
        from tests import localchannel

        _say("conda-forge cannot be reached: making a channel of this Python and of wheels (once)")
        path = localchannel.ensure("basic")
        return str(path), f"a local channel, {path}"


def _condainer(*arguments: str, capture: bool = False) -> str:
    # Control-C reaches condainer as well, which takes away what it has begun: wait for that.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        done = subprocess.run(
            [CONDAINER, "-d", str(PROJECT), *arguments],
            check=True,
            stdout=subprocess.PIPE if capture else None,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    return done.stdout or ""


def _say(text: str) -> None:
    sys.stderr.write(f"demo: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
