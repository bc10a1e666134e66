"""`build`: makes the image of one or several projects."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from condainer.commands import console
from condainer.project import project as project_module
from condainer.units import foreign

if TYPE_CHECKING:
    from collections.abc import Iterable

    from condainer.pipeline.plan import BuildOptions
    from condainer.project.project import Project

EXAMPLES = """\
  condainer build                build the project in the current directory
  condainer build --force -j 4   build it again, on at most 4 processors
  condainer build --locked       install exactly the packages of the last build
  condainer build --offline      use no network
  condainer build a b c          build three projects at the same time
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `build`.

    Args:
        parser: takes them.
    """
    parser.add_argument(
        "-j",
        "--jobs",
        type=_positive,
        metavar="N",
        help="processors to use at most (default: all that this process may use, up to 8)",
    )
    parser.add_argument(
        "--installer",
        default="",
        metavar="NAME",
        help="micromamba, mamba or conda, the path of one of them, or rattler, which comes with "
        "condainer (default: the first that is found)",
    )
    flags = {
        "--force": "replace an image that is already there",
        "--locked": "install exactly the packages that the lock file lists",
        "--offline": "use no network: take packages only from caches and local channels",
        "--no-overlap": "compress after everything is installed, not during the installation",
        "--repack": "install nothing: compress the existing image again, harder, and put the "
        "files first that 'condainer profile' has found",
    }
    for name, text in flags.items():
        parser.add_argument(name, action="store_true", help=text)
    parser.add_argument(
        "directories",
        nargs="*",
        type=Path,
        metavar="DIR",
        help="the projects to build (default: the current directory)",
    )


def _positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of 1 or more")
    return number


def run(arguments: argparse.Namespace) -> int:
    """Build the images, side by side.

    Args:
        arguments: the parsed command line.

    Returns:
        The exit status: the largest one if several builds fail.
    """
    from condainer.commands import progress
    from condainer.pipeline import run as runner

    projects = project_module.open_projects(arguments.directories or [arguments.directory])
    project_module.leave_missing_directory()
    options = _options(arguments, projects)
    reporter = progress.reporter(
        quiet=arguments.quiet, verbose=arguments.verbose, several=len(projects) > 1
    )
    jobs = _jobs(arguments)
    with reporter:
        failures = runner.build_all(projects, options, jobs, reporter.handle)
    for failure in failures:
        if len(projects) > 1:
            console.say(f"condainer: {foreign(str(failure.project.directory))}:\n")
        console.show_error(failure.error, verbose=arguments.verbose)
    return max((failure.error.exit_status for failure in failures), default=0)


def _options(arguments: argparse.Namespace, projects: Iterable[Project]) -> BuildOptions:
    from condainer.pipeline.plan import BuildOptions

    replaces = arguments.force or arguments.repack
    return BuildOptions(
        force=arguments.force,
        locked=arguments.locked,
        offline=arguments.offline,
        installer=arguments.installer,
        dry_run=arguments.dry_run,
        overlap=not arguments.no_overlap,
        repack=arguments.repack,
        idle=_unmount_idle(arguments, projects) if replaces else frozenset(),
    )


def _unmount_idle(arguments: argparse.Namespace, projects: Iterable[Project]) -> frozenset[Path]:
    """Unmount what nobody uses any more; gives the prefixes that a dry run has left mounted."""
    from condainer.mounting import use

    left = set()
    for project in projects:
        if not arguments.dry_run:
            use.unmount_if_idle(project)
        elif use.is_idle(project):
            console.inform(arguments, f"would unmount {project.prefix}, which nobody uses")
            left.add(project.prefix)
    return frozenset(left)


def _jobs(arguments: argparse.Namespace) -> int:
    """How many processors to use."""
    from condainer.pipeline import schedule

    usable = schedule.usable()
    if arguments.jobs and arguments.jobs > usable:
        text = f"-j {arguments.jobs}: using {usable}, as this process may use no more"
        console.inform(arguments, text)
    return min(arguments.jobs or schedule.MOST, usable)
