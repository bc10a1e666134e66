"""What there is to install: specs and channels, or a list of archives.

This module reads the files that `create --file` takes.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import yaml

from tests.standin.errors import CriticalError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.standin.arguments import Options

_CONDA_ORG = "https://conda.anaconda.org"
_SHA256_LENGTH = 64


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A line of an explicit list.

    Attributes:
        url: Where the archive is.
        algorithm: `md5` or `sha256`.
        digest: What it has to be, or None if the list does not say.
    """

    url: str
    algorithm: str
    digest: str | None


@dataclass(frozen=True, kw_only=True)
class Request:
    """What there is to install.

    Attributes:
        channels: URLs of channels, most wanted first.
        specs: What the environment has to have.
        archives: The packages of an explicit list; then there is nothing to solve.
        is_mixed: There are specs, and URLs of packages among them.
        priority: How channels stand to each other, in the words of `.condarc`.
    """

    channels: tuple[str, ...] = ()
    specs: tuple[str, ...] = ()
    archives: tuple[Archive, ...] = ()
    is_mixed: bool = False
    priority: str = "flexible"


def read(options: Options) -> Request:
    """Put together what the command line and its files ask for.

    Raises:
        CriticalError: if a file cannot be read, or a setting in the environment is not a boolean.
    """
    if os.environ.get("MAMBA_ALWAYS_YES", "true") not in {"true", "false"}:
        raise CriticalError("MAMBA_ALWAYS_YES is neither true nor false")
    channels = list(options.channels)
    specs = list(options.specs)
    for file in options.files:
        text = _text(file)
        if "@EXPLICIT" in text.splitlines():
            return Request(archives=tuple(_archives(text)))
        if file.suffix in {".yml", ".yaml"}:
            found = _environment(file, text)
            channels += found.channels
            specs += found.specs
        else:
            lines = (line.strip() for line in text.splitlines())
            specs += [line for line in lines if line and not line.startswith("#")]
    configured = _configured(Path.home() / ".condarc")
    if not options.override_channels:
        channels += configured.get("channels", [])
    variable = "CONDA_CHANNEL_PRIORITY" if options.is_conda else "MAMBA_CHANNEL_PRIORITY"
    priority = os.environ.get(variable) or configured.get("channel_priority", "flexible")
    named = _named(options)
    channels = [url for channel in channels for url in named.get(channel, [channel])]
    for name, (url, *_) in named.items():
        specs = [re.sub(f"^{re.escape(name)}::", f"{url}::", spec) for spec in specs]
    urls = [_url(channel, options) for channel in channels if channel != "nodefaults"]
    archives = [spec for spec in specs if re.match(r"\w+://.*\.(conda|tar\.bz2)(#|$)", spec)]
    return Request(
        channels=tuple(dict.fromkeys(urls)),
        specs=tuple(specs),
        is_mixed=0 < len(archives) < len(specs),
        priority=priority,
    )


def _named(options: Options) -> dict[str, list[str]]:
    """The channels that conda has names for."""
    file = Path(os.environ.get("CONDARC") or os.devnull)
    document = yaml.safe_load(file.read_text()) if options.is_conda else None
    return dict((document or {}).get("custom_multichannels", {}))


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError as error:
        raise CriticalError(f"File '{file}' could not be read: {error.strerror}") from error


def _environment(file: Path, text: str) -> Request:
    """Read an `environment.yml`."""
    document = yaml.safe_load(text)
    dependencies = document.get("dependencies", [])
    if not all(isinstance(dependency, str) for dependency in dependencies):
        raise CriticalError(f"{file}: this stand-in installs nothing with pip")
    return Request(channels=tuple(document.get("channels", [])), specs=tuple(dependencies))


def _configured(file: Path) -> dict[str, Any]:
    """Read what a user has configured."""
    document = yaml.safe_load(file.read_text()) if file.exists() else None
    return dict(document or {})


def _archives(text: str) -> Sequence[Archive]:
    """Read the lines of an explicit list."""
    lines = (line.strip() for line in text.splitlines())
    archives = []
    for line in lines:
        if not re.match(r"\w+://", line):
            continue
        url, _, digest = line.partition("#")
        digest = digest.rpartition(":")[2]
        algorithm = "sha256" if len(digest) == _SHA256_LENGTH else "md5"
        archives.append(Archive(url=url, algorithm=algorithm, digest=digest or None))
    return archives


def _url(channel: str, options: Options) -> str:
    """Write a channel as a URL, without a slash at the end.

    Raises:
        CriticalError: if its path has a space, which is too much for micromamba.
    """
    if options.is_conda:
        channel = channel.replace(" ", "%20")
    elif " " in unquote(channel):
        raise CriticalError(f"Subdir {channel} not loaded!")
    if channel.startswith("/"):
        channel = f"file://{channel}"
    if "://" not in channel:
        channel = f"{_CONDA_ORG}/{channel}"
    return channel.rstrip("/")
