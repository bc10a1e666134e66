"""Reads conda's configuration, for the installer that comes with condainer.

conda and mamba read their `.condarc` themselves. This module reads the keys that say where packages
come from and how they are fetched. The places of the files, and the way in which they add up, are
conda's: https://docs.conda.io/projects/conda/en/stable/user-guide/configuration/use-condarc.html
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from condainer.errors import ConfigError
from condainer.project import yamlfile
from condainer.project.values import CHANNEL_PRIORITIES
from condainer.system import files

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import yaml

ALIAS = "https://conda.anaconda.org"
"""The URL below which channels are that only have a name."""

_ANACONDA = "https://repo.anaconda.com"
_DEFAULTS = (f"{_ANACONDA}/pkgs/main", f"{_ANACONDA}/pkgs/r")
_PARTS = ("pkgs/main", "pkgs/r", "pkgs/msys2", "pkgs/free")
_CUSTOM = {"pkgs/pro": _ANACONDA}
_PRIORITIES = {"true": "flexible", "yes": "flexible", "false": "disabled", "no": "disabled"}
_FALSE, _TRUE = {"false", "no", "off", "0"}, {"true", "yes", "on", "1"}
_SYSTEM_STORE = {"truststore", "<system>"}
_VARIABLES = {
    "CONDA_CHANNELS": "channels",
    "CONDA_DEFAULT_CHANNELS": "default_channels",
    "CONDA_CHANNEL_ALIAS": "channel_alias",
    "CONDA_CHANNEL_PRIORITY": "channel_priority",
    "CONDA_SSL_VERIFY": "ssl_verify",
}
_FINAL = "#!final"
"""Follows a key that later files may not change."""


@dataclass(frozen=True)
class Condarc:
    """conda's configuration; each field has conda's own name and default.

    Attributes:
        channels: those to use if environment.yml names none; empty if conda is not told either.
        channel_alias: a URL, without a slash at the end.
        channel_priority: one of `CHANNEL_PRIORITIES`.
        custom_channels: name to the URL below which the channel is found by its name.
        custom_multichannels: name to channels; `defaults` and `local` are among them.
        ssl_verify: whether certificates of servers are checked.
        certificates: the file or directory with trusted certificates; empty for the system's.
        proxy_servers: SCHEME, SCHEME://HOST, all://HOST or `all` to URL; an empty URL is no proxy.
    """

    channels: tuple[str, ...] = ()
    channel_alias: str = ALIAS
    channel_priority: str = CHANNEL_PRIORITIES[0]
    custom_channels: Mapping[str, str] = field(default_factory=dict)
    custom_multichannels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ssl_verify: bool = True
    certificates: str = ""
    proxy_servers: Mapping[str, str] = field(default_factory=dict)


def load(variables: Mapping[str, str] | None = None) -> Condarc:
    """Read all files and variables that conda reads.

    Args:
        variables: of the environment; None means those of this process.

    Raises:
        ConfigError: If a file cannot be parsed.
    """
    variables = os.environ if variables is None else variables
    layers = _Layers([*_files(variables), *_of_environment(variables)])
    verify = layers.text("ssl_verify", "verify_ssl")
    defaults = layers.items("default_channels")
    multichannels = layers.lists("custom_multichannels")
    multichannels["defaults"] = defaults or _DEFAULTS
    multichannels["local"] = _local(layers, variables)
    parts = {} if defaults else dict.fromkeys(_PARTS, _ANACONDA)
    return Condarc(
        channels=layers.items("channels", "channel"),
        channel_alias=_alias(layers),
        channel_priority=_priority(layers),
        custom_channels={**parts, **(layers.texts("custom_channels") or _CUSTOM)},
        custom_multichannels=multichannels,
        ssl_verify=verify.lower() not in _FALSE,
        certificates=_certificates(verify, variables),
        proxy_servers=layers.texts("proxy_servers"),
    )


class _Layers:
    """What several files say about a key: later files come first, and lists and maps add up."""

    def __init__(self, documents: Iterable[tuple[yamlfile.YamlFile, list[str]]]) -> None:
        self._documents = list(documents)

    def _found(self, names: Iterable[str]) -> Iterator[tuple[yamlfile.YamlFile, yaml.Node]]:
        for document, lines in self._documents:
            for name in names:
                key, _ = document.items.get(name, (None, None))
                node = document.value(name)
                if key is None or node is None:
                    continue
                yield document, node
                if lines and _FINAL in lines[key.start_mark.line].replace(" ", ""):
                    return

    def text(self, *names: str) -> str:
        """One value; empty if there is none."""
        found = ""
        for document, node in self._found(names):
            found = _expanded(document, node, names[0])
        return found

    def items(self, *names: str) -> tuple[str, ...]:
        """A list."""
        lists = [_list(document, node, names[0]) for document, node in self._found(names)]
        return tuple(dict.fromkeys(item for items in reversed(lists) for item in items))

    def texts(self, name: str) -> dict[str, str]:
        """A mapping to texts, without those that are null."""
        found = {
            key: None if yamlfile.is_null(value) else _expanded(document, value, name)
            for document, node in self._found([name])
            for key, (_, value) in document.mapping(node, f"'{name}'").items()
        }
        return {key: value for key, value in found.items() if value is not None}

    def lists(self, name: str) -> dict[str, tuple[str, ...]]:
        """A mapping to lists."""
        return {
            key: _list(document, value, name)
            for document, node in self._found([name])
            for key, (_, value) in document.mapping(node, f"'{name}'").items()
        }

    def error(self, name: str, problem: str) -> ConfigError:
        """An error in the value of a key that counts."""
        document, node = list(self._found([name]))[-1]
        return document.error(node, f"{name}: {problem}")


def _list(document: yamlfile.YamlFile, node: yaml.Node, name: str) -> tuple[str, ...]:
    import yaml

    is_one = isinstance(node, yaml.ScalarNode) and not yamlfile.is_null(node)
    if is_one or yamlfile.is_null(node):
        return (_expanded(document, node, name),) if is_one else ()
    items = document.sequence(node, f"'{name}'")
    return tuple(filter(None, (_expanded(document, item, name) for item in items)))


def _expanded(document: yamlfile.YamlFile, node: yaml.Node, name: str) -> str:
    return os.path.expandvars(document.scalar(node, f"'{name}'")).strip()


def _files(variables: Mapping[str, str]) -> Iterator[tuple[yamlfile.YamlFile, list[str]]]:
    for path in _paths(variables):
        if not files.is_missing(path):
            text = files.read_text(path)
            yield yamlfile.YamlFile(path, text), text.splitlines()


def _paths(variables: Mapping[str, str]) -> Iterator[Path]:
    """The files that conda reads, in its order, except those of an active environment."""
    home = Path(os.path.expanduser("~"))  # noqa: PTH111  (Path's raises where there is none)
    config = variables.get("XDG_CONFIG_HOME", "")
    directories: list[str | Path] = [
        *("/etc/conda", "/var/lib/conda", _root(variables)),
        *(f"{config}/conda" if config else "", home / ".config/conda", home / ".conda"),
    ]
    for directory in directories:
        yield from _below(directory)
    yield home / ".condarc"
    if variables.get("CONDARC"):
        yield Path(os.path.expanduser(variables["CONDARC"]))  # noqa: PTH111  (as above)


def _below(directory: str | Path) -> Iterator[Path]:
    if directory:
        top = Path(directory)
        yield top / ".condarc"
        yield top / "condarc"
        more = [path for path in top.glob("condarc.d/*") if path.suffix in {".yml", ".yaml"}]
        yield from sorted(more)


def _root(variables: Mapping[str, str]) -> str:
    """Where conda itself is installed, as it tells its shells."""
    executable = variables.get("CONDA_EXE", "")
    return variables.get("CONDA_ROOT") or (str(Path(executable).parents[1]) if executable else "")


def _of_environment(
    variables: Mapping[str, str],
) -> Iterator[tuple[yamlfile.YamlFile, list[str]]]:
    for variable, key in _VARIABLES.items():
        text = variables.get(variable, "")
        if text:
            value = text.split(",") if key.endswith("channels") else text
            yield yamlfile.YamlFile(Path(variable), json.dumps({key: value})), []


def _alias(layers: _Layers) -> str:
    alias = layers.text("channel_alias")
    if alias and "://" not in alias:
        raise layers.error("channel_alias", f"'{alias}' is not a URL")
    return alias.rstrip("/") or ALIAS


def _priority(layers: _Layers) -> str:
    text = layers.text("channel_priority").lower() or CHANNEL_PRIORITIES[0]
    priority = _PRIORITIES.get(text, text)
    if priority not in CHANNEL_PRIORITIES:
        known = ", ".join(CHANNEL_PRIORITIES)
        raise layers.error("channel_priority", f"'{text}' is not one of {known}")
    return priority


def _certificates(verify: str, variables: Mapping[str, str]) -> str:
    """The trusted certificates: as configured, or as conda's HTTP library finds them."""
    source, path = "ssl_verify", verify
    if not verify or verify.lower() in _TRUE:
        names = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
        source = next((name for name in names if variables.get(name)), "")
        path = variables.get(source, "")
    if not path or path.lower() in _FALSE | _SYSTEM_STORE:
        return ""
    path = os.path.expanduser(path)  # noqa: PTH111  (as above)
    if files.is_missing(Path(path)):
        raise ConfigError(
            f"{source} names {path}, which has no certificates",
            f"set {source} to a file or directory with certificates, or leave it out",
        )
    return os.path.abspath(path)  # noqa: PTH100  (links stay as they are)


def _local(layers: _Layers, variables: Mapping[str, str]) -> tuple[str, ...]:
    """The directories where conda-build puts what it builds."""
    root = _root(variables)
    places = (
        *(layers.text("croot"), layers.text("bld_path"), variables.get("CONDA_BLD_PATH", "")),
        *(layers.texts("conda_build").get("root-dir", ""), f"{root}/conda-bld" if root else ""),
        "~/conda-bld",
    )
    paths = (Path(os.path.expanduser(place)) for place in places if place)  # noqa: PTH111
    return tuple(dict.fromkeys(str(path.absolute()) for path in paths if path.is_dir()))
