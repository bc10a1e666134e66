"""Credentials in URLs: left out of whatever is kept or shown, and put back where one is fetched.

conda leaves out the same: user and password before the host, and the token in `/t/TOKEN/`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_USER = re.compile(r"\b((?:https?|ftp)://)[^/\s\"'<>]+@")
_TOKEN = re.compile(r"\b(https?://[^\s\"'<>]*?)/t/[^/\s\"']+")


def without(text: str) -> str:
    """A URL, or a text with URLs in it, without the credentials."""
    return _TOKEN.sub(r"\1", _USER.sub(r"\1", text)) if "://" in text else text


def has_token(url: str) -> bool:
    """Whether a URL holds a token, which is a part of its path."""
    return bool(_TOKEN.search(url))


def restored(url: str, channels: Iterable[str]) -> str:
    """A URL with the credentials of the channel that it belongs to.

    Args:
        url: without credentials.
        channels: as the user has written them.
    """
    for channel in channels:
        bare = without(channel)
        if f"{url}/".startswith(f"{bare}/"):
            return channel + url[len(bare) :]
    return url
