"""Numbers and foreign text, for people."""

from __future__ import annotations

_LAYOUT = frozenset("\n\t")
_BYTES = range(0xDCA0, 0xDD00)
"""What stands for bytes that are not UTF-8, but for those that a terminal obeys."""


def printable(text: str) -> str:
    """A text of ours, which may have several lines, with all else in it spelled out.

    Names come from images, channels and other users. What a terminal would obey stays text, and so
    does what nobody sees: marks that turn the direction of writing, and letters without a width.
    """
    return _spelled(text, _LAYOUT)


def foreign(text: str) -> str:
    """A piece of foreign text that cannot end the line it is put into, nor begin another."""
    return _spelled(text, frozenset())


def indented(text: str) -> str:
    """A text of which only the first line can be taken for one of our own."""
    first, *others = text.split("\n")
    return "\n".join([first, *(line if line[:1] == " " else f"  {line}" for line in others)])


def _spelled(text: str, kept: frozenset[str]) -> str:
    if text.isprintable():
        return text
    return "".join(
        letter
        if letter.isprintable() or letter in kept or ord(letter) in _BYTES
        else ascii(letter)[1:-1]
        for letter in text
    )


def human(size: float) -> str:
    """A number of bytes for people."""
    for unit in ("bytes", "KB", "MB"):
        if round(size) < 1000:  # noqa: PLR2004
            digits = 0 if unit == "bytes" or round(size, 1) >= 100 else 1  # noqa: PLR2004
            return f"{size:.{digits}f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
