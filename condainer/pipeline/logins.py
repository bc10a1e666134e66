"""Hands pip the passwords in URLs of package indexes by a file: it repeats URLs in command lines.

Where it builds a package, pip runs itself with the URLs of indexes as arguments, which everybody on
the machine can read. What it finds in the file that the variable NETRC names it keeps to itself.
"""

from __future__ import annotations

import os
import re
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING

from condainer import files

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_LOGIN = re.compile(
    r"(?<![+\w])(?P<scheme>https?://)(?P<user>[^/\s\"'<>@:]+):(?P<password>[^/\s\"'<>]+)@"
    r"(?P<host>[^/\s:@\"'<>]+)"
)
"""Not of a version control system, which does not look there."""
_PLAIN = re.compile(r"[!$-&(-\[\]-~]+")
"""What can stand in such a file as it is: no space, quotation mark, number sign or backslash."""
_VARIABLES = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS")


def handed(
    requirements: Path,
    environment: Mapping[str, str],
    directory: Path,
    absolute: Callable[[str], str],
) -> tuple[Path, dict[str, str]]:
    """Take passwords out of what pip is told.

    Args:
        requirements: a requirements file.
        environment: the variables pip runs with.
        directory: where files are written; nobody else's.
        absolute: makes the path that a line of the file names one that can stand elsewhere.

    Returns:
        a file like that, and variables like these, as far as they differ.

    Raises:
        ConfigError: where the file cannot be read.
    """
    text = files.read_text(requirements)
    told = {name: environment[name] for name in _VARIABLES if name in environment}
    found: dict[str, set[tuple[str, str]]] = {}
    for each in (text, *told.values()):
        for match in _LOGIN.finditer(each):
            login = urllib.parse.unquote(match["user"]), urllib.parse.unquote(match["password"])
            found.setdefault(match["host"], set()).add(login)
    # A host that has several cannot be told in that file.
    logins = {host: next(iter(some)) for host, some in found.items() if len(some) == 1}
    logins = {host: login for host, login in logins.items() if all(map(_PLAIN.fullmatch, login))}
    if not logins:
        return requirements, {}

    def without(match: re.Match[str]) -> str:
        host = match["host"]
        return f"{match['scheme']}{host}" if host in logins else match[0]

    lines = [f"machine {h} login {user} password {word}\n" for h, (user, word) in logins.items()]
    netrc = directory / "netrc"
    _write(netrc, "".join(lines) + _others(environment))
    copy = directory / "without-passwords.txt"
    _write(copy, "".join(f"{absolute(line)}\n" for line in _LOGIN.sub(without, text).splitlines()))
    variables = {name: _LOGIN.sub(without, value) for name, value in told.items()}
    return copy, {**variables, "NETRC": str(netrc)}


def _others(environment: Mapping[str, str]) -> str:
    """What the user has for other hosts."""
    path = environment.get("NETRC") or f"{environment.get('HOME') or Path.home()}/.netrc"
    try:
        return files.read(path).decode("utf-8", "surrogateescape")
    except OSError:
        return ""


def _write(path: Path, text: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o600)
    with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123
        file.write(text)
