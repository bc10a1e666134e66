"""Lets go of what a forked process inherits, so that it keeps nothing of its parent in use."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os

_ANSWER = 3
"""The descriptor that leads back to the parent, after those that every process has."""
_HIGH = 10


def detach(output: int | None, answer: int, *, umask: int) -> int:
    """Close all inherited descriptors but two, and leave the working directory.

    Args:
        output: becomes standard output and error; None for none.
        answer: leads back to the parent. Programs that this process starts do not inherit it.
        umask: for the files that this process makes.

    Returns:
        The new number of `answer`.

    Raises:
        OSError: If there are no descriptors left, or /proc is not there.
    """
    os.chdir("/")
    os.umask(umask)
    null = _high(os.open(os.devnull, os.O_RDWR))
    written = null if output is None else _high(output)
    answer = _high(answer)
    for number, source in enumerate((null, written, written, answer)):
        os.dup2(source, number, inheritable=number != _ANSWER)
    others = [int(name) for name in os.listdir("/proc/self/fd") if int(name) > _ANSWER]  # noqa: PTH208
    for descriptor in others:
        with contextlib.suppress(OSError):  # the one that listed them
            os.close(descriptor)
    return _ANSWER


def _high(descriptor: int) -> int:
    """A copy with a number above those that are replaced: any of 0, 1, 2 may be closed."""
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    except OSError as error:
        if error.errno == errno.EINVAL:  # the limit allows no number as high as that
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from error
        raise
