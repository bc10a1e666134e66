"""The command line and the environment, as far as an installer is driven by them."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

VERSION = "2.8.1"
CONDA_VERSION = "conda 26.7.1"

_USAGE = 109


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `create` was asked to do.

    Attributes:
        is_conda: It is conda, and not micromamba.
        command: `create`, or `install` into an environment that is there.
        prefix: Where the environment goes.
        root: The root prefix.
        package_cache: Where packages are unpacked.
        channels: Channels, most wanted first, as they were given.
        override_channels: Only these, and not those that are configured.
        files: Environment files, lists of specs, or explicit lists of URLs.
        specs: Specs from the command line.
        dry_run: Stop before anything is fetched.
        as_json: Write one document instead of words.
        offline: Ask for nothing over the network.
        quiet: Write nothing but errors.
        words: The whole command line.
    """

    is_conda: bool
    command: str
    prefix: Path
    root: Path
    package_cache: Path
    channels: tuple[str, ...]
    override_channels: bool
    files: tuple[Path, ...]
    specs: tuple[str, ...]
    dry_run: bool
    as_json: bool
    offline: bool
    quiet: bool
    words: tuple[str, ...]


class _Parser(argparse.ArgumentParser):
    """A parser that fails as micromamba's does."""

    def error(self, message: str) -> NoReturn:
        """End with the status of a wrong command line."""
        self.exit(_USAGE, f"{message}\nRun with --help for more information.\n")


def version() -> str:
    """The version that this stands for; an older one where a variable says so."""
    return os.environ.get("STANDIN_VERSION", VERSION)


def takes_empty() -> bool:
    """Whether it creates an environment in an empty directory, as since 2.2."""
    return [int(part) for part in version().split(".")[:2]] >= [2, 2]


def parse(program: str, words: list[str]) -> Options:
    """Read the command line.

    Args:
        program: The name it goes by.
        words: The arguments, without the program's name.

    Raises:
        SystemExit: with status 0 after `--version`, 109 if the arguments are wrong.
    """
    is_conda = program == "conda"
    parser = _parser(CONDA_VERSION if is_conda else version())
    found, unknown = parser.parse_known_intermixed_args(words)
    if unknown:
        listed = " ".join(unknown)
        plural = "s were" if len(unknown) > 1 else " was"
        parser.error(f"The following argument{plural} not expected: {listed}")
    default_root = os.environ.get("MAMBA_ROOT_PREFIX") or Path.home() / ".local/share/mamba"
    if is_conda:
        default_root = Path.home() / ".conda"
    root = Path(found.root_prefix or default_root).absolute()
    caches = os.environ.get("CONDA_PKGS_DIRS", "").replace(":", ",").split(",")
    return Options(
        is_conda=is_conda,
        command=found.command,
        prefix=Path(found.prefix).absolute(),
        root=root,
        package_cache=Path(caches[0]).absolute() if caches[0] else root / "pkgs",
        channels=tuple(found.channel),
        override_channels=found.override_channels,
        files=tuple(found.file),
        specs=tuple(found.specs),
        dry_run=found.dry_run,
        as_json=found.json,
        offline=found.offline,
        quiet=found.quiet or found.json,
        words=(program, *words),
    )


def _parser(version: str) -> argparse.ArgumentParser:
    parser = _Parser(prog="micromamba", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=version)
    parser.add_argument("-y", "--yes", action="store_true")
    parser.add_argument("-r", "--root-prefix")
    parser.add_argument("-p", "--prefix", required=True)
    parser.add_argument("-c", "--channel", action="append", default=[])
    parser.add_argument("--override-channels", action="store_true")
    parser.add_argument("-f", "--file", action="append", default=[], type=Path)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--offline", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("-q", "--quiet", action="store_true")
    parser.add_argument("command", choices=["create", "install"])
    parser.add_argument("specs", nargs="*", metavar="SPEC")
    return parser
