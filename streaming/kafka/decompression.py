"""Decompression that stops at a limit; the size that a batch declares is not trusted.

The formats are those of Kafka's record batches. Each package is imported when a batch needs it.
"""

import struct
import zlib
from collections.abc import Iterator

from kafka.errors import UnsupportedCodecError

GZIP, SNAPPY, LZ4, ZSTD = 1, 2, 3, 4
_NAMES = {GZIP: "gzip", SNAPPY: "snappy", LZ4: "lz4", ZSTD: "zstd"}
_PIECE_BYTES = 1 << 18
# Beginning of Java's snappy stream: a magic word and two version numbers.
_XERIAL_MAGIC, _XERIAL_HEADER_BYTES = b"\x82SNAPPY\x00", 16
_BLOCK_LENGTH = struct.Struct(">i")


class TooLarge(ValueError):
    """Data decompress to more bytes than allowed."""


def codec_name(codec: int) -> str:
    """What a batch is compressed with, from the number of its codec."""
    return _NAMES.get(codec, f"codec {codec}") if codec else "none"


def decompress(codec: int, data: bytes, limit: int) -> bytearray:
    """The decompressed bytes, as Kafka's codecs write them.

    Args:
        codec: the number of the codec in a record batch's attributes.
        data: compressed.
        limit: maximum size in bytes after decompression.
    Raises:
        TooLarge: the decompressed data are larger.
        ValueError: the data are damaged. Truncated zstd data are returned as far as they go.
        UnsupportedCodecError: the codec is unknown.
    """
    pieces = {GZIP: _gzip, SNAPPY: _snappy, LZ4: _lz4, ZSTD: _zstd}.get(codec)
    if pieces is None:
        raise UnsupportedCodecError(f"compression type {codec}")
    out = bytearray()
    try:
        for piece in pieces(data, limit):
            out += piece
            if len(out) > limit:
                raise TooLarge(f"it decompresses to more than {limit} bytes ({_NAMES[codec]})")
    except TooLarge:
        raise
    except ImportError as error:
        raise UnsupportedCodecError(f"{_NAMES[codec]}: {error}") from error
    # Each package has its own errors; all of them mean that the bytes are damaged.
    except Exception as error:
        raise ValueError(f"it cannot be decompressed ({_NAMES[codec]}): {error}") from error
    return out


def _gzip(data: bytes, limit: int) -> Iterator[bytes]:
    while data:
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            piece = member.decompress(data, _PIECE_BYTES)
            if not piece and not member.eof:
                raise ValueError("it ends too early")
            yield piece
            data = member.unconsumed_tail
        data = member.unused_data


def _snappy(data: bytes, limit: int) -> Iterator[bytes]:
    import snappy

    for block in _snappy_blocks(data):
        declared = _snappy_length(block)
        if declared > limit:
            raise TooLarge(f"it decompresses to more than {limit} bytes (snappy)")
        yield snappy.decompress(block)


def _snappy_blocks(data: bytes) -> Iterator[bytes]:
    if not data.startswith(_XERIAL_MAGIC):
        yield data
        return
    at = _XERIAL_HEADER_BYTES
    while at < len(data):
        (length,) = _BLOCK_LENGTH.unpack_from(data, at)
        at += _BLOCK_LENGTH.size
        if not 0 < length <= len(data) - at:
            raise ValueError(f"a block of {length} bytes")
        yield data[at : at + length]
        at += length


def _snappy_length(block: bytes) -> int:
    """The length that a block declares: a varint of at most five bytes."""
    length = 0
    for place, byte in enumerate(block[:5]):
        length |= (byte & 0x7F) << (7 * place)
        if not byte & 0x80:
            return length
    raise ValueError("a block without a length")


def _lz4(data: bytes, limit: int) -> Iterator[bytes]:
    import lz4.frame

    frame = lz4.frame.LZ4FrameDecompressor()
    yield frame.decompress(data, max_length=_PIECE_BYTES)
    while not frame.eof:
        if frame.needs_input:
            raise ValueError("it ends too early")
        yield frame.decompress(b"", max_length=_PIECE_BYTES)


def _zstd(data: bytes, limit: int) -> Iterator[bytes]:
    import zstandard

    with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as reader:
        while piece := reader.read(_PIECE_BYTES):
            yield piece
