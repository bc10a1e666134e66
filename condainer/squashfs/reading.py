"""What the programs that look into an image have in common: opening it, and errors in words."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from condainer.squashfs import image, vfs
from condainer.squashfs.codecs import CodecError

if TYPE_CHECKING:
    from collections.abc import Callable


def with_image(path: str, do: Callable[[vfs.FileSystem], None], *, threads: int = 0) -> int:
    """Do something with what an image holds.

    Args:
        path: of the image.
        do: what is to be done.
        threads: how many may decompress ahead.

    Returns:
        the exit status; what went wrong is told on standard error.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        do(vfs.FileSystem(image.Image(descriptor), threads=threads))
    except OSError as error:
        reason = f"{error.filename or path}: {error.strerror}"
    except (image.FormatError, CodecError) as error:
        reason = f"{path}: {error}"
    except MemoryError:
        reason = f"{path}: it needs too much memory"
    else:
        return 0
    sys.stderr.write(f"{reason}\n")
    return 1
