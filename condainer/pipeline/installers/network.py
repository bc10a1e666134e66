"""Connects this process to servers of channels: certificates and proxies, as conda is configured.

rattler has a client of its own; our own code uses `urllib`.
"""

from __future__ import annotations

import contextlib
import json
import os
import ssl
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rattler
from rattler.config import Config

from condainer.errors import ConfigError
from condainer.pipeline import credentials
from condainer.pipeline.installers import condarc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from condainer.pipeline.installers.condarc import Condarc

_RETRIES = 3
_SCHEMES = ("http", "https")


def client() -> rattler.Client:
    """Make rattler's client, which asks again if a server is busy.

    Raises:
        ConfigError: If conda's configuration cannot be followed.
    """
    configured = condarc.load()
    try:
        config = Config.from_toml(_toml(configured))
    except ValueError as error:
        why = credentials.without(str(error))
        raise ConfigError(
            f"rattler cannot use proxy_servers of conda's configuration:\n{why}"
        ) from None
    with _trusting(configured.certificates):
        return rattler.Client.from_config(config, max_retries=_RETRIES)


def opener() -> urllib.request.OpenerDirector:
    """Make the same for our own code."""
    configured = condarc.load()
    context = ssl.create_default_context()
    if configured.certificates:
        is_directory = Path(configured.certificates).is_dir()
        which = "capath" if is_directory else "cafile"
        context.load_verify_locations(**{which: configured.certificates})
    if not configured.ssl_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return urllib.request.build_opener(
        _ProxyHandler(proxies_of(configured)), urllib.request.HTTPSHandler(context=context)
    )


def needs_own_proxy() -> Callable[[str], bool]:
    """Make a function that tells whether conda's configuration has a proxy for a URL's host alone.

    rattler's client knows one proxy for each scheme and no more.
    """
    proxies = proxies_of(condarc.load())
    return lambda url: proxy_for(url, proxies) != proxy_for(url, _by_scheme(proxies))


class _ProxyHandler(urllib.request.ProxyHandler):
    """Takes the right proxy for each URL, also if a server redirects to another one.

    Args:
        proxies: by place, see `proxy_for`.
    """

    def __init__(self, proxies: dict[str, str]) -> None:
        super().__init__(dict.fromkeys(_SCHEMES, ""))
        self._by_place = proxies

    def proxy_open(self, req: urllib.request.Request, proxy: str, type: str) -> Any:  # noqa: A002, ANN401
        """Connect to the proxy; urllib calls this before it asks a server.

        Args:
            req: the request.
            proxy: not used: one was chosen for the URL before redirections.
            type: of the proxy.
        """
        proxy = "" if req.has_proxy() else proxy_for(req.full_url, self._by_place)
        return super().proxy_open(req, proxy, type) if proxy else None


def proxies_of(configured: Condarc) -> dict[str, str]:
    """List the proxies by place: SCHEME://HOST, SCHEME, all://HOST or all.

    As with conda, the environment counts if it and `.condarc` name the same place.

    Args:
        configured: conda's configuration.
    """
    around = urllib.request.getproxies_environment()
    around.pop("no", None)
    return {
        place: url if "://" in url or not url else f"http://{url}"
        for place, url in {**configured.proxy_servers, **around}.items()
    }


def proxy_for(url: str, proxies: Mapping[str, str]) -> str:
    """Find the proxy for a URL, as conda's HTTP library does; empty for none.

    Args:
        url: of a file.
        proxies: by place.
    """
    parts = urllib.parse.urlsplit(url)
    places = (f"{parts.scheme}://{parts.hostname}", parts.scheme, f"all://{parts.hostname}", "all")
    if parts.scheme not in _SCHEMES or urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]):
        return ""
    return next((proxies[place] for place in places if place in proxies), "")


def _by_scheme(proxies: Mapping[str, str]) -> dict[str, str]:
    """The proxies for all hosts."""
    chosen = {scheme: proxies.get(scheme, proxies.get("all", "")) for scheme in _SCHEMES}
    return {scheme: url for scheme, url in chosen.items() if url}


def _toml(configured: Condarc) -> str:
    """The same as rattler's configuration. If it names no proxy, those of the environment count."""
    lines = [] if configured.ssl_verify else ["tls-no-verify = true"]
    proxies = _by_scheme(proxies_of(configured)) if configured.proxy_servers else {}
    if proxies:
        around = urllib.request.getproxies_environment()
        none = [host.strip() for host in around.get("no", "").split(",") if host.strip()]
        values: dict[str, object] = {**proxies, "non-proxy-hosts": none}
        lines.append("[proxy-config]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(lines)


@contextlib.contextmanager
def _trusting(certificates: str) -> Iterator[None]:
    """Have rattler trust certificates: it reads these variables when it makes a client."""
    names = ("SSL_CERT_FILE", "SSL_CERT_DIR")
    before = {name: os.environ.get(name) for name in names}
    if certificates:
        os.environ[names[Path(certificates).is_dir()]] = certificates
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
