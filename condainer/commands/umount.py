"""`umount`: unmounts the image, unless a program still uses it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from condainer.commands import console
from condainer.mounting import target, use
from condainer.project import project as project_module

if TYPE_CHECKING:
    import argparse

EXAMPLES = """\
  condainer umount
  condainer -d /project/env umount
"""


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """Add nothing: the command has no arguments of its own."""


def run(arguments: argparse.Namespace) -> int:
    """Unmount the image.

    Args:
        arguments: the parsed command line.

    Returns:
        The exit status.
    """
    project = project_module.open_project(arguments.directory)
    if arguments.dry_run:
        state = target.look(project).state.value
        text = f"{project.prefix} is {state}; would unmount it if nobody uses it"
        console.inform(arguments, text)
        return 0
    has_gone = use.unmount(project)
    if use.end_private_mounts(project) or has_gone:
        use.wait_until_gone(project)
        console.inform(arguments, f"unmounted {project.prefix}")
    else:
        console.inform(arguments, f"{project.prefix} is not mounted")
    return 0
