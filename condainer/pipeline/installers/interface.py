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
    """What is to be installed, and how.

    Attributes:
        specs: what environment.yml asks for; not used where `locked` is given.
        channels: names and URLs in order of priority, and no others than these; empty means
            those that the installer is configured for.
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
        """All channels that are named, those that specs name as well."""
        return (*self.channels, *filter(None, (channels.of_spec(spec)[0] for spec in self.specs)))


@dataclass(frozen=True)
class Solution:
    """The packages to install, each after those it depends on.

    Attributes:
        packages: what is to be installed.
        to_fetch: bytes of those that are not in the package cache yet; 0 where nobody knows.
        cache: where packages are unpacked and linked from; None where nobody knows.
        records: the installer's own form of the same, handed back to its `install`.
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
        """Whether `install` fails where a post-link script that it runs itself does."""

    def check(self, request: Request) -> None:
        """See whether it can do what is asked.

        Raises:
            ToolError: where it cannot.
        """

    async def solve(self, request: Request, workplace: Workplace) -> Solution:
        """Find the packages.

        Raises:
            BuildError: with the installer's own explanation.
        """

    async def install(
        self, request: Request, solution: Solution, workplace: Workplace
    ) -> frozenset[str]:
        """Fetch and link them in the prefix, an empty directory; ended and silent when cancelled.

        What is there has been compared with the checksums that the solution names.

        Returns:
            the names of packages of which it has run a script itself.

        Raises:
            BuildError: with the installer's own explanation.
        """
