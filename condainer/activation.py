"""The environment variables of an activated environment, kept as a snapshot in its image.

A build runs the packages' activation scripts once (`pipeline.snapshot`); here is what came of it,
and how it is stored. `variables` applies it to somebody's variables without starting a shell. The
scripts `activate` and `deactivate` for interactive shells are in `shell`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from condainer import files
from condainer.errors import ImageError
from condainer.project import METADATA

if TYPE_CHECKING:
    from pathlib import Path

SNAPSHOT = f"{METADATA}/activation.json"
"""Path of the snapshot inside an image."""

_MOST = 16 << 20
"""Bytes of a snapshot: no program can be given more variables than fit into a few of them."""

_REBUILD = "build it again with 'condainer build --force'"
_REFERENCE = re.compile(r"\0([A-Za-z_][A-Za-z0-9_]*)\0")


@dataclass(frozen=True)
class Snapshot:
    r"""What activation does to the variables.

    Attributes:
        prefix: the environment's prefix.
        name: what the prompt shows.
        variables: name to value, or None where activation unsets it. `\0HOME\0` in a value
            stands for what HOME holds when the snapshot is applied, and so for others.
    """

    prefix: str
    name: str
    variables: tuple[tuple[str, str | None], ...]

    def to_json(self) -> dict[str, Any]:
        """The form in which it is stored."""
        return {"prefix": self.prefix, "name": self.name, "variables": dict(self.variables)}


def from_json(data: object, source: str = "the image") -> Snapshot:
    """Read the stored form.

    Args:
        data: what was stored.
        source: names in errors where it comes from.

    Raises:
        ImageError: where it is not what it should be.
    """
    if isinstance(data, dict):
        prefix, name, variables = (data.get(key) for key in ("prefix", "name", "variables"))
        if (
            isinstance(prefix, str)
            and isinstance(name, str)
            and isinstance(variables, dict)
            and all(_is_variable(*pair) for pair in variables.items())
        ):
            return Snapshot(prefix, name, tuple(variables.items()))
    raise ImageError(f"the activation snapshot of {source} is not what it should be", _REBUILD)


def _is_variable(name: str, value: object) -> bool:
    """Whether a program can be given a variable: what `execve` cannot take is refused here."""
    if not name or "=" in name or not _is_text(name):
        return False
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
