"""Writes plain values as bytes and reads them back, for files between processes of one user.

Such a file may come from somebody else, in an archive for example. So reading takes no more memory
and time than the file has bytes, and gives only numbers, strings, None and tuples of them.
`marshal` promises neither. Importing `json` takes as long as all that `exec` does.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing `typing` takes as long as all of this does
if TYPE_CHECKING:
    from collections.abc import Iterator

_DEEPEST = 8
_LONGEST_NUMBER = 20


def dumps(value: object) -> bytes:
    """Write a value.

    Args:
        value: a number, a truth value, a string, None, or a tuple of such values.

    Raises:
        TypeError: If it contains anything else.
    """
    return "\n".join(_items(value)).encode("utf-8", "surrogateescape")


def _items(value: object) -> Iterator[str]:
    if value is None or isinstance(value, bool):
        yield {None: "n", True: "t", False: "f"}[value]
    elif isinstance(value, int):
        yield f"i{value}"
    elif isinstance(value, str):
        yield "s" + value.replace("\\", r"\\").replace("\n", r"\n")
    elif isinstance(value, tuple):
        yield f"({len(value)}"
        for each in value:
            yield from _items(each)
    else:
        raise TypeError(type(value))


def loads(data: bytes) -> object:
    """Read a value.

    Args:
        data: what `dumps` has written.

    Raises:
        ValueError: If it is something else.
    """
    items = iter(data.decode("utf-8", "surrogateescape").split("\n"))
    value = _value(items, 0)
    if next(items, None) is not None:
        raise ValueError("there is more than one value")
    return value


def _value(items: Iterator[str], depth: int) -> object:
    item = next(items, "")
    kind, text = item[:1], item[1:]
    if kind == "s":
        return _text(text)
    if kind == "i" and len(text) <= _LONGEST_NUMBER:
        return int(text)
    if kind in {"n", "t", "f"} and not text:
        return {"n": None, "t": True, "f": False}[kind]
    if kind == "(" and depth < _DEEPEST and len(text) <= _LONGEST_NUMBER:
        return tuple([_value(items, depth + 1) for _ in range(int(text))])
    raise ValueError(item[:20])


def _text(text: str) -> str:
    if "\\" not in text:
        return text
    return "\\".join(part.replace(r"\n", "\n") for part in text.split(r"\\"))
