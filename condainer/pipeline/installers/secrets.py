"""Hands channels that hold a password or a token to programs, and keeps what they write of them.

Everybody on a machine can read a program's command line, and often its caches. So such channels are
named in files of this user's alone, and what is fetched for them goes into a cache that nobody
else can enter.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import yaml

from condainer import files
from condainer.errors import BuildError
from condainer.pipeline import credentials, lockfile
from condainer.pipeline.installers.channels import of_spec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from condainer.pipeline.installers import Package

_NAME = "condainer-channel-"


class Wanted(NamedTuple):
    """How a program is told what to install.

    Attributes:
        words: for its command line.
        variables: for its environment.
    """

    words: list[str]
    variables: dict[str, str]


def are_in(texts: Sequence[str]) -> bool:
    """Whether there is a password or a token in one of some channels or specs."""
    return any(credentials.without(text) != text for text in texts)


def private_directory(above: Path) -> Path:
    """A directory below another one that only this user can enter; made where it is missing.

    Raises:
        BuildError: where it cannot be had.
    """
    path = above / f"private-{os.getuid()}"
    try:
        above.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        raise BuildError(f"cannot make the directory {path}: {error.strerror}") from error
    if (
        not stat.S_ISDIR(status.st_mode)
        or status.st_uid != os.getuid()
        or stat.S_IMODE(status.st_mode) & 0o077
    ):
        raise BuildError(
            f"{path} can be read by others, and is to hold what a password or token gives",
            f"move it away, or make it yours alone: chmod 700 {path}",
        )
    return path


def for_lock(packages: Sequence[Package], channels: Sequence[str], directory: Path) -> Wanted:
    """An @EXPLICIT file of exact packages.

    Args:
        packages: those of the lock.
        channels: and URLs of packages, as the user has written them; what they hold is put back.
        directory: where files are written that only this user can read.
    """
    path = directory / "explicit.txt"
    known = [channel.partition("#")[0] for channel in channels]
    named = [replace(each, url=credentials.restored(each.url, known)) for each in packages]
    _write(path, "\n".join(["@EXPLICIT", *lockfile.explicit_lines(named), ""]))
    return Wanted(["--file", str(path)], {})


def for_mamba(channels: Sequence[str], specs: Sequence[str], directory: Path) -> Wanted:
    """An environment.yml that names them, as micromamba and mamba read one.

    They find no package for a spec with a token in it, but do for one without.

    Args:
        channels: those to look in.
        specs: what is wanted.
        directory: where files are written that only this user can read.
    """
    path = directory / "environment.yml"
    named = dict(zip(specs, (of_spec(spec)[0] for spec in specs), strict=True))
    secret = [channel for channel in named.values() if are_in([channel])]
    document = {
        "channels": list(dict.fromkeys([*channels, *secret])),
        "dependencies": [credentials.without(spec) if named[spec] else spec for spec in specs],
    }
    _write(path, json.dumps(document))
    return Wanted(["--file", str(path)], {})


def for_conda(
    channels: Sequence[str],
    specs: Sequence[str],
    directory: Path,
    environment: Mapping[str, str],
) -> Wanted:
    """Names for them in a `.condarc` besides those that the user has.

    conda puts the one that the variable CONDARC names last, and so before all others.

    Args:
        channels: those to look in.
        specs: what is wanted.
        directory: where files are written that only this user can read.
        environment: the variables of conda.

    Raises:
        BuildError: where the user's own CONDARC cannot be read.
    """
    named: dict[str, str] = {}

    def name(channel: str) -> str:
        if not are_in([channel]):
            return channel
        return named.setdefault(channel, f"{_NAME}{len(named) + 1}")

    words = [word for channel in channels for word in ("-c", name(channel))]
    for spec in specs:
        channel, separator, rest = spec.rpartition("::")
        words.append(f"{name(channel)}{separator}{rest}" if separator else spec)
    settings = _settings(environment.get("CONDARC", ""))
    own = settings.get("custom_multichannels")
    own = own if isinstance(own, dict) else {}
    own = {**own, **{short: [channel] for channel, short in named.items()}}
    path = directory / ".condarc"
    _write(path, json.dumps({**settings, "custom_multichannels": own}, default=str))
    return Wanted(words, {"CONDARC": str(path)})


def _settings(path: str) -> dict[str, object]:
    """What the user's own file says."""
    if not path:
        return {}
    try:
        document = yaml.safe_load(files.read(os.path.expanduser(path)))  # noqa: PTH111
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise BuildError(f"cannot read {path}, which CONDARC names: {error}") from error
    return document if isinstance(document, dict) else {}


def _write(path: Path, text: str) -> None:
    """Write a file that only this user can read."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with open(path, "w", encoding="utf-8", opener=lambda name, _: os.open(name, flags, 0o600)) as f:
        f.write(text)
