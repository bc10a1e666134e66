"""Reads the small YAML files that people write, and remembers on which line everything stands.

`config` and `environment` know what the keys mean.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING

import yaml

from condainer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_DEEPEST = 30
_MERGE = "tag:yaml.org,2002:merge"

# The C parser is five times as fast, but not every PyYAML was built with it.
_Loader: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class YamlFile:
    """One parsed file: a mapping at the top, with line numbers.

    Args:
        path: of the file, for messages.
        text: what the file holds.

    Attributes:
        items: the mapping at the top: key to key node and value node.

    Raises:
        ConfigError: If the text is no YAML, or no mapping.
    """

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self._mappings: dict[int, dict[str, tuple[yaml.Node, yaml.Node]]] = {}
        try:
            node = self._composed(text)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            line = mark.line + 1 if mark else 1
            if "nesting" in str(error.problem):  # newer parsers have a limit of their own
                raise self._too_deep(line) from error
            raise ConfigError(f"{path}, line {line}: not valid YAML: {error.problem}") from error
        except (yaml.YAMLError, RecursionError) as error:
            raise ConfigError(f"{path}: not valid YAML: {error}") from error
        if node is None:
            node = yaml.MappingNode("tag:yaml.org,2002:map", [])
        self.items = self.mapping(node, "the file")

    def _composed(self, text: str) -> yaml.Node | None:
        """Parse the text. mamba's parser allows tabs in place of blanks, this one does not."""
        try:
            self._check_depth(text)
            return yaml.compose(text, Loader=_Loader)
        except yaml.MarkedYAMLError:
            spaced = re.sub(r"(?<=\S)\t+", " ", re.sub(r"(?m)^[ \t]+$", "", text))
            if spaced == text:
                raise
        self._check_depth(spaced)
        return yaml.compose(spaced, Loader=_Loader)

    def _check_depth(self, text: str) -> None:
        """Refuse a text that is nested so deeply that the parser would run out of stack."""
        depth = 0
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if depth > _DEEPEST:
                raise self._too_deep(event.start_mark.line + 1 if event.start_mark else 1)

    def _too_deep(self, line: int) -> ConfigError:
        return ConfigError(f"{self.path}, line {line}: nested more than {_DEEPEST} deep")

    def error(self, node: yaml.Node, problem: str, hint: str = "") -> ConfigError:
        """Make an error that names the file and the line of a node.

        Args:
            node: where the problem is.
            problem: what is wrong.
            hint: what to do; may be empty.
        """
        line = node.start_mark.line + 1 if node.start_mark else 1
        return ConfigError(f"{self.path}, line {line}: {problem}", hint)

    def check_keys(self, known: Iterable[str]) -> None:
        """Refuse unknown keys.

        Args:
            known: the keys that the file may have.

        Raises:
            ConfigError: If there is another: names the line, and the most similar known key.
        """
        known = list(known)
        for name, (key, _) in self.unknown(known).items():
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean '{close[0]}'?" if close else f"known keys: {', '.join(known)}"
            raise self.error(key, f"unknown key '{name}'", hint)

    def unknown(self, known: Iterable[str]) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """The keys of the file that are not known, as `mapping` gives them.

        Args:
            known: the keys that the file may have.
        """
        known = set(known)
        return {name: pair for name, pair in self.items.items() if name not in known}

    def value(self, name: str) -> yaml.Node | None:
        """The node of a value; None if the key is missing, or if its value is empty.

        Args:
            name: the key, at the top of the file.
        """
        pair = self.items.get(name)
        if pair is None or is_null(pair[1]):
            return None
        return pair[1]

    def mapping(self, node: yaml.Node, what: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """The items of a mapping: key to key node and value node.

        Args:
            node: the mapping.
            what: how a message names it.

        Raises:
            ConfigError: If it is no mapping, or if it has a key twice.
        """
        if not isinstance(node, yaml.MappingNode):
            raise self.error(node, f"{what} must be a mapping of 'key: value' lines")
        if id(node) in self._mappings:  # an alias of one that has been read, or is just being read
            return self._mappings[id(node)]
        items = self._mappings[id(node)] = {}
        merged: list[yaml.Node] = []
        for key, value in node.value:
            if key.tag == _MERGE:
                merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
                continue
            name = self.scalar(key, "a key")
            if name in items:
                raise self.error(key, f"key '{name}' appears a second time")
            items[name] = (key, value)
        for other in merged:  # what stands here itself goes before what is merged
            for name, pair in list(self.mapping(other, "what '<<:' merges").items()):
                items.setdefault(name, pair)
        return items

    def sequence(self, node: yaml.Node, what: str) -> list[yaml.Node]:
        """The items of a list.

        Args:
            node: the list.
            what: how a message names it.

        Raises:
            ConfigError: If it is no list.
        """
        if not isinstance(node, yaml.SequenceNode):
            raise self.error(node, f"{what} must be a list, one '- item' a line")
        return list(node.value)

    def scalar(self, node: yaml.Node, what: str) -> str:
        """The text of a single value, as it stands in the file: `3.10` stays `3.10`.

        Args:
            node: the value.
            what: how a message names it.

        Raises:
            ConfigError: If it is a list or a mapping.
        """
        if not isinstance(node, yaml.ScalarNode):
            raise self.error(node, f"{what} must be one plain value")
        return "" if is_null(node) else str(node.value)

    def line(self, node: yaml.Node, what: str) -> str:
        """The text of a single value that people see, or that goes into a file name or a script.

        Args:
            node: the value.
            what: how a message names it.

        Raises:
            ConfigError: If it is not one line, or if it contains control characters.
        """
        text = self.scalar(node, what)
        if _CONTROL.search(text):
            raise self.error(node, f"{what} must be one line without control characters")
        return text


def is_null(node: yaml.Node) -> bool:
    """Whether a value is missing, `null` or `~`.

    Args:
        node: the value.
    """
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"
