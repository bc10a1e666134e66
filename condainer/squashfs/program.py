"""What the programs that look into an image have in common: opening it, and errors in words."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from condainer.squashfs.errors import SquashfsError
from condainer.squashfs.reading import opened

if TYPE_CHECKING:
    from collections.abc import Callable

    from condainer.squashfs.vfs import FileSystem


def with_image(path: str, do: Callable[[FileSystem], None], *, threads: int = 0) -> int:
    """Do something with the files of an image.

    Args:
        path: of the image.
        do: what is to be done.
        threads: how many may decompress ahead of it.

    Returns:
        the exit status; what went wrong is told on standard error.
    """
    try:
        with opened(path, threads=threads) as files:
            do(files)
    except OSError as error:
        reason = f"{error.filename or path}: {error.strerror}"
    except SquashfsError as error:
        reason = f"{path}: {error}"
    except MemoryError:
        reason = f"{path}: it needs too much memory"
    else:
        return 0
    sys.stderr.write(f"{reason}\n")
    return 1
