"""The environment variables of an activated environment, kept as a snapshot in its image.

A build finds out what the packages' activation scripts do (`pipeline.snapshot`); here is what came
of it, and how it is stored. `variables` applies it to somebody's variables without a shell. The
scripts `activate` and `deactivate` for interactive shells are in `shell`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from condainer.errors import ImageError
from condainer.project.project import METADATA
from condainer.running.variables import WHERE_GIVEN
from condainer.system import files

if TYPE_CHECKING:
    from pathlib import Path

SNAPSHOT = f"{METADATA}/activation.json"
"""Path of the snapshot inside an image."""

_MOST = 16 << 20
"""Bytes of a snapshot: no program can be given more variables than fit into a few of them."""

_REBUILD = "build it again with 'condainer build --force'"
_REFERENCE = re.compile(r"\0([A-Za-z_][A-Za-z0-9_]*)\0")
_SCRIPT = re.compile(r"etc/conda/activate\.d/[^/\0]+\.sh")

SCRIPTS = "etc/conda/activate.d"
"""The directory of the activation scripts, below a prefix."""


@dataclass(frozen=True)
class Snapshot:
    r"""What activation does to the variables.

    Attributes:
        prefix: the environment's prefix.
        name: what the prompt shows.
        variables: name to value, or None where activation unsets it. `\0HOME\0` in a value
            stands for what HOME holds when the snapshot is applied, and so for others; `\0\0`
            before it says that only those get it who have the variable.
        scripts: paths below the prefix of the activation scripts that each caller has to run
            after that, since what they do depends on the caller; mostly none.
        depends: the variables that these can depend on; None where they may look at all.
        is_kept: whether they do the same again for the same caller.
        touched: all variables that the scripts have changed, or name as changed.
    """

    prefix: str
    name: str
    variables: tuple[tuple[str, str | None], ...]
    scripts: tuple[str, ...] = ()
    depends: tuple[str, ...] | None = ()
    is_kept: bool = True
    touched: tuple[str, ...] = ()

    @property
    def to_run(self) -> tuple[tuple[str, ...], tuple[str, ...] | None, bool]:
        """The scripts by their full paths, what they depend on, and whether that is all."""
        paths = tuple(f"{self.prefix}/{script}" for script in self.scripts)
        return paths, self.depends, self.is_kept

    def to_json(self) -> dict[str, Any]:
        """The form in which it is stored."""
        depends = None if self.depends is None else list(self.depends)
        return {
            "prefix": self.prefix,
            "name": self.name,
            "variables": dict(self.variables),
            "scripts": list(self.scripts),
            "depends": depends,
            "is_kept": self.is_kept,
            "touched": list(self.touched),
        }


def from_json(data: object, source: str = "the image") -> Snapshot:
    """Read the stored form.

    Args:
        data: what was stored.
        source: names in errors where it comes from.

    Raises:
        ImageError: where it is not what it should be.
    """
    try:
        return _snapshot(data)
    except (TypeError, ValueError):
        raise ImageError(
            f"the activation snapshot of {source} is not what it should be", _REBUILD
        ) from None


def _snapshot(data: object) -> Snapshot:
    """Read the stored form; ValueError where it is another one."""
    if not isinstance(data, dict):
        raise ValueError(data)  # noqa: TRY004
    prefix, name, variables = (data.get(key) for key in ("prefix", "name", "variables"))
    depends, is_kept = data.get("depends", []), data.get("is_kept", True)
    if not (
        isinstance(prefix, str)
        and isinstance(name, str)
        and isinstance(variables, dict)
        and all(_is_variable(*pair) for pair in variables.items())
        and isinstance(is_kept, bool)
    ):
        raise ValueError(data)
    scripts = _texts(data.get("scripts", []))
    if not all(map(_SCRIPT.fullmatch, scripts)):
        raise ValueError(data)
    return Snapshot(
        *(prefix, name, tuple(variables.items()), scripts),
        depends=None if depends is None else _texts(depends),
        is_kept=is_kept,
        touched=_texts(data.get("touched", [])),
    )


def _texts(data: object) -> tuple[str, ...]:
    if not isinstance(data, list) or not all(isinstance(e, str) and _is_text(e) for e in data):
        raise ValueError(data)
    return tuple(data)


def _is_variable(name: str, value: object) -> bool:
    """Whether a program can be given a variable: what `execve` cannot take is refused here."""
    if not name or "=" in name or not _is_text(name):
        return False
    if isinstance(value, str):
        value = value.removeprefix(WHERE_GIVEN)
    return value is None or (isinstance(value, str) and _is_text(_REFERENCE.sub("", value)))


def _is_text(text: str) -> bool:
    """Whether the kernel can be given a text; it may stand for bytes that are not UTF-8."""
    try:
        return b"\0" not in text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return False


def load(mounted: Path, prefix: Path | None = None) -> Snapshot:
    """Read the snapshot of a mounted environment.

    Args:
        mounted: where this process sees it.
        prefix: where it belongs, if that is another path.

    Raises:
        ImageError: where there is none, or it cannot be read.
    """
    prefix = prefix or mounted
    path = mounted / SNAPSHOT
    try:
        data = files.read_json(path, within=mounted, most=_MOST)
    except FileNotFoundError:
        raise ImageError(
            f"the image at {prefix} has no {SNAPSHOT}: it was not built by this condainer",
            _REBUILD,
        ) from None
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror}", _REBUILD) from error
    except ValueError as error:
        raise ImageError(f"cannot read {path}: {error}", _REBUILD) from error
    snapshot = from_json(data, f"the image at {prefix}")
    if snapshot.prefix != str(prefix):
        raise ImageError(
            f"the image was built for {snapshot.prefix}, but is mounted at {prefix}",
            "set mount_base_directory in condainer.yml back, or run 'condainer build --force'",
        )
    return snapshot
