"""`version`: prints the version."""

from __future__ import annotations

from typing import TYPE_CHECKING

import condainer
from condainer.commands import console

if TYPE_CHECKING:
    import argparse

EXAMPLES = "  condainer version\n"


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """Add nothing: the command has no arguments of its own."""


def run(_arguments: argparse.Namespace) -> int:
    """Print the version; gives the exit status."""
    console.write(f"condainer {condainer.__version__}\n")
    return 0
