"""Numbers for people."""

from __future__ import annotations


def human(size: float) -> str:
    """A number of bytes for people."""
    for unit in ("bytes", "KB", "MB"):
        if round(size) < 1000:  # noqa: PLR2004
            digits = 0 if unit == "bytes" or round(size, 1) >= 100 else 1  # noqa: PLR2004
            return f"{size:.{digits}f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
