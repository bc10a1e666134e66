"""`environment.yml`: what conda knows of it, parsed and checked.

The meaning of each part is conda's own
(https://docs.conda.io/projects/conda/en/stable/user-guide/tasks/manage-environments.html).
Solving and installing are the business of `pipeline`.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from condainer import files, yamlfile
from condainer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import yaml

EXAMPLE = """\
# What goes into the environment; see
# https://docs.conda.io/projects/conda/en/stable/user-guide/tasks/manage-environments.html
name: myenv
channels:
  - conda-forge
  - nodefaults
dependencies:
  - python=3.12
  - numpy
  - pandas
"""

_KEYS = ("name", "channels", "dependencies", "variables", "prefix")
_NO_DEFAULTS = "nodefaults"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PATH_LIKE = re.compile(r"(/|\.{1,2}(/|$)|~)")
_CHANNEL_SPEC = re.compile(r"(?P<channel>\S+?)::(?P<rest>\S.*)")


@dataclass(frozen=True)
class Environment:
    """A checked `environment.yml`.

    Attributes:
        path: the file.
        text: the file as given.
        name: the environment's name; may be empty.
        channels: names and URLs in order of priority, without `nodefaults`; paths have become
            file:// URLs.
        specs: what conda is to install.
        pip: the lines of the `pip:` list.
        variables: set when the environment is activated, in the order of the file.
    """

    path: Path
    text: str
    name: str
    channels: tuple[str, ...]
    specs: tuple[str, ...]
    pip: tuple[str, ...]
    variables: tuple[tuple[str, str], ...]


def load(path: Path) -> Environment:
    """Read an `environment.yml`.

    Raises:
        ConfigError: where there is none, or where it is broken: file, line, reason.
    """
    if files.is_missing(path):
        raise ConfigError(
            f"there is no {path}",
            "write one, or name another with the key environment_yml of condainer.yml",
        )
    return parse(path, files.read_text(path))


def parse(path: Path, text: str) -> Environment:
    """Read the text of an `environment.yml`; paths in it count from the file's directory.

    Raises:
        ConfigError: with file, line and reason.
    """
    document = yamlfile.YamlFile(path, text)
    document.check_keys(_KEYS)
    prefix = document.value("prefix")
    if prefix is not None:  # conda pays no heed to it either where it is told of a place
        document.scalar(prefix, "'prefix'")
    base = path.parent
    channels = _channels(document, base)
    specs, pip = _dependencies(document, base)
    return Environment(
        path=path,
        text=text,
        name=_name(document),
        channels=tuple(channel for channel in channels if channel != _NO_DEFAULTS),
        specs=specs,
        pip=pip,
        variables=_variables(document),
    )


def channel_url(channel: str, base: Path) -> str:
    """A channel as conda reads it: a path becomes a file:// URL, the rest stays.

    Args:
        channel: a name, a URL or a path.
        base: the directory that relative paths count from.

    Raises:
        ValueError: where it looks like a path and cannot be one.
    """
    if not _PATH_LIKE.match(channel):
        return channel.rstrip("/")
    try:
        path = (base / Path(channel).expanduser()).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # no such user, links in a circle, a NUL
        raise ValueError(f"the channel {channel!r} is not a path: {error}") from error
    return "file://" + quote(os.fsencode(path))


def _name(document: yamlfile.YamlFile) -> str:
    node = document.value("name")
    return "" if node is None else document.line(node, "'name'")


def _channels(document: yamlfile.YamlFile, base: Path) -> list[str]:
    node = document.value("channels")
    items = [] if node is None else document.sequence(node, "'channels'")
    channels = []
    for item in items:
        with _at(document, item):
            channels.append(channel_url(_text(document, item, "channels"), base))
    return channels


@contextlib.contextmanager
def _at(document: yamlfile.YamlFile, node: yaml.Node) -> Iterator[None]:
    """Name the line in an error about something that stands there."""
    try:
        yield
    except ValueError as error:
        raise document.error(node, str(error)) from error


def _text(document: yamlfile.YamlFile, item: yaml.Node, key: str) -> str:
    text = document.scalar(item, f"an item of '{key}:'").strip()
    if not text:
        raise document.error(item, f"'{key}:' has an empty item")
    return text


def _dependencies(
    document: yamlfile.YamlFile, base: Path
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The conda specs and the lines for pip."""
    import yaml

    node = document.value("dependencies")
    if node is None:
        raise ConfigError(
            f"{document.path}: there is nothing under 'dependencies'",
            "list the packages to install there, for example '- python=3.12'",
        )
    specs: list[str] = []
    pip: list[str] = []
    for item in document.sequence(node, "'dependencies'"):
        if isinstance(item, yaml.MappingNode):
            pip += _pip_lines(document, item)
            continue
        spec = document.scalar(item, "a dependency").strip()
        if not re.match(r"[A-Za-z0-9_.*\[]|[/~]", spec):
            raise document.error(item, f"'{spec}' is not a package specification")
        with _at(document, item):
            specs.append(_resolve_spec(spec, base))
    return tuple(specs), tuple(pip)


def _pip_lines(document: yamlfile.YamlFile, node: yaml.Node) -> list[str]:
    lines = []
    for name, (key, value) in document.mapping(node, "a dependency").items():
        if name != "pip":
            raise document.error(
                key,
                f"'{name}:' is not a kind of dependency",
                "only 'pip:' takes a list; a version is written as '- name=1.2'",
            )
        items = document.sequence(value, "'pip:'")
        lines += [_text(document, item, "pip") for item in items]
    return lines


def _resolve_spec(spec: str, base: Path) -> str:
    """Make the path before `::` a URL, as among the channels."""
    match = _CHANNEL_SPEC.match(spec)
    if match and _PATH_LIKE.match(match["channel"]):
        return f"{channel_url(match['channel'], base)}::{match['rest']}"
    return spec


def _variables(document: yamlfile.YamlFile) -> tuple[tuple[str, str], ...]:
    node = document.value("variables")
    if node is None:
        return ()
    pairs = []
    for name, (key, value) in document.mapping(node, "'variables'").items():
        if not _VARIABLE.fullmatch(name):
            raise document.error(key, f"'{name}' is not a name of a variable")
        text = document.scalar(value, f"variable '{name}'")
        if "\0" in text:
            raise document.error(value, f"variable '{name}' holds a NUL byte")
        pairs.append((name, text))
    return tuple(pairs)
