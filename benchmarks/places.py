"""What the benchmarks work on: projects with packages from the local channel."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests import localchannel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

SPECS = ("python", "numpy", "scipy", "pandas", "matplotlib", "scikit-learn", "pip")


@dataclass(frozen=True)
class Place:
    """A project in a directory of its own, with a home directory beside it.

    Attributes:
        directory: holds everything.
        channel: the local channel.
        uuid: identity of the project.
        specs: what is to be installed.
    """

    directory: Path
    channel: Path
    uuid: str
    specs: Sequence[str] = SPECS

    @property
    def project(self) -> Path:
        """The project directory."""
        return self.directory / "project"

    @property
    def image(self) -> Path:
        """Where condainer puts the image."""
        return self.project / f"{self.uuid}.squashfs"

    @property
    def prefix(self) -> Path:
        """Where the image belongs."""
        return self.directory / "base" / f"condainer-{self.uuid}"

    @property
    def home(self) -> Path:
        """Stands for the home directory: the caches are in it."""
        return self.directory / "home"

    def condainer(self, *arguments: str, **variables: str) -> None:
        """Run `condainer` in the project.

        Raises:
            subprocess.CalledProcessError: where it fails.
        """
        environment = {**os.environ, "HOME": str(self.home), **variables}
        environment.pop("XDG_CACHE_HOME", None)
        command = [sys.executable, "-m", "condainer", "-q", "-d", str(self.project)]
        run([*command, *arguments], environment)


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """Run a program without output; where this is interrupted, let it end in its own way.

    Raises:
        subprocess.CalledProcessError: where it fails.
    """
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            process.wait()
        except BaseException:
            process.terminate()
            raise  # and wait for it
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, command)


def make(
    directory: Path, kind: localchannel.Kind = "scientific", specs: Sequence[str] = SPECS
) -> Place:
    """Set up a project; the channel is made on first use, and kept.

    Args:
        directory: that holds everything.
        kind: of the channel.
        specs: what is to be installed; 22 scientific packages, unless something else is named.
    """
    place = Place(directory, localchannel.ensure(kind), str(uuid.uuid4()), specs)
    place.project.mkdir()
    place.home.mkdir()
    base = directory / "base"
    base.mkdir()
    (place.project / "condainer.yml").write_text(
        f"mount_base_directory: {base}\nuuid: {place.uuid}\n"
    )
    lines = "".join(f"  - {spec}\n" for spec in specs)
    (place.project / "environment.yml").write_text(
        f"name: bench\nchannels:\n  - file://{place.channel}\n  - nodefaults\n"
        f"dependencies:\n{lines}"
    )
    return place
