"""How this process reaches servers of channels: certificates, proxies, and what conda says of them.

rattler has a client of its own for that, and our own code reads with `urllib`.
"""

from __future__ import annotations

import contextlib
import json
import os
import ssl
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import rattler
from rattler.config import Config

from condainer.errors import ConfigError
from condainer.pipeline import credentials
from condainer.pipeline.installers import condarc

if TYPE_CHECKING:
    from collections.abc import Iterator

    from condainer.pipeline.installers.condarc import Condarc

_RETRIES = 3
_SCHEMES = ("http", "https")


def client() -> rattler.Client:
    """What asks servers: some more times where one is busy.

    Raises:
        ConfigError: where conda's configuration cannot be followed.
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
    """The same for our own code."""
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
        urllib.request.ProxyHandler(_proxies(configured) or None),
        urllib.request.HTTPSHandler(context=context),
    )


def _proxies(configured: Condarc) -> dict[str, str]:
    """The proxies by scheme; empty where conda names none, and the environment's count."""
    own = {scheme: url for scheme, url in configured.proxy_servers.items() if url}
    if not own:
        return {}
    around = urllib.request.getproxies_environment()
    chosen = {
        scheme: own.get(scheme) or own.get("all") or around.get(scheme, "") for scheme in _SCHEMES
    }
    return {
        scheme: url if "://" in url else f"http://{url}" for scheme, url in chosen.items() if url
    }


def _toml(configured: Condarc) -> str:
    """The same as rattler writes it; where it names no proxy those of the environment count."""
    lines = [] if configured.ssl_verify else ["tls-no-verify = true"]
    proxies = _proxies(configured)
    if proxies:
        around = urllib.request.getproxies_environment()
        none = [host.strip() for host in around.get("no", "").split(",") if host.strip()]
        values: dict[str, object] = {**proxies, "non-proxy-hosts": none}
        lines.append("[proxy-config]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(lines)


@contextlib.contextmanager
def _trusting(certificates: str) -> Iterator[None]:
    """Have rattler take certificates from a place: it looks there when it makes a client."""
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
