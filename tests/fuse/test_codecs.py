"""The decompressors: what real compressors made comes back, and nothing may make them do harm."""

from __future__ import annotations

import ctypes
import functools
import lzma
import random
import tracemalloc
import zlib
from typing import TYPE_CHECKING

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from condainer.squashfs import CodecError, codecs
from tests import images

if TYPE_CHECKING:
    from collections.abc import Callable

    Codec = Callable[[bytes, int], bytes]

MOST = 1 << 20
"""Bytes of the largest block."""
NUMBERS = {name: number for number, name in enumerate(images.COMPRESSORS, 1)}
HIDDEN = {"lz4": "liblz4.so.1", "lzo": "liblzo2.so.2"}
"""Libraries without which Python does it."""
WAYS = [*images.COMPRESSORS, *(f"{name} in Python" for name in HIDDEN)]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def compressor_of(way: str) -> str:
    return way.partition(" ")[0]


@functools.cache
def codec(way: str) -> Codec:
    """The decompressor, or the one that is used where there is no library."""
    name = compressor_of(way)
    if name == way:
        return codecs.find(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codecs, "_library", lambda _name: None)
        return codecs.find(name)


def compress(name: str, data: bytes) -> bytes:
    """A block as the libraries that mksquashfs uses make it."""
    match name:
        case "gzip":
            return zlib.compress(data)
        case "lzma":
            return lzma.compress(data, format=lzma.FORMAT_ALONE)
        case "lzo":
            return compress_lzo(data)
        case "xz":
            return lzma.compress(data, check=lzma.CHECK_CRC32)
        case "lz4":
            return compress_lz4(data)
        case _:
            return zstandard.ZstdCompressor().compress(data)


def compress_lz4(data: bytes) -> bytes:
    library = library_of("lz4")
    out = ctypes.create_string_buffer(len(data) * 2 + 64)
    size = library.LZ4_compress_default(data, out, len(data), len(out))
    assert size > 0
    return out.raw[:size]


def compress_lzo(data: bytes, variant: str = "lzo1x_999_compress") -> bytes:
    function = library_of("lzo")[variant]
    pointer = ctypes.c_void_p
    function.argtypes = (pointer, ctypes.c_size_t, pointer, pointer, pointer)
    out = ctypes.create_string_buffer(len(data) * 2 + 256)
    size = ctypes.c_size_t(len(out))
    room = ctypes.create_string_buffer(14 * 32768 * 8)
    assert function(data, len(data), out, ctypes.byref(size), room) == 0
    return out.raw[: size.value]


def library_of(name: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(HIDDEN[name])
    except OSError:
        pytest.skip(f"there is no {HIDDEN[name]} to compress with")


def samples() -> list[bytes]:
    """What compresses well, badly, and in odd ways: far away, overlapping, in long runs."""
    chance = random.Random(5)  # noqa: S311
    noise = chance.randbytes(60_000)
    words = b"".join(chance.choice((b"one ", b"two ", b"three ")) for _ in range(20_000))
    return [
        *(b"", b"a", b"ab" * 3, bytes(17), bytes(300), bytes(MOST)),
        *(noise[:1], noise[:238], noise[:300], noise, noise[:20_000] * 3),
        *(words, noise[:50_000] + words[:10_000] + noise[:50_000], (noise + bytes(70_000)) * 7),
        b"abc" * 100_000,
        b"".join(noise[i : i + i % 40] * (i % 5) for i in range(500)),
    ]


def test_blocks_of_real_compressors(way: str) -> None:
    for data in samples():
        block = compress(compressor_of(way), data)
        assert codec(way)(block, MOST) == data
        assert codec(way)(block, max(len(data), 1)) == data


pieces = st.one_of(
    st.binary(max_size=50),
    st.builds(lambda piece, count: piece * count, st.binary(max_size=20), st.integers(1, 3000)),
)


@settings(deadline=None, max_examples=150)
@given(data=st.lists(pieces, max_size=20).map(b"".join), way=st.sampled_from(WAYS))
def test_blocks_of_anything(data: bytes, way: str) -> None:
    assert codec(way)(compress(compressor_of(way), data), max(len(data), 1)) == data


@settings(deadline=None, max_examples=100)
@given(data=st.lists(pieces, max_size=20).map(b"".join))
@pytest.mark.parametrize("variant", ["lzo1x_1_compress", "lzo1x_1_15_compress"])
def test_other_variants_of_lzo(variant: str, data: bytes) -> None:
    block = compress_lzo(data, variant)
    assert codec("lzo")(block, max(len(data), 1)) == data
    assert codec("lzo in Python")(block, max(len(data), 1)) == data


def test_a_block_may_not_be_larger_than_it_may(way: str) -> None:
    data = samples()[-1]
    block = compress(compressor_of(way), data)
    for most in (len(data) - 1, len(data) // 2, 1):
        with pytest.raises(CodecError):
            codec(way)(block, most)


@pytest.mark.parametrize("most", [8192, MOST])
def test_a_bomb_costs_no_more_than_a_block(way: str, most: int) -> None:
    size = 1 << 30 if compressor_of(way) == "zstd" else 100 << 20
    assert_it_is_refused(way, images.bomb(compressor_of(way), size), most)


def test_a_bomb_that_does_not_tell_its_size() -> None:
    """Frames of zstd may leave their size out."""
    block = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(100 << 20))
    assert zstandard.frame_content_size(block) == -1
    assert_it_is_refused("zstd", block, MOST)


def assert_it_is_refused(way: str, block: bytes, most: int) -> None:
    decompress = codec(way)
    tracemalloc.start()
    try:
        with pytest.raises(CodecError):
            decompress(block, most)
        # zlib and lzma gather pieces and join them.
        assert tracemalloc.get_traced_memory()[1] < 2 * most + len(block) + (1 << 20)
    finally:
        tracemalloc.stop()


def test_a_frame_that_does_not_tell_its_size() -> None:
    data = samples()[-1]
    block = zstandard.ZstdCompressor(write_content_size=False).compress(data)
    assert codec("zstd")(block, MOST) == data


@pytest.mark.parametrize("exponent", [22, 27, 30])
def test_a_dictionary_larger_than_any_block_is_refused(exponent: int) -> None:
    """It would be allocated, whatever comes of the block."""
    block = bytearray(compress("lzma", b"text"))
    assert codec("lzma")(bytes(block), 100) == b"text"
    block[1:5] = (1 << exponent).to_bytes(4, "little")
    if exponent > 25:
        with pytest.raises(CodecError):
            codec("lzma")(bytes(block), 100)
    else:
        assert codec("lzma")(bytes(block), 100) == b"text"


def test_a_window_larger_than_any_block_is_refused() -> None:
    """Likewise."""
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=27)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    block = stream.compress(b"text") + stream.flush()
    assert zstandard.get_frame_parameters(block).window_size == 1 << 27
    with pytest.raises(CodecError):
        codec("zstd")(block, 100)


def test_a_block_that_is_cut_short(way: str) -> None:
    for data in samples()[1:]:
        block = compress(compressor_of(way), data)
        for length in {0, 1, 2, len(block) // 3, len(block) // 2, len(block) - 1}:
            if length < len(block):
                assert_harmless(way, block[:length])
                found = outcome(way, block[:length])
                assert found is None or len(found) < len(data)  # lz4 marks no end


@settings(deadline=None, max_examples=400)
@given(data=st.binary(max_size=300), way=st.sampled_from(WAYS))
def test_what_is_no_block_at_all(data: bytes, way: str) -> None:
    assert_harmless(way, data)


@settings(deadline=None, max_examples=300)
@given(chance=st.randoms(use_true_random=False), way=st.sampled_from(WAYS))
def test_a_block_that_is_damaged(chance: random.Random, way: str) -> None:
    block = bytearray(damageable(compressor_of(way)))
    for _ in range(chance.choice((1, 2, 10))):
        block[chance.randrange(len(block))] = chance.randrange(256)
    assert_harmless(way, bytes(block))


@functools.cache
def damageable(name: str) -> bytes:
    return compress(name, samples()[-1])


def assert_harmless(way: str, block: bytes) -> None:
    """An error or some bytes come of a block; where both ways to decompress it take it, the same.

    The libraries are stricter about how a block of lz4 or lzo ends.
    """
    found = {outcome(name, block) for name in (way, compressor_of(way))}
    assert len(found - {None}) <= 1


def outcome(way: str, block: bytes) -> bytes | None:
    try:
        data = codec(way)(block, 65536)
    except CodecError:
        return None
    assert len(data) <= 65536
    return data


def test_an_unknown_compressor() -> None:
    with pytest.raises(CodecError, match="there is no compression brotli"):
        codecs.find("brotli")
