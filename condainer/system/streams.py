"""Reads what programs write, as lines or bytes, and feeds them what they read."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import termios
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable

    from anyio.abc import ByteReceiveStream, Process

_LINE_END = re.compile(rb"[\r\n]+")
_LINE_MAX = 65536
"""Bytes: a longer line is passed on in pieces."""


async def read_lines(stream: AsyncIterable[bytes], take: Callable[[str], None]) -> None:
    r"""Read a stream to its end.

    Args:
        stream: gives the bytes.
        take: called with each line, which ends with \n or \r, without its end.
    """
    rest = b""
    async for chunk in stream:
        *whole, rest = _LINE_END.split(rest + chunk)
        if len(rest) > _LINE_MAX:
            whole.append(rest)
            rest = b""
        for line in whole:
            take(line.decode("utf-8", "replace"))
    if rest:
        take(rest.decode("utf-8", "replace"))


async def collect(stream: ByteReceiveStream, output: bytearray) -> None:
    """Read a stream to its end.

    Args:
        stream: gives the bytes.
        output: takes them.
    """
    async for chunk in stream:
        output += chunk


async def feed(process: Process, data: bytes) -> None:
    """Write data to the standard input of a program, and close it.

    Args:
        process: the program; it may end before it has read everything.
        data: the bytes.
    """
    import anyio

    assert process.stdin is not None  # noqa: S101
    try:
        await process.stdin.send(data)
        await process.stdin.aclose()
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        pass  # it ended early: its exit status tells why


def open_terminal() -> tuple[int, int]:
    """Open both sides of a terminal of 80 columns: many programs draw nothing in one of no size."""
    primary, secondary = os.openpty()
    fcntl.ioctl(primary, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    return primary, secondary


async def read_terminal(primary: int) -> AsyncIterator[bytes]:
    """What a program writes to a terminal, until it closes the terminal.

    Args:
        primary: descriptor of the side that the program does not have.
    """
    import anyio

    while True:
        await anyio.wait_readable(primary)
        try:
            chunk = os.read(primary, _LINE_MAX)
        except OSError:  # EIO: nobody has the other side open any more
            return
        yield chunk
