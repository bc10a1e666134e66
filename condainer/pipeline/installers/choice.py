"""Chooses the installer of a build."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from condainer.errors import ToolError
from condainer.pipeline.installers import mamba
from condainer.system import tools

if TYPE_CHECKING:
    from collections.abc import Callable

    from condainer.pipeline.installers.interface import Installer
    from condainer.project.config import Config

RATTLER = "rattler"
_FIRST = "the first installer there is"


def choose(
    config: Config,
    asked: str = "",
    *,
    only_looks: bool = False,
    on_note: Callable[[str], None] = lambda _: None,
) -> Installer:
    """Choose the installer.

    The command line counts first, then the variable CONDAINER_INSTALLER, then the key conda_exe,
    then what is on PATH.

    Args:
        config: of the project.
        asked: name or path from the command line; empty if there is none.
        only_looks: whether no program of the project may be run: conda_exe then only chooses
            between the usual names on PATH.
        on_note: takes one line if the installer is another one than conda_exe names.

    Raises:
        ToolError: If an installer that was asked for is not there.
    """
    name = asked or os.environ.get("CONDAINER_INSTALLER", "")
    if not name:
        return _of_project(config, on_note, only_looks=only_looks) or _first()
    installer = _named(name)
    if installer is None:
        raise _not_found(name)
    return installer


def _of_project(
    config: Config, on_note: Callable[[str], None], *, only_looks: bool
) -> Installer | None:
    """The installer that the key conda_exe names; None if there is none, or none to be run now."""
    name = config.conda_exe
    installer = _named(name) if name else None
    if installer is None:
        if "/" in name:
            raise _not_found(name)
        if name:
            # Older projects name a 'mamba' that they brought along, so this is no error.
            on_note(f"conda_exe: '{name}' was not found; taking {_FIRST}")
        return None
    if only_looks and name not in {*tools.MAMBA_FAMILY, RATTLER}:
        on_note(f"conda_exe: only a build runs '{name}'; taking {_FIRST}")
        return None
    return installer


def _named(name: str) -> Installer | None:
    if name == RATTLER:
        return _rattler()
    path = _executable(name)
    return mamba.Mamba(path) if path else None


def _first() -> Installer:
    """The first of the mamba family on PATH, or else the engine that comes with condainer."""
    paths = (tools.which(name) for name in tools.MAMBA_FAMILY)
    path = next(filter(None, paths), None)
    return mamba.Mamba(path) if path else _rattler()


def _not_found(name: str) -> ToolError:
    return ToolError(
        f"the installer '{name}' was not found",
        f"name one of {', '.join(tools.MAMBA_FAMILY)}, a path to one, or {RATTLER}",
    )


def _rattler() -> Installer:
    from condainer.pipeline.installers.rattler import Rattler

    return Rattler()


def _executable(name: str) -> Path | None:
    if "/" not in name:
        return tools.which(name)
    path = Path(os.path.expanduser(name)).absolute()  # noqa: PTH111  (there may be no such user)
    return path if os.access(path, os.X_OK) and path.is_file() else None
