"""Writes what went wrong to standard error, in such a way that no request ever waits for it.

If nobody reads standard error, lines are lost. A failure is written once, however often it comes:
an image on a failing disk may be read a million times.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys

_MOST = 50
"""Failures that are written: by then it is clear that something is wrong."""
_LONGEST = 500


class Log:
    """Standard error.

    Other processes may share the descriptor, so it must not be made non-blocking.
    """

    def __init__(self) -> None:
        self._ready = select.poll()
        self._ready.register(2, select.POLLOUT)
        self._lost = 0
        self._told: set[str] = set()

    def add(self, line: str) -> None:
        """Write a line, after the number of lines that were lost before it.

        Args:
            line: without a line break at its end.
        """
        text = f"{self._lost} lines were lost\n{line}\n" if self._lost else f"{line}\n"
        # A pipe with room for a byte has room for 4096 at least: pipe(7), PIPE_BUF.
        with contextlib.suppress(OSError):
            if [event for _, event in self._ready.poll(0)] == [select.POLLOUT]:
                os.write(2, text.encode("ascii", "backslashreplace"))
                self._lost = 0
                return
        self._lost += 1

    def failed(self, operation: str, error: BaseException) -> None:
        """Write that something failed, and why: whoever asked gets no more than a number.

        Args:
            operation: what failed.
            error: that it raised.
        """
        # Such as a MemoryError: to answer requests matters more than to write about them.
        with contextlib.suppress(Exception):
            line = f"condainer.fuse: {operation}: {_words(error)}"[:_LONGEST].replace("\n", " ")
            if line not in self._told and len(self._told) < _MOST:
                self._told.add(line)
                self.add(line)


def _words(error: BaseException) -> str:
    """An error, and where it was raised."""
    trace = error.__traceback__ or sys.exc_info()[2]
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = ""
    if trace is not None:
        where = f" ({os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno})"  # noqa: PTH119  (pathlib is slow to import)
    return f"{type(error).__name__}: {error}{where}"
