"""Prepares numbers and foreign text for messages."""

from __future__ import annotations

_LAYOUT = frozenset("\n\t")
_BYTES = range(0xDCA0, 0xDD00)
"""Characters for bytes that are not UTF-8 (PEP 383), without those that a terminal obeys."""


def printable(text: str) -> str:
    """Spell out all characters of a message that are not printable, except newlines and tabs.

    Names come from images, channels and other users. A terminal might obey such characters. Nobody
    sees marks that change the direction of writing, or letters without a width.

    Args:
        text: the message, which may have several lines.
    """
    return _spelled(text, _LAYOUT)


def foreign(text: str) -> str:
    """Spell out all characters of a foreign text that are not printable, newlines included.

    Args:
        text: a part of a line.
    """
    return _spelled(text, frozenset())


def indented(text: str) -> str:
    """Indent all lines but the first, so that none of them looks like a message of condainer.

    Args:
        text: the message.
    """
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
    """Write a number of bytes for people.

    Args:
        size: the number; a KB has 1000 bytes.
    """
    for unit in ("bytes", "KB", "MB"):
        if round(size) < 1000:  # noqa: PLR2004
            digits = 0 if unit == "bytes" or round(size, 1) >= 100 else 1  # noqa: PLR2004
            return f"{size:.{digits}f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
