"""The image file of a project: opened, checked, and its manifest read, without mounting it.

`squashfs` knows the format. This module says what is wrong with an image in words of `ImageError`,
and knows where in an image its manifest is. `pipeline/manifest.py` writes the manifest.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from condainer.errors import ImageError
from condainer.system import files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from condainer.squashfs import Superblock

MANIFEST = ".condainer/manifest.json"
"""Path of the manifest inside an image."""
MANIFEST_MAX = 16 << 20
"""Bytes of a manifest, at most."""
_MANIFEST_VALUES = 500_000
"""Values of a manifest, at most: one of 5,000 packages has a quarter of that."""
_KINDS = {"name": str, "built": str, "packages": list, "pip": list, "tools": dict}
"""What others read of a manifest, and of which type it is."""
_REBUILD = "copy it again from where it came, or build it again with 'condainer build --force'"


def is_image(path: Path) -> bool:
    """Whether a file begins as an image does, be it whole or not.

    Args:
        path: of the file; it may be missing.
    """
    from condainer.squashfs import has_magic

    try:
        with opened(path) as descriptor:
            return has_magic(descriptor)
    except ImageError:
        return False


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor of an image, for a `with` block; what goes wrong in there is an ImageError.

    Args:
        path: of the image.

    Raises:
        ImageError: If it is no regular file, no image, damaged, or cannot be read.
    """
    from condainer import squashfs

    try:
        descriptor = squashfs.open_image(path)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
    except squashfs.CodecError as error:
        raise ImageError(f"cannot read inside {path}: {error}") from error
    except (squashfs.FormatError, MemoryError) as error:
        reason = str(error) or "it needs too much memory"
        raise ImageError(f"the image {path} cannot be used: {reason}", _REBUILD) from error
    except OSError as error:
        raise ImageError(f"cannot read the image {path}: {error.strerror}") from error


def read_superblock(path: Path) -> Superblock:
    """Read the head of an image and compare it with the file.

    Args:
        path: of the image.

    Raises:
        ImageError: If there is no such file, if it is no SquashFS 4.0 image, or if it is shorter
            than its own superblock says.
    """
    from condainer import squashfs

    with opened(path) as descriptor:
        return squashfs.read_superblock(descriptor)


def fingerprint(path: Path) -> str:
    """Tells the content of an image from that of others, without reading all of it.

    Args:
        path: of the image.

    Raises:
        ImageError: If it cannot be read.
    """
    from condainer import squashfs

    with opened(path) as descriptor:
        return squashfs.fingerprint(descriptor)


def read_inside(path: Path, name: str) -> bytes:
    """Read a small file inside an image, such as the manifest, without mounting it.

    Args:
        path: of the image.
        name: path of the file inside; no links are followed.

    Raises:
        ImageError: If the image is damaged or has no such file, if that is too large, or if this
            interpreter cannot read the image's compression.
    """
    from condainer.squashfs import FileSystem, Image, NotFoundError, WrongKindError, read_file

    with opened(path) as descriptor:
        try:
            inside = FileSystem(Image(descriptor), threads=0)
            return read_file(inside, os.fsencode(name), MANIFEST_MAX)
        except NotFoundError:
            raise ImageError(f"{path} was not built by condainer: it has no {name}") from None
        except WrongKindError:
            raise ImageError(f"{path} was not built by condainer: {name} is no file") from None


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest inside an image, without mounting it.

    Args:
        path: of the image.

    Raises:
        ImageError: If the image is damaged, was not built by condainer, or uses a compression that
            this interpreter cannot read.
    """
    try:
        manifest = files.parse_json(read_inside(path, MANIFEST), most_values=_MANIFEST_VALUES)
    except ValueError as error:
        raise ImageError(
            f"the image {path} cannot be used: {MANIFEST}: {error}", _REBUILD
        ) from error
    if not _is_manifest(manifest):
        raise ImageError(f"the manifest of {path} is not what it should be", _REBUILD)
    return cast("dict[str, Any]", manifest)


def _is_manifest(document: object) -> bool:
    """Whether what others read of it has the types that it should have."""
    return (
        isinstance(document, dict)
        and all(isinstance(document.get(key, kind()), kind) for key, kind in _KINDS.items())
        and all(isinstance(version, str) for version in document.get("tools", {}).values())
    )
