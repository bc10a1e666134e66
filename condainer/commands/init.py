"""`init`: turns a directory into a project."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from condainer.commands import console
from condainer.errors import CondainerError, ConfigError
from condainer.project import config, environment
from condainer.project import project as project_module

if TYPE_CHECKING:
    import argparse

EXAMPLES = """\
  condainer init
  condainer -d project init --environment ../environment.yml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `init`.

    Args:
        parser: takes them.
    """
    parser.add_argument(
        "--environment",
        type=Path,
        metavar="FILE",
        help="use this environment.yml, and write no example",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write `condainer.yml` and, if there is none yet, an example `environment.yml`.

    Args:
        arguments: the parsed command line.

    Returns:
        The exit status.
    """
    directory = project_module.absolute(arguments.directory)
    texts = _texts(directory, arguments.environment)
    if not arguments.dry_run:
        _write(directory, texts)
    verb = "would write" if arguments.dry_run else "wrote"
    for path in texts:
        console.inform(arguments, f"{verb} {path}")
    if not arguments.dry_run:
        console.inform(arguments, "next: edit environment.yml, then run 'condainer build'")
    return 0


def _texts(directory: Path, environment_file: Path | None) -> dict[Path, str]:
    """The files to write, with their contents.

    Args:
        directory: of the project.
        environment_file: the environment.yml to use; None for an example.

    Raises:
        ConfigError: If the directory is a project already, or if `environment_file` is broken.
    """
    target = directory / config.CONFIG_NAME
    if os.path.lexists(target):
        raise ConfigError(
            f"{directory} is a condainer project already", f"edit {target} to change it"
        )
    chosen = {}
    if environment_file is not None:
        environment.load(environment_file)
        chosen["environment_yml"] = _relative(environment_file, directory)
    texts = {target: config.template(str(uuid.uuid4()), chosen=chosen)}
    example = directory / "environment.yml"
    if environment_file is None and not os.path.lexists(example):
        texts[example] = environment.EXAMPLE
    return texts


def _write(directory: Path, texts: dict[Path, str]) -> None:
    """Write new files; none replaces one that is there.

    Raises:
        CondainerError: If one cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise CondainerError(f"cannot write {error.filename}: {error.strerror}") from error


def _relative(path: Path, directory: Path) -> str:
    """The path as `condainer.yml` names it: relative if it is inside, so that both can move.

    Raises:
        ConfigError: If the file cannot hold such a name.
    """
    absolute = os.path.abspath(path)  # noqa: PTH100  (links stay as they are)
    inside = os.path.relpath(absolute, os.path.abspath(directory))  # noqa: PTH100
    name = absolute if inside.startswith("..") else inside
    if not name.isprintable():
        raise ConfigError(
            f"{os.fspath(path)!a} has a name that is not UTF-8 or not printable: condainer.yml "
            "cannot hold it"
        )
    return name
