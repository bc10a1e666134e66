"""`mount`: mounts the image until `umount`; for `activate`, holds the mount for a shell."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from condainer.commands import console
from condainer.mounting import backends, target, use
from condainer.project import project as project_module
from condainer.running import shell

if TYPE_CHECKING:
    import argparse

    from condainer.project.project import Project

EXAMPLES = """\
  condainer mount                    mount the image
  ls $(condainer mount --print)/bin  mount it, and list its programs
"""

_NO_DESCRIPTOR = -1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `mount`.

    Args:
        parser: takes them.
    """
    parser.add_argument(
        "--print", action="store_true", help="print the directory where the image is mounted"
    )
    parser.add_argument(
        "--for-shell",
        nargs="?",
        type=int,
        const=_NO_DESCRIPTOR,
        metavar="FD",
        help="used by 'activate': print the lock file, or hold the mount with the descriptor FD "
        "that is open on it",
    )
    parser.add_argument(
        "--backend",
        default="auto",
        choices=("auto", "squashfuse_ll", "squashfuse", "python", "fusepy", "extract", "kernel"),
        help="what mounts the image (default: the first that works; 'extract' unpacks the image "
        "instead; 'kernel' needs root)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Mount the image.

    Args:
        arguments: the parsed command line.

    Returns:
        The exit status.
    """
    project = project_module.open_project(arguments.directory)
    if arguments.dry_run:
        return _say_what_would_happen(project, arguments)
    if arguments.for_shell == _NO_DESCRIPTOR:
        use.check_image(project)
        console.write_path(use.offer(project))
        return 0
    if arguments.for_shell is not None and not use.is_offered(project, arguments.for_shell):
        return shell.TRY_AGAIN  # a mount that nobody could hold would go, and the file with it
    held = use.use(
        project,
        arguments.backend,
        on_note=console.notes(arguments),
        on_warning=console.warnings(arguments),
    )
    backend = _backend(project, arguments)
    if arguments.for_shell is not None:
        return _hold_for_shell(project, arguments.for_shell)
    use.pin(project)
    os.close(held.descriptor)
    if arguments.verbose:
        console.inform(arguments, f"{project.image} is mounted at {project.prefix} with {backend}")
    if arguments.print:
        console.write_path(project.prefix)
    elif not arguments.verbose:
        console.inform(arguments, f"mounted at {project.prefix}")
    return 0


def _say_what_would_happen(project: Project, arguments: argparse.Namespace) -> int:
    backend = backends.choose(arguments.backend).name
    use.check_image(project)
    text = f"would mount {project.image} at {project.prefix} with {backend}"
    console.inform(arguments, text)
    return 0


def _backend(project: Project, arguments: argparse.Namespace) -> str:
    """The name of the backend that serves the mount, which may be another than asked for."""
    mount = target.look(project).mount
    backend = backends.name_of(mount.kind) if mount else str(arguments.backend)
    if arguments.backend not in {"auto", backend}:
        text = f"{project.prefix} is already mounted with {backend}, and stays so"
        console.inform(arguments, text)
    return backend


def _hold_for_shell(project: Project, descriptor: int) -> int:
    """Let a shell's descriptor hold the mount, and print which Python the shell is to run."""
    if not use.share(project, descriptor):
        return shell.TRY_AGAIN
    console.write(f"{shell.of_python(project.config)}\n")
    return 0
