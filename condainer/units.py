"""Numbers and foreign text, for people."""

from __future__ import annotations

import re

# Controls but tab and newline, as letters and as bytes, and what cannot be written as a byte.
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udc9f\udd00-\udfff]")


def printable(text: str) -> str:
    """A text with the controls in it spelled out.

    Names come from images, channels and other users; what a terminal would obey stays text.
    """
    return _UNSAFE.sub(lambda match: ascii(match[0])[1:-1], text)


def human(size: float) -> str:
    """A number of bytes for people."""
    for unit in ("bytes", "KB", "MB"):
        if round(size) < 1000:  # noqa: PLR2004
            digits = 0 if unit == "bytes" or round(size, 1) >= 100 else 1  # noqa: PLR2004
            return f"{size:.{digits}f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
