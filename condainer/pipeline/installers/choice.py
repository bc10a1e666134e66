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
    """The installer to use.

    Args:
        config: its `conda_exe` counts after `asked` and the variable CONDAINER_INSTALLER.
        asked: name or path from the command line.
        only_looks: whether nothing may be run that a project brings along: `conda_exe` then only
            chooses between the usual names on PATH.
        on_note: told in one line where another is taken than the project names.

    Raises:
        ToolError: where one that was asked for is not there.
    """
    own = config.conda_exe
    for name, strict, is_project in (
        (asked, True, False),
        (os.environ.get("CONDAINER_INSTALLER", ""), True, False),
        # Older projects name a 'mamba' that they brought along: no error where there is none.
        (own, "/" in own, own not in tools.MAMBA_FAMILY),
    ):
        if name == RATTLER:
            return _rattler()
        if name:
            path = _executable(name)
            if path is not None and only_looks and is_project:
                on_note(f"conda_exe: '{name}' is run by a build alone; taking {_FIRST}")
                continue
            if path is not None:
                return mamba.Mamba(path)
            if strict:
                raise ToolError(
                    f"the installer '{name}' was not found",
                    f"name one of {', '.join(tools.MAMBA_FAMILY)}, a path to one, or {RATTLER}",
                )
            on_note(f"conda_exe: '{name}' was not found; taking {_FIRST}")
    for name in tools.MAMBA_FAMILY:
        path = tools.which(name)
        if path is not None:
            return mamba.Mamba(path)
    return _rattler()


def _rattler() -> Installer:
    from condainer.pipeline.installers.rattler import Rattler

    return Rattler()


def _executable(name: str) -> Path | None:
    if "/" not in name:
        return tools.which(name)
    path = Path(os.path.expanduser(name)).absolute()  # noqa: PTH111  (there may be no such user)
    return path if os.access(path, os.X_OK) and path.is_file() else None
