"""Reads `environment.yml`: which packages an environment is to have.

Each key means what it means to conda
(https://docs.conda.io/projects/conda/en/stable/user-guide/tasks/manage-environments.html).
`pipeline` solves and installs.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from condainer.errors import ConfigError
from condainer.project import yamlfile
from condainer.system import files

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
_LIKENESS = 0.7
_NO_DEFAULTS = "nodefaults"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PATH_LIKE = re.compile(r"(/|\.{1,2}(/|$)|~)")
_CHANNEL_SPEC = re.compile(r"(?P<channel>\S+?)::(?P<rest>\S.*)")
_IN_BRACKETS = re.compile(
    r"(?P<before>[\[,\s]channel\s*=\s*)(?P<quote>[\"']?)"
    r"(?P<channel>(?<=[\"'])[^\"']*|[^\s,\]\"']+)(?P=quote)"
)
_ARCHIVES = (".conda", ".tar.bz2")
_SELECTOR = re.compile(r"sel\((?P<system>linux|unix|osx|win)\)")
_VARIABLE_OF_SHELL = re.compile(r"\$(?P<brace>\{)?(?P<name>\w+)(?(brace)\})", re.ASCII)
_SELECTED = ("linux", "unix")
_SPEC = re.compile(r"(?P<name>[^\s=<>!~\[]+)(?P<version>[^\[]*)(?P<rest>.*)", re.DOTALL)


@dataclass(frozen=True)
class Environment:
    """A checked `environment.yml`.

    Attributes:
        path: the file.
        text: what the file holds.
        name: the environment's name; may be empty.
        channels: names and URLs, the most important first, without `nodefaults`; paths have become
            file:// URLs.
        specs: what conda is to install.
        pip: the lines of the `pip:` list.
        variables: set when the environment is activated, in the order of the file.
        warnings: what is ignored, as conda and mamba do, and why.
    """

    path: Path
    text: str
    name: str
    channels: tuple[str, ...]
    specs: tuple[str, ...]
    pip: tuple[str, ...]
    variables: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...] = ()


def load(path: Path) -> Environment:
    """Read an `environment.yml`.

    Args:
        path: the file.

    Raises:
        ConfigError: If there is none, or if it is wrong: names the file, the line and the reason.
    """
    if files.is_missing(path):
        other = path.with_suffix(".yaml" if path.suffix == ".yml" else ".yml")
        raise ConfigError(
            f"there is no {path}" + ("" if files.is_missing(other) else f", but {other.name}"),
            "write one, or name another file with the key environment_yml in condainer.yml",
        )
    return parse(path, files.read_text(path))


def parse(path: Path, text: str) -> Environment:
    """Read the text of an `environment.yml`.

    Args:
        path: of the file, for messages; relative paths in the text start from its directory.
        text: what the file holds.

    Raises:
        ConfigError: If it is wrong: names the file, the line and the reason.
    """
    document = yamlfile.YamlFile(path, text)
    warnings = _ignored(document)
    base = path.parent
    channels = _channels(document, base, warnings)
    specs, pip = _dependencies(document, base, warnings)
    return Environment(
        path=path,
        text=text,
        name=_name(document),
        channels=tuple(channel for channel in channels if channel != _NO_DEFAULTS),
        specs=specs,
        pip=pip,
        variables=_variables(document, warnings),
        warnings=tuple(warnings),
    )


def _ignored(document: yamlfile.YamlFile) -> list[str]:
    """Warnings about keys that conda ignores: CEP 24 asks for them.

    conda also ignores `prefix` if it is told a place.
    """
    warnings = []
    for name, (key, _) in document.unknown(_KEYS).items():
        close = difflib.get_close_matches(name, _KEYS, n=1, cutoff=_LIKENESS)
        guess = f"; did you mean '{close[0]}'?" if close else ""
        warnings.append(document.error(key, f"the key {name!r} is ignored{guess}").message)
    return warnings


def channel_url(channel: str, base: Path) -> str:
    """A channel as conda reads it: a path becomes a file:// URL, everything else stays.

    Args:
        channel: a name, a URL or a path.
        base: the directory that relative paths start from.

    Raises:
        ValueError: If it looks like a path and cannot be one.
    """
    if not _PATH_LIKE.match(channel):
        return channel.rstrip("/")
    try:
        path = (base / Path(channel).expanduser()).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # no such user, a loop of links, a NUL
        raise ValueError(f"the channel {channel!r} is not a path: {error}") from error
    return "file://" + quote(os.fsencode(path))


def _name(document: yamlfile.YamlFile) -> str:
    node = document.value("name")
    return "" if node is None else document.line(node, "'name'")


def _channels(document: yamlfile.YamlFile, base: Path, warnings: list[str]) -> list[str]:
    """The channels. Shell variables in them are replaced, as conda does it."""
    node = document.value("channels")
    items = [] if node is None else document.sequence(node, "'channels'")
    channels = []
    for item in items:
        text = _text(document, item, "channels")
        for variable in _VARIABLE_OF_SHELL.finditer(text):
            if variable["name"] not in os.environ:
                problem = f"{variable[0]!r} stays as it is: this variable is not set"
                warnings.append(document.error(item, problem).message)
        channel = os.path.expandvars(text).strip()
        with _at(document, item):
            channels.append(channel_url(channel, base))
    return channels


@contextlib.contextmanager
def _at(document: yamlfile.YamlFile, node: yaml.Node) -> Iterator[None]:
    """Name the line of a node in an error about it."""
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
    document: yamlfile.YamlFile, base: Path, warnings: list[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The conda specs and the lines for pip."""
    import yaml

    node = document.value("dependencies")
    items = [] if node is None else document.sequence(node, "'dependencies'")
    specs: list[str] = []
    pip: list[str] = []
    has_pip_list = False
    for item in items:
        if isinstance(item, yaml.MappingNode):
            for name, (key, value) in document.mapping(item, "a dependency").items():
                if name == "pip":
                    has_pip_list = True
                    pip += _pip_lines(document, value)
                elif name.startswith("sel("):
                    specs += _selected(document, name, key, value, base)
                else:
                    warnings.append(_no_kind(document, name, key))
        elif not yamlfile.is_null(item):
            specs.append(_spec(document, item, base))
    if has_pip_list and not pip and not any(names_pip(spec) for spec in specs):
        specs.append("pip")  # to conda, an empty list means that pip is wanted
    if not specs and not pip:
        warnings.append(f"{document.path}: nothing is listed under 'dependencies'")
    return tuple(specs), tuple(pip)


def names_pip(spec: str) -> bool:
    """Whether a spec asks for pip, from any channel and in any version.

    Args:
        spec: a conda spec.
    """
    match = _SPEC.match(spec.rpartition("::")[2])
    return match is not None and match["name"] == "pip"


def _pip_lines(document: yamlfile.YamlFile, node: yaml.Node) -> list[str]:
    items = [] if yamlfile.is_null(node) else document.sequence(node, "'pip:'")
    return [_text(document, item, "pip") for item in items]


def _selected(
    document: yamlfile.YamlFile, name: str, key: yaml.Node, value: yaml.Node, base: Path
) -> list[str]:
    """The spec that one of mamba's selectors chooses on Linux: `sel(linux): name`."""
    match = _SELECTOR.fullmatch(name)
    if match is None:
        known = "sel(linux), sel(unix), sel(osx) and sel(win)"
        raise document.error(key, f"'{name}:' is not one of {known}")
    return [_spec(document, value, base)] if match["system"] in _SELECTED else []


def _no_kind(document: yamlfile.YamlFile, name: str, key: yaml.Node) -> str:
    problem = (
        f"{name + ':'!r} is not a kind of dependency and is ignored; "
        "write a version as '- name=1.2'"
    )
    return document.error(key, problem).message


def _spec(document: yamlfile.YamlFile, item: yaml.Node, base: Path) -> str:
    spec = document.scalar(item, "a dependency").strip()
    if not re.match(r"[A-Za-z0-9_.*\[]|[/~]", spec):
        raise document.error(item, f"'{spec}' is not a package specification")
    with _at(document, item):
        return _resolve_spec(spec, base)


def _resolve_spec(spec: str, base: Path) -> str:
    """Write a spec so that every installer reads it as conda does.

    A path of a channel (before `::`) or of a package becomes a URL.
    """
    if "://" not in spec.partition("::")[0].partition("[")[0]:
        spec = spec.partition("#")[0].rstrip()
        if spec.endswith(_ARCHIVES) and "::" not in spec:
            return channel_url(spec if _PATH_LIKE.match(spec) else f"./{spec}", base)
    spec = _IN_BRACKETS.sub(lambda found: _located(found, base), spec)
    match = _CHANNEL_SPEC.match(spec)
    if match is None:
        return spec if "://" in spec else _in_order(spec)
    channel = match["channel"]
    if _PATH_LIKE.match(channel):
        channel = channel_url(channel, base)
    return f"{channel}::{_in_order(match['rest'])}"


def _located(match: re.Match[str], base: Path) -> str:
    """`channel=PATH` with a URL in place of the path."""
    quote_mark, channel = match["quote"] or "'", match["channel"]
    if not _PATH_LIKE.match(channel):
        return match[0]
    return f"{match['before']}{quote_mark}{channel_url(channel, base)}{quote_mark}"


def _in_order(spec: str) -> str:
    """Remove blanks that conda ignores: `x =1.2 =0` becomes `x =1.2=0`."""
    match = _SPEC.fullmatch(spec)
    if match is None:
        return spec
    name, version, rest = match.groups()
    version = re.sub(r"\s+", " ", version)
    version = re.sub(r"(?<=[<>=!~,|]) | (?=[,|])|(?<=[^ <>=!~,|]) (?==[^=])", "", version).rstrip()
    return name + ("" if version in {"=", " ="} else version) + rest


def _variables(document: yamlfile.YamlFile, warnings: list[str]) -> tuple[tuple[str, str], ...]:
    node = document.value("variables")
    if node is None:
        return ()
    pairs = []
    for name, (key, value) in document.mapping(node, "'variables'").items():
        text = document.scalar(value, f"variable '{name}'")
        if "\0" in text:
            raise document.error(value, f"variable '{name}' holds a NUL byte")
        if _VARIABLE.fullmatch(name):
            pairs.append((name, text))
        else:  # conda accepts it, and the shell then refuses it
            problem = f"{name!r} is ignored: a shell variable cannot have that name"
            warnings.append(document.error(key, problem).message)
    return tuple(pairs)
