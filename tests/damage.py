"""Images, and damage of all kinds to them, the same each time."""

from __future__ import annotations

import functools
import random
import struct
from typing import TYPE_CHECKING, NamedTuple

from tests import images
from tests.forgery import BEYOND, LIES, Forgery

if TYPE_CHECKING:
    from pathlib import Path

BLOCK_SIZES = ("4K", "128K", "1M")
_BOMB = 8 << 20
"""Bytes that come of a bomb: more than any block may hold."""
_VALUES = (
    b"\xff\xff\xff\xff",
    b"\0\0\0\0",
    b"\xff\xff\xff\x7f",
    b"\0\0\0\x80",
    b"\xff\xff",
    b"\0\0",
)
_DIRECTORIES = (b"", b"directory", b"directory/inner", b"large")
_EDIT = struct.Struct("<HBI")


class Original(NamedTuple):
    """An image that is whole.

    Attributes:
        path: of its file.
        data: what is in it.
        compressor: of its blocks.
        is_plain: whether its tables are not compressed, so that a number in them can be changed.
    """

    path: Path
    data: bytes
    compressor: str
    is_plain: bool


def originals(directory: Path) -> list[Original]:
    """Small images of all compressors and of small and large blocks; made where there are none."""
    collection = images.Collection(directory)
    found = []
    for compressor in images.COMPRESSORS:
        for size in BLOCK_SIZES:
            for plain in ((), ("-noI", "-noX")):
                options = ("-comp", compressor, "-b", size, "-always-use-fragments", *plain)
                path = collection.image("small", *options)
                found.append(Original(path, path.read_bytes(), compressor, bool(plain)))
    return found


def damaged(original: Original, seed: int) -> bytes:
    """An image with some damage, mostly in its metadata; some are cut short."""
    chance = random.Random(seed)  # noqa: S311
    data = bytearray(original.data)
    if original.is_plain and chance.randrange(2):
        forgery = Forgery(original.path)
        _forge(forgery, original.compressor, chance)
        data = forgery.data
    if original.data == data or chance.randrange(3) == 0:
        _hurt(data, original.data, chance)
    if chance.randrange(12) == 0:
        _cut(data, chance)
    return bytes(data)


def edited(image: bytes, edits: bytes) -> bytes:
    """An image with some of its metadata changed: where, how many bytes, and to what."""
    begin, end = _metadata(image)
    data = bytearray(image)
    whole = len(edits) // _EDIT.size * _EDIT.size
    for place, width, value in _EDIT.iter_unpack(edits[:whole]):
        start = begin + place % (end - begin - 4)
        count = 1 + width % 4
        data[start : start + count] = value.to_bytes(4, "little")[:count]
    return bytes(data)


def _metadata(image: bytes) -> tuple[int, int]:
    """Where the tables of an image begin and end: from that of the inodes on."""
    begin, end = struct.unpack_from("<64xQ", image)[0], struct.unpack_from("<40xQ", image)[0]
    return begin, end


def _hurt(data: bytearray, whole: bytes, chance: random.Random) -> None:
    """Change bits, bytes, numbers and stretches."""
    begin, end = _metadata(whole)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        low, high = chance.choice(((begin, end),) * 18 + ((96, end), (0, 96)))
        place = chance.randrange(low, high - 8)
        match chance.randrange(5):
            case 0:
                data[place] ^= 1 << chance.randrange(8)
            case 1:
                data[place] = chance.randrange(256)
            case 2:
                value = chance.choice(_VALUES)
                data[place : place + len(value)] = value
            case 3:
                other = chance.randrange(begin, end - 8)
                data[place : place + 8] = data[other : other + 8]
            case _:
                length = min(chance.choice((20, 200, 2000)), high - place)
                other = chance.randrange(96, end - length)
                data[place : place + length] = data[other : other + length]


def _cut(data: bytearray, chance: random.Random) -> None:
    """Cut an image short; where its superblock agrees, it is found out later."""
    del data[chance.randrange(len(data)) :]
    if chance.randrange(3) and len(data) > 48:
        struct.pack_into("<Q", data, 40, len(data))


def _forge(forgery: Forgery, compressor: str, chance: random.Random) -> None:
    match chance.randrange(4):
        case 0:
            forgery.lead(chance.choice(_DIRECTORIES), chance.choice(_DIRECTORIES))
        case 1:
            _plant(forgery, compressor, chance)
        case 2:
            place = chance.choice((16, 26, 32, 40, 48, 56, 64, 72, 80))
            value = chance.choice((0, 5, chance.randrange(len(forgery.data)), BEYOND, BEYOND + 15))
            form = {16: "<I", 26: "<H"}.get(place, "<Q")
            forgery.superblock(place, form, value % (1 << 8 * struct.calcsize(form)))
        case _:
            for change, _ in chance.sample(list(LIES.values()), chance.choice((1, 2, 4))):
                change(forgery)


def _plant(forgery: Forgery, compressor: str, chance: random.Random) -> None:
    """Put a bomb in the place of a data block, a fragment, or a part of a table."""
    block = _bomb(compressor, chance.choice((10_000, 1 << 20, _BOMB)))
    place = len(forgery.data)
    match chance.randrange(4):
        case 0:
            forgery.data += block
            forgery.inode(b"noise", 16, "<Q", place)
            forgery.inode(b"noise", 56, "<I", len(block))
        case 1:
            forgery.data += block
            forgery.fragment(b"text", 0, "<Q", place)
            forgery.fragment(b"text", 8, "<I", len(block))
        case 2:
            forgery.data += struct.pack("<H", len(block) & 0x7FFF) + block
            forgery.index(2, place)
        case _:  # which the names of a directory come after
            forgery.data += struct.pack("<H", len(block) & 0x7FFF) + block
            (table,) = struct.unpack_from("<72xQ", forgery.data)
            forgery.inode(b"large", 24, "<I", place - table)
    forgery.superblock(40, "<Q", len(forgery.data))


@functools.cache
def _bomb(compressor: str, size: int) -> bytes:
    return images.bomb(compressor, size)
