"""Hands channels with a password or token to programs, and keeps what they write private.

Everybody on a machine can read command lines, and often caches. So these channels are named in
files that only this user can read, and what is fetched goes into a cache that nobody else can
enter.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import yaml

from condainer.errors import BuildError
from condainer.pipeline import credentials, lockfile
from condainer.pipeline.installers.channels import of_spec
from condainer.system import files

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from condainer.pipeline.packages import Package

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
    """Whether one of some channels or specs holds a password or token.

    Args:
        texts: the channels or specs.
    """
    return any(credentials.without(text) != text for text in texts)


def private_directory(above: Path) -> Path:
    """Make a directory that only this user can enter, if it is missing.

    Args:
        above: the directory that it is in.

    Raises:
        BuildError: If it cannot be made, or others can enter it.
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
            f"others can read {path}, where packages are kept that need a password or token",
            f"move it away, or run: chmod 700 {path}",
        )
    return path


def for_lock(packages: Sequence[Package], channels: Sequence[str], directory: Path) -> Wanted:
    """Write an @EXPLICIT file of exact packages.

    Args:
        packages: those of the lock.
        channels: and URLs of packages, as the user has written them; their credentials are put into
            the URLs.
        directory: where files are written that only this user can read.
    """
    path = directory / "explicit.txt"
    known = [channel.partition("#")[0] for channel in channels]
    named = [replace(each, url=credentials.restored(each.url, known)) for each in packages]
    credentials.write(path, "\n".join(["@EXPLICIT", *lockfile.explicit_lines(named), ""]))
    return Wanted(["--file", str(path)], {})


def for_mamba(channels: Sequence[str], specs: Sequence[str], directory: Path) -> Wanted:
    """Write an environment.yml with channels and specs, for micromamba and mamba.

    They find no package for a spec with a token in it, but do for one without.

    Args:
        channels: those to look in.
        specs: what to install.
        directory: where files are written that only this user can read.
    """
    path = directory / "environment.yml"
    named = dict(zip(specs, (of_spec(spec)[0] for spec in specs), strict=True))
    secret = [channel for channel in named.values() if are_in([channel])]
    document = {
        "channels": list(dict.fromkeys([*channels, *secret])),
        "dependencies": [credentials.without(spec) if named[spec] else spec for spec in specs],
    }
    credentials.write(path, json.dumps(document))
    return Wanted(["--file", str(path)], {})


def for_conda(
    channels: Sequence[str],
    specs: Sequence[str],
    directory: Path,
    environment: Mapping[str, str],
) -> Wanted:
    """Write a `.condarc` that gives names to channels, besides those that the user has.

    conda gives the file that the variable CONDARC names precedence over all others.

    Args:
        channels: those to look in.
        specs: what to install.
        directory: where files are written that only this user can read.
        environment: the variables of conda.

    Raises:
        BuildError: If the user's own CONDARC cannot be read.
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
    credentials.write(path, json.dumps({**settings, "custom_multichannels": own}, default=str))
    return Wanted(words, {"CONDARC": str(path)})


def _settings(path: str) -> dict[str, object]:
    """The settings in the user's own file."""
    if not path:
        return {}
    try:
        document = yaml.safe_load(files.read(os.path.expanduser(path)))  # noqa: PTH111
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise BuildError(f"cannot read {path}, which CONDARC names: {error}") from error
    return document if isinstance(document, dict) else {}
