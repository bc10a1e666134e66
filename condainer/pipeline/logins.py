"""Hands passwords and tokens in URLs to pip and git in files, not in command lines.

Everybody on a machine can read command lines. If pip builds a package, it runs itself with the URLs
of indexes as arguments, and it gives git the URL of a repository. So pip finds passwords in the
file that the variable NETRC names, and git asks `git credential-store`, with a file.
"""

from __future__ import annotations

import re
import shlex
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from condainer.errors import BuildError
from condainer.pipeline import credentials
from condainer.pipeline.requirements import rewritten
from condainer.system import files

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping, Sequence

_LOGIN = re.compile(
    r"(?<![\w+])(?:(?P<control>\w+)\+)?(?P<scheme>https?)://"
    r"(?P<user>[^/\s\"'<>@:?#]*)(?::(?P<password>[^/\s\"'<>?#]*))?@"
    r"(?P<host>\[[^/\s\]]*\]|[^/\s:@\"'<>?#\[]+)(?P<port>:[0-9]+)?(?P<path>/[^\s\"'<>?#;]*)?",
    re.IGNORECASE,
)
_PLAIN = re.compile(r"[!$-&(-\[\]-~]+")
"""What a file for NETRC can hold as it is: no space, quotation mark, number sign or backslash."""
_OF_INDEX = re.compile(r"(-i|-f|--index-url|--pypi-url|--extra-index-url|--find-links)\b")
_VARIABLES = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS")
_CONFIGURED = "GIT_CONFIG_COUNT"
_PROXY = "PIP_PROXY"
_HINT_OF_PROXY = (
    "name the proxy in HTTP_PROXY and HTTPS_PROXY, not in PIP_PROXY or in pip's configuration"
)
_HINT = "name one login for the host, without spaces, quotation marks, '#' and backslashes"


@dataclass(frozen=True)
class _Login:
    """User and password in a URL.

    Attributes:
        control: the version control system of the URL; empty if it is pip's own.
        scheme: of the URL.
        host: where they count.
        port: with a colon; empty for the usual one.
        path: of the repository; empty if the URL is pip's own.
        user: percent-encoded, as in the URL.
        password: likewise; None if there is none.
    """

    control: str
    scheme: str
    host: str
    port: str
    path: str
    user: str
    password: str | None

    @classmethod
    def of(cls, match: re.Match[str]) -> _Login:
        """Make one of a match of `_LOGIN`."""
        control = (match["control"] or "").lower()
        path = (match["path"] or "").rpartition("@")[0] or match["path"] or ""
        return cls(
            control,
            match["scheme"].lower(),
            match["host"],
            match["port"] or "",
            path if control else "",
            match["user"],
            match["password"],
        )

    @property
    def words(self) -> tuple[str, str]:
        """User and password, decoded."""
        return urllib.parse.unquote(self.user), urllib.parse.unquote(self.password or "")


def handed(
    requirements: Sequence[Path], environment: Mapping[str, str], directory: Path
) -> tuple[Path, dict[str, str]]:
    """Take passwords out of what pip is told, and put them into files.

    Args:
        requirements: the requirements file for pip, and others that hold passwords for the same
            hosts, since a lock file holds none. Files that these name are read as well.
        environment: the variables that pip runs with, and its configuration in the same form.
        directory: where files are written; only this user may enter it.

    Returns:
        A requirements file without passwords, and the variables that pip needs besides.

    Raises:
        BuildError: If pip would show a password in a command line all the same.
        ConfigError: If a file cannot be read.
    """
    if "@" in environment.get(_PROXY, ""):
        raise _shown("its proxy", _HINT_OF_PROXY)
    told = {name: environment[name] for name in _VARIABLES if name in environment}
    found = _found(requirements, told, environment, directory)
    if not found:
        return requirements[0], {}
    of_pip = _of_pip(found)
    copy = rewritten(requirements[0], directory, environment, lambda line: _without(line, of_pip))
    variables = {
        name: _without(f"-i {value}", of_pip).removeprefix("-i ")
        for name, value in told.items()
        if _LOGIN.search(value)
    }
    if of_pip:
        netrc = directory / "netrc"
        lines = [f"machine {host} login {u} password {w}\n" for host, (u, w) in of_pip.items()]
        credentials.write(netrc, "".join(lines) + _others(environment))
        variables["NETRC"] = str(netrc)
    return copy, {**variables, **_for_git(found, environment, directory)}


def _found(
    requirements: Iterable[Path],
    told: Mapping[str, str],
    environment: Mapping[str, str],
    directory: Path,
) -> list[_Login]:
    """The logins in requirements files and in some variables."""
    found: list[_Login] = []

    def note(line: str) -> str:
        found.extend(_Login.of(match) for match in _LOGIN.finditer(line))
        return line

    for file in requirements:
        rewritten(file, directory, environment, note)
    for value in told.values():
        note(value)
    return found


def _without(line: str, of_pip: Container[str]) -> str:
    """A line without the passwords that are handed over in another way.

    Args:
        line: of a requirements file.
        of_pip: the hosts whose passwords pip finds in a file.

    Raises:
        BuildError: If one is left that pip would show.
    """

    def without(match: re.Match[str]) -> str:
        login = _Login.of(match)
        if not login.control and login.host not in of_pip:
            return match[0]
        control = f"{match['control']}+" if match["control"] else ""
        host = f"{match['host']}{match['port'] or ''}"
        return f"{control}{match['scheme']}://{host}{match['path'] or ''}"

    changed = _LOGIN.sub(without, line)
    if _OF_INDEX.match(changed) and _LOGIN.search(changed):
        raise _shown(changed, _HINT)
    return changed


def _of_pip(found: Iterable[_Login]) -> dict[str, tuple[str, str]]:
    """User and password by host, if a file for NETRC can hold them: one login for each host."""
    logins: dict[str, set[tuple[str, str]]] = {}
    for login in found:
        if not login.control:
            logins.setdefault(login.host, set()).add(login.words)
    single = {host: next(iter(some)) for host, some in logins.items() if len(some) == 1}
    return {
        host: (user, word or '""')
        for host, (user, word) in single.items()
        if _PLAIN.fullmatch(host + user + word) and user and not host.startswith("[")
    }


def _for_git(
    found: Iterable[_Login], environment: Mapping[str, str], directory: Path
) -> dict[str, str]:
    """Variables with which git asks for a password if it needs one. git reads them from 2.31 on.

    Raises:
        BuildError: If another version control system would need a password.
    """
    controlled = [login for login in dict.fromkeys(found) if login.control]
    for login in controlled:
        if login.control != "git" and login.password is not None:
            url = f"{login.control}+{login.scheme}://{login.host}{login.port}{login.path}"
            raise _shown(url, "use git, or download it and name the file")
    settings: list[tuple[str, str]] = []
    logins: dict[str, set[_Login]] = {}
    for login in (login for login in controlled if login.control == "git"):
        logins.setdefault(f"{login.scheme}://{login.host}{login.port}", set()).add(login)
    for place, some in logins.items():
        is_one = len({login.words for login in some}) == 1
        for login in [next(iter(some))] if is_one else sorted(some, key=lambda each: each.path):
            store = directory / f"git-{len(settings)}"
            host = f"{login.host}{login.port}"
            credentials.write(
                store, f"{login.scheme}://{login.user}:{login.password or ''}@{host}\n"
            )
            key = f"credential.{place if is_one else place + login.path}"
            # If a URL has only a user name, the user's own helpers may know the password.
            own = [(f"{key}.helper", "")] if login.password is not None else []
            helper = f"store --file {shlex.quote(str(store))}"
            settings += [*own, (f"{key}.username", urllib.parse.unquote(login.user))]
            settings.append((f"{key}.helper", helper))
    if not settings:
        return {}
    text = environment.get(_CONFIGURED, "")
    first = int(text) if text.isascii() and text.isdigit() else 0
    variables = {_CONFIGURED: str(first + len(settings)), "GIT_TERMINAL_PROMPT": "0"}
    for number, (key, value) in enumerate(settings, first):
        variables |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return variables


def _shown(what: str, hint: str) -> BuildError:
    return BuildError(
        "pip would show a password in a command line, which everybody on the machine can read: "
        f"{credentials.without(what)}",
        hint,
    )


def _others(environment: Mapping[str, str]) -> str:
    """The user's own file for NETRC, with logins for other hosts."""
    path = environment.get("NETRC") or f"{environment.get('HOME') or Path.home()}/.netrc"
    try:
        return files.read(path).decode("utf-8", "surrogateescape")
    except OSError:
        return ""
