"""Removes credentials from URLs that are kept or shown, and restores them in URLs to fetch.

conda removes the same: user and password before the host, and the token in `/t/TOKEN/`.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_USER = re.compile(r"\b((?:https?|ftp)://)[^/\s\"'<>]+@")
_TOKEN = re.compile(r"\b(https?://[^\s\"'<>]*?)/t/[^/\s\"']+")


def without(text: str) -> str:
    """Remove the credentials.

    Args:
        text: a URL, or text with URLs in it.
    """
    return _TOKEN.sub(r"\1", _USER.sub(r"\1", text)) if "://" in text else text


def has_token(url: str) -> bool:
    """Whether a URL holds a token, which is a part of its path.

    Args:
        url: maybe with credentials.
    """
    return bool(_TOKEN.search(url))


def restored(url: str, channels: Iterable[str]) -> str:
    """Put the credentials of a channel back into a URL below it.

    Args:
        url: without credentials.
        channels: URLs as the user has written them.
    """
    for channel in channels:
        bare = without(channel)
        if f"{url}/".startswith(f"{bare}/"):
            return channel + url[len(bare) :]
    return url


def write(path: Path, text: str) -> None:
    """Write credentials to a new file that only this user can read.

    Args:
        path: of the file.
        text: maybe with surrogates, as other files were read.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o600)
    with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123
        file.write(text)
