"""Handles signals for a while, and then as before."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

from condainer.errors import InterruptedBySignalError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


@contextlib.contextmanager
def ending_in_order() -> Iterator[None]:
    """Turn the first SIGTERM or SIGHUP into an exception, so that the caller can clean up.

    Raises:
        InterruptedBySignalError: If one of them comes.
    """
    has_come = False

    def interrupt(signum: int, _: object) -> None:
        nonlocal has_come
        if not has_come:
            has_come = True
            raise InterruptedBySignalError(signum)

    with handling({signal.SIGTERM: interrupt, signal.SIGHUP: interrupt}):
        yield


@contextlib.contextmanager
def handling(handlers: Mapping[int, Callable[[int, object], None]]) -> Iterator[None]:
    """Handle signals for a while; those that are ignored, as with nohup, stay ignored.

    Args:
        handlers: the number of each signal, and what handles it.
    """
    heeded = [signum for signum in handlers if signal.getsignal(signum) is not signal.SIG_IGN]
    before = [signal.signal(signum, handlers[signum]) for signum in heeded]
    try:
        yield
    finally:
        for signum, handler in zip(heeded, before, strict=True):
            signal.signal(signum, handler)
