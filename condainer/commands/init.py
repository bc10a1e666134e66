"""`init`: makes a project of a directory."""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING

from condainer.errors import CondainerError, ConfigError
from condainer.project import config, environment

if TYPE_CHECKING:
    from pathlib import Path


def initialise(directory: Path, environment_file: Path | None, *, dry_run: bool) -> list[Path]:
    """Write `condainer.yml` and, where there is none, an example `environment.yml`.

    Args:
        directory: of the project; made where it is missing.
        environment_file: an environment.yml to use instead of the example.
        dry_run: write nothing.

    Returns:
        what was (or would be) written.

    Raises:
        ConfigError: where the directory is a project already, or `environment_file` is broken.
        CondainerError: where it cannot be written.
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
        if not chosen["environment_yml"].isprintable():
            raise ConfigError(
                f"{os.fspath(environment_file)!a} has a name that is not UTF-8 or not printable: "
                "condainer.yml cannot hold it"
            )
    texts = {target: config.template(str(uuid.uuid4()), chosen=chosen)}
    example = directory / "environment.yml"
    if environment_file is None and not os.path.lexists(example):
        texts[example] = environment.EXAMPLE
    if not dry_run:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for path, text in texts.items():
                with path.open("x", encoding="utf-8") as file:
                    file.write(text)
        except OSError as error:
            raise CondainerError(f"cannot write {error.filename}: {error.strerror}") from error
    return list(texts)


def _relative(path: Path, directory: Path) -> str:
    """The file as the project names it: relative where it lies within, so that both can move."""
    absolute = os.path.abspath(path)  # noqa: PTH100  (links stay as they are)
    inside = os.path.relpath(absolute, os.path.abspath(directory))  # noqa: PTH100
    return absolute if inside.startswith("..") else inside
