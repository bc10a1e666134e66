"""Tells from the text of activation scripts what they depend on.

There are three kinds, and each is handled in a way that is exact:

- *Straight* scripts only set, export and unset variables, to texts that contain other variables. A
  build runs them with marks in place of the caller's values, and so finds what becomes of each
  variable.
- *Plain* scripts have conditions and loops besides. But they see nothing except the variables that
  their text names, files, and the working directory: they run no program, build no name of a
  variable, and ask for nothing that only the calling process has.
- *All others* may see everything.

A script with anything unknown in it counts as one of the others: that costs time, and is never
wrong.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_REFERENCE = rf"\$(?:{_NAME}|\{{{_NAME}(?::?-)?\}})"
_LITERAL = r"[A-Za-z0-9_@%+,./:=^-]"
_WORD = (
    rf"""(?:{_LITERAL}|'[^'\0]*'|{_REFERENCE}|\\[^\n\0]"""
    rf"""|"(?:[^"\\$`\0]|\\[\\$`"\n]|{_REFERENCE})*")*"""
)
_STATEMENT = re.compile(
    rf"(?:export[ \t]+)?{_NAME}={_WORD}(?:[ \t]+{_NAME}={_WORD})*"
    rf"|(?:export|unset)(?:[ \t]+{_NAME})+|:|true"
)
_BETWEEN = re.compile(r"(?:[ \t\n;]|(?:(?<=[ \t\n;])|(?<!.))#[^\n]*)*", re.DOTALL)
OF_THE_SHELL = re.compile(
    r"BASH\w*|COMP_WORDBREAKS|COPROC|CDPATH|COLUMNS|DIRSTACK|ENV|EPOCH\w*|EUID|FUNCNAME|GROUPS"
    r"|HISTCMD|HOSTNAME|HOSTTYPE|IFS|LINENO|LINES|MACHTYPE|OLDPWD|OPT(?:ARG|ERR|IND)|OSTYPE"
    r"|PIPESTATUS|POSIXLY_CORRECT|PPID|PS\d|PWD|S?RANDOM|REPLY|SECONDS|SHELL|SHELLOPTS|SHLVL"
    r"|TIMEFORMAT|TMOUT|E?UID|ZSH\w*|CONDA_SHLVL|CONDA_(?:PREFIX|STACKED)_\d+|PYTHONNOUSERSITE|_"
)
"""Variables to which the shell, or the code around the activation, gives a value of its own."""

_VOLATILE = re.compile(
    r"=[^\n]*(?<!\\)(?:\$\$|\$\{\$\})"
    r"|\b(?:RANDOM|SRANDOM|SECONDS|EPOCH\w+|BASHPID|PPID|date|mktemp|uuidgen|urandom|shuf|uptime)\b"
)
"""What is different each time; the number of the shell only if it may become a value."""
_REMARK = re.compile(r"^[ \t]*#[^\n]*", re.MULTILINE)


@dataclass(frozen=True)
class Dependence:
    """What some scripts depend on.

    Attributes:
        names: the variables that they name.
        is_straight: whether they only set, export and unset.
        is_plain: whether they see no other variables than those.
        is_volatile: whether their result may be different each time.
    """

    names: frozenset[str]
    is_straight: bool
    is_plain: bool
    is_volatile: bool


def of(texts: Iterable[str]) -> Dependence:
    """Find what scripts depend on.

    Args:
        texts: the scripts.
    """
    texts = list(texts)
    names = frozenset(name for text in texts for name in re.findall(_NAME, text))
    straight = not any(map(OF_THE_SHELL.fullmatch, names)) and all(map(_is_straight, texts))
    plain = straight or all(map(_is_plain, texts))
    volatile = any(_VOLATILE.search(_REMARK.sub("", text)) for text in texts)
    return Dependence(names, straight, plain, volatile)


def _is_straight(text: str) -> bool:
    position = 0
    while True:
        found = _BETWEEN.match(text, position)
        between = found.end() if found else position
        if between == len(text):
            return True
        if position and not re.search(r"[;\n]", text[position:between]):
            return False
        statement = _STATEMENT.match(text, between)
        if statement is None:
            return False
        position = statement.end()


_KEYWORDS = frozenset(
    ["if", "then", "elif", "else", "fi", "while", "until", "do", "done", "!", "{", "}"]
)
_COMMANDS = frozenset([":", "true", "false", "test", "[", "echo", "export", "unset", "return"])
_OPERATOR = re.compile(r"&&|\|\||[;\n|]")
_REDIRECTION = re.compile(r"[12]?>(?:&[12]|>?[ \t]*/dev/null)(?![^\s;|&)])")
_SPACE = re.compile(r"(?:[ \t]|\\\n)+")
_COMMENT = re.compile(r"#[^\n]*")
_PLAIN = re.compile(r"(?:[A-Za-z0-9_@%+,./:=^!*?{}\[\]#-]|~(?=[/:\s;]))+|\\.", re.DOTALL)
_EXPANSION = re.compile(rf"\$(?:{_NAME}|\?)")
_BRACE = re.compile(rf"\$\{{({_NAME})(?:(?::?[-+=]|%%?|##?)|(?=\}}))")
_ASKS_MORE = frozenset(
    ["-v", "-R", "-o", "-t", "-eq", "-ne", "-lt", "-le", "-gt", "-ge", "-O", "-G", "-N"]
)
"""Tests that take the name of a variable, compute, or look at the calling process."""


class _UnknownError(Exception):
    """Something in a script that is not known to be harmless."""


def _is_plain(text: str) -> bool:
    try:
        _Scanner(text).scan()
    except _UnknownError:
        return False
    return True


class _Scanner:
    """Reads a script, word by word."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def scan(self) -> None:
        """Check that each command is a known one."""
        begins = True
        while self._at < len(self._text):
            if self._take(_SPACE) or self._take(_REDIRECTION):
                continue
            if self._text[self._at] == "#":
                self._take(_COMMENT)
            elif self._take(_OPERATOR):
                begins = True
            else:
                begins = self._command_or_argument(begins)

    def _command_or_argument(self, begins: bool) -> bool:  # noqa: FBT001
        """Take a word; tell whether a command may begin after it."""
        word = self._word()
        if word in _ASKS_MORE:
            raise _UnknownError
        if not begins:
            return False
        if word == "[[":
            self._until_closed()
            return False
        if word in _KEYWORDS or re.match(rf"{_NAME}=", word):
            return True
        if word in {"export", "unset"}:
            self._names()
        elif word not in _COMMANDS:
            raise _UnknownError
        return False

    def _names(self) -> None:
        """Take the arguments of a command that changes variables: no name may be built."""
        while self._take(_SPACE):
            if self._text[self._at : self._at + 1] in {"", *"#;\n|&>12"}:
                return
            if not re.match(rf"{_NAME}(?:=|$)", self._word()):
                raise _UnknownError

    def _until_closed(self) -> None:
        while (word := self._test_word()) != "]]":
            if word in _ASKS_MORE:
                raise _UnknownError

    def _test_word(self) -> str:
        while self._take(_SPACE) or self._take(re.compile(r"&&|\|\||[()<>\n]")):
            pass
        return self._word()

    def _take(self, pattern: re.Pattern[str]) -> bool:
        found = pattern.match(self._text, self._at)
        if found is None or found.end() == self._at:
            return False
        self._at = found.end()
        return True

    def _word(self) -> str:
        """Take a word as it is written."""
        start = self._at
        while self._at < len(self._text) and self._part():
            pass
        if self._at == start:
            raise _UnknownError
        return self._text[start : self._at]

    def _part(self) -> bool:
        letter = self._text[self._at]
        if letter == "'":
            end = self._text.find("'", self._at + 1)
            if end < 0:
                raise _UnknownError
            self._at = end + 1
            return True
        if letter == '"':
            self._at += 1
            self._inside('"')
            return True
        return self._reference() or self._take(_PLAIN)

    def _inside(self, end: str) -> None:
        """Take what is between quotes or braces, and its end."""
        while True:
            letter = self._text[self._at : self._at + 1]
            if letter == end:
                self._at += 1
                return
            if letter == "\\":
                self._at += 2
            elif letter == "$":
                if not self._reference():
                    raise _UnknownError
            elif letter == '"':
                self._at += 1
                self._inside('"')
            elif not letter or letter in "`'":
                raise _UnknownError
            else:
                self._at += 1

    def _reference(self) -> bool:
        if self._take(_BRACE):
            self._inside("}")
            return True
        return self._take(_EXPANSION)
