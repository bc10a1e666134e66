"""Defines what the pipeline asks of an installer, and what it gets back.

`mamba` drives an executable of the mamba family, `rattler` the engine that comes as a dependency.
Both install at the prefix where the image will be mounted. `choice` takes one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from condainer.pipeline.installers import channels

if TYPE_CHECKING:
    from pathlib import Path

    from condainer.pipeline.packages import Package
    from condainer.pipeline.workplace import Workplace


@dataclass(frozen=True)
class Request:
    """What an installer is asked for: specs or exact packages, channels, and where to install.

    Attributes:
        specs: the specs of environment.yml; not used if `locked` has packages.
        channels: names and URLs in order of priority, and no others are used; empty means those
            that the installer is configured for.
        locked: the exact packages; empty means solve.
        prefix: where to install.
        package_cache: where packages are kept; None means the installer's own place.
        channel_priority: one of `config.CHANNEL_PRIORITIES`; empty means as conda is configured.
        offline: whether nothing may be asked for over the network.
    """

    specs: tuple[str, ...]
    channels: tuple[str, ...]
    locked: tuple[Package, ...]
    prefix: Path
    package_cache: Path | None
    channel_priority: str = ""
    offline: bool = False

    @property
    def sources(self) -> tuple[str, ...]:
        """All channels that are named, including those in specs."""
        return (*self.channels, *filter(None, (channels.of_spec(spec)[0] for spec in self.specs)))


@dataclass(frozen=True)
class Solution:
    """The packages to install, each after those it depends on.

    Attributes:
        packages: what to install.
        to_fetch: bytes of the packages that are not in the package cache; 0 if not known.
        cache: where packages are unpacked and linked from; None if not known.
        records: the installer's own form of the same, for its `install`.
    """

    packages: tuple[Package, ...]
    to_fetch: int = 0
    cache: Path | None = None
    records: object = None


class Installer(Protocol):
    """What the pipeline asks of an installer."""

    @property
    def description(self) -> str:
        """Name and version, for people and for the manifest."""

    @property
    def vouches_for_scripts(self) -> bool:
        """Whether `install` fails if a post-link script fails that it runs itself."""

    def check(self, request: Request) -> None:
        """Check that the installer can do what is asked.

        Args:
            request: what is asked.

        Raises:
            ToolError: If it cannot.
        """

    async def solve(self, request: Request, workplace: Workplace) -> Solution:
        """Find the packages.

        Args:
            request: what to install.
            workplace: where to run programs.

        Raises:
            BuildError: If there is no solution; the message has the installer's own explanation.
        """

    async def install(
        self, request: Request, solution: Solution, workplace: Workplace
    ) -> frozenset[str]:
        """Fetch and link the packages in the prefix, which is an empty directory.

        It compares them with the checksums in the solution. If it is cancelled, it ends all its
        programs.

        Args:
            request: what to install.
            solution: what `solve` returned for it.
            workplace: where to run programs.

        Returns:
            The names of the packages of which it has run a script itself.

        Raises:
            BuildError: If it fails; the message has the installer's own explanation.
        """
