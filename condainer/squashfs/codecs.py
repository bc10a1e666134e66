"""Decompressing: one function for each compression of SquashFS, none of which trusts its input.

Each takes compressed bytes and the most that may come of them. It returns what came of them or
raises `CodecError`: a block of a few bytes that claims to be a gigabyte costs no memory. All
release the interpreter lock while they work, unless their library is missing and they are done in
Python.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from condainer.squashfs.errors import CodecError

if TYPE_CHECKING:
    from collections.abc import Callable
    from ctypes import CDLL

_LARGEST_BLOCK = 1 << 20
_MEMORY = 16 * _LARGEST_BLOCK
"""Bytes that xz and lzma may use: their dictionaries are no larger than a block."""

_LZO_M2_OFFSET = 0x0800
_LZO_M4_OFFSET = 0x4000


def find(compression: str) -> Callable[[bytes, int], bytes]:
    """What decompresses the blocks of an image.

    Args:
        compression: its name, one of `structures.COMPRESSIONS`.

    Returns:
        a function of the compressed bytes and of the most bytes that may come of them. Any number
        of threads may call it at once.

    Raises:
        CodecError: If there is no such compression, or what it needs is missing.
    """
    makers = {
        "gzip": _gzip,
        "lzma": _lzma,
        "lzo": _lzo,
        "xz": _xz,
        "lz4": _lz4,
        "zstd": _zstd,
    }
    if compression not in makers:
        raise CodecError(f"there is no compression {compression}")
    try:
        return makers[compression]()
    except ImportError as error:
        raise CodecError(f"this Python has no module {error.name}") from error


def _gzip() -> Callable[[bytes, int], bytes]:
    import zlib

    def decompress(data: bytes, most: int) -> bytes:
        stream = zlib.decompressobj()
        try:
            out = stream.decompress(data, most)
            if not stream.eof and stream.decompress(stream.unconsumed_tail, 1):
                raise CodecError("a block is larger than it may be")
        except zlib.error as error:
            raise CodecError(str(error)) from error
        if not stream.eof:
            raise CodecError("a block is incomplete")
        return out

    return decompress


def _xz() -> Callable[[bytes, int], bytes]:
    import lzma

    return _liblzma(lzma.FORMAT_XZ)


def _lzma() -> Callable[[bytes, int], bytes]:
    import lzma

    return _liblzma(lzma.FORMAT_ALONE)


def _liblzma(kind: int) -> Callable[[bytes, int], bytes]:
    import lzma

    def decompress(data: bytes, most: int) -> bytes:
        try:
            stream = lzma.LZMADecompressor(kind, memlimit=_MEMORY)
            out = stream.decompress(data, most)
            if not stream.eof and stream.decompress(b"", 1):
                raise CodecError("a block is larger than it may be")
        except (lzma.LZMAError, EOFError, MemoryError) as error:
            raise CodecError(str(error)) from error
        if not stream.eof:
            raise CodecError("a block is incomplete")
        return out

    return decompress


def _zstd() -> Callable[[bytes, int], bytes]:
    import zstandard

    own = threading.local()  # a context serves one thread at a time

    def decompress(data: bytes, most: int) -> bytes:
        try:
            context = own.context
        except AttributeError:
            context = own.context = zstandard.ZstdDecompressor(max_window_size=_LARGEST_BLOCK)
        try:
            # If the frame tells its size, that much is allocated, whatever is asked for.
            if zstandard.frame_content_size(data) > most:
                raise CodecError("a block is larger than it may be")
            out: bytes = context.decompress(data, max_output_size=most)
        except zstandard.ZstdError as error:
            raise CodecError(str(error)) from error
        return out

    return decompress


def _lz4() -> Callable[[bytes, int], bytes]:
    library = _library("liblz4.so.1")
    if library is None:
        return _lz4_in_python
    import ctypes

    function = library.LZ4_decompress_safe

    def decompress(data: bytes, most: int) -> bytes:
        out = ctypes.create_string_buffer(max(most, 1))
        size = function(data, out, len(data), most)
        if size < 0:
            raise CodecError("a block of lz4 is damaged")
        return ctypes.string_at(out, size)

    return decompress


def _lzo() -> Callable[[bytes, int], bytes]:
    library = _library("liblzo2.so.2")
    if library is None:
        return _lzo_in_python
    import ctypes

    function = library.lzo1x_decompress_safe
    pointer = ctypes.c_void_p
    function.argtypes = (pointer, ctypes.c_size_t, pointer, pointer, pointer)

    def decompress(data: bytes, most: int) -> bytes:
        out = ctypes.create_string_buffer(max(most, 1))
        size = ctypes.c_size_t(most)
        if function(data, len(data), out, ctypes.byref(size), None) != 0:
            raise CodecError("a block of lzo is damaged")
        return ctypes.string_at(out, size.value)

    return decompress


def _library(name: str) -> CDLL | None:
    import ctypes

    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def _lz4_in_python(data: bytes, most: int) -> bytes:
    """The block format: https://github.com/lz4/lz4/blob/dev/doc/lz4_Block_format.md."""
    out = bytearray()
    position = 0
    try:
        while True:
            token = data[position]
            position += 1
            length, position = _lz4_length(data, position, token >> 4)
            if position + length > len(data):
                raise CodecError("a block of lz4 is damaged")
            out += data[position : position + length]
            position += length
            if position == len(data):
                break
            offset = data[position] | data[position + 1] << 8
            length, position = _lz4_length(data, position + 2, token & 15)
            _copy(out, offset, length + 4, most)
    except IndexError as error:
        raise CodecError("a block of lz4 is damaged") from error
    if len(out) > most:
        raise CodecError("a block is larger than it may be")
    return bytes(out)


def _lz4_length(data: bytes, position: int, length: int) -> tuple[int, int]:
    if length == 15:  # noqa: PLR2004  (all four bits: more follows)
        more = 255
        while more == 255:  # noqa: PLR2004
            more = data[position]
            position += 1
            length += more
    return length, position


def _copy(out: bytearray, distance: int, length: int, most: int) -> None:
    """Repeat what was put out before; the source may overlap with what is being put out."""
    start = len(out) - distance
    if distance <= 0 or start < 0 or len(out) + length > most:
        raise CodecError("a block is damaged")
    piece = out[start : start + length]
    out += (piece * -(-length // len(piece)))[:length]


def _lzo_in_python(data: bytes, most: int) -> bytes:
    """LZO1X: https://docs.kernel.org/staging/lzo.html."""
    try:
        return bytes(_Lzo(data, most).decompress())
    except IndexError as error:
        raise CodecError("a block of lzo is damaged") from error


class _Lzo:
    """One block while it is decompressed."""

    def __init__(self, data: bytes, most: int) -> None:
        self.data = data
        self.most = most
        self.position = 0
        self.out = bytearray()

    def decompress(self) -> bytearray:
        state = 0
        first = self.data[0]
        if first > 17:  # noqa: PLR2004  (a run of literals opens the block)
            self.position = 1
            self.literals(first - 17)
            state = min(first - 17, 4)
        while True:
            code = self.byte()
            if code < 16:  # noqa: PLR2004
                if state == 0:
                    self.literals(3 + self.length(code, 15))
                    state = 4
                    continue
                self.short_match(code, state)
            elif code >= 64:  # noqa: PLR2004
                length = (code >> 5) + 1
                distance = (self.byte() << 3) + (code >> 2 & 7) + 1
                self.trail = code & 3
                _copy(self.out, distance, length, self.most)
            elif self.long_match(code):
                return self.out
            state = self.trail
            self.literals(state)

    def short_match(self, code: int, state: int) -> None:
        distance = (self.byte() << 2) + (code >> 2) + 1
        self.trail = code & 3
        if state == 4:  # noqa: PLR2004  (after a long run of literals)
            _copy(self.out, distance + _LZO_M2_OFFSET, 3, self.most)
        else:
            _copy(self.out, distance, 2, self.most)

    def long_match(self, code: int) -> bool:
        """Copy from further away; True if it was the end of the block."""
        if code >= 32:  # noqa: PLR2004
            length = 2 + self.length(code & 31, 31)
            base = 1
        else:
            length = 2 + self.length(code & 7, 7)
            base = _LZO_M4_OFFSET + (code >> 3 & 1) * _LZO_M4_OFFSET
        low = self.byte()
        word = low | self.byte() << 8
        distance = base + (word >> 2)
        self.trail = word & 3
        if code < 32 and distance == _LZO_M4_OFFSET:  # noqa: PLR2004
            return True
        _copy(self.out, distance, length, self.most)
        return False

    def length(self, length: int, full: int) -> int:
        if length:
            return length
        more = self.byte()
        while more == 0:
            length += 255
            more = self.byte()
        return length + full + more

    def literals(self, length: int) -> None:
        end = self.position + length
        if end > len(self.data) or len(self.out) + length > self.most:
            raise CodecError("a block of lzo is damaged")
        self.out += self.data[self.position : end]
        self.position = end

    def byte(self) -> int:
        self.position += 1
        return self.data[self.position - 1]
