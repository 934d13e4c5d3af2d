"""Kafka's default partitioner over whole columns of user ids.

partition = (murmur2(utf-8 of the user id as text) & 0x7fffffff) % partitions

so that any Kafka client that sends JSON with the user id as the key agrees with us (Apache Kafka,
org.apache.kafka.common.utils.Utils.murmur2).
"""

import numpy as np
import pyarrow as pa
from numba import njit

from streaming.arrays import Int32Array, Int64Array, UInt8Array

_MAX_DIGITS = 20
KEY_HASHES = 1 << 31
"""Number of possible key hashes; a key hash modulo this is itself."""


def partition_of_users(user_ids: Int64Array, partitions: int) -> Int32Array:
    """The partition of each user.

    Args:
        user_ids: int64, (n,).
        partitions: partitions of the topic, at least 1.
    Returns:
        int32, (n,).
    Raises:
        ValueError: `partitions` is less than 1.
    """
    _require_partitions(partitions)
    out = np.empty(len(user_ids), np.int32)
    _partition_numbers(np.ascontiguousarray(user_ids, np.int64), partitions, out)
    return out


def partition_of_texts(user_ids: pa.Array, partitions: int) -> Int32Array:
    """The partition of each user whose id is a text.

    Args:
        user_ids: Arrow string array without nulls, (n,).
        partitions: partitions of the topic, at least 1.
    Returns:
        int32, (n,).
    """
    _require_partitions(partitions)
    data, offsets = text_buffers(user_ids)
    out = np.empty(len(user_ids), np.int32)
    _partition_texts(data, offsets, partitions, out)
    return out


def key_hashes_of_users(user_ids: Int64Array) -> Int32Array:
    """Kafka's hash of each user id as text, int32 (n,), not negative: modulo the partitions it is the partition."""
    return partition_of_users(user_ids, KEY_HASHES)


def key_hashes_of_texts(user_ids: pa.Array) -> Int32Array:
    """The same where the ids are texts (an Arrow string array without nulls)."""
    return partition_of_texts(user_ids, KEY_HASHES)


def text_buffers(texts: pa.Array) -> tuple[UInt8Array, Int64Array]:
    """UInt8Array and int64 offsets (n + 1,) of an Arrow string array without nulls."""
    texts = texts.cast(pa.large_string())
    _, offsets, data = texts.buffers()
    if len(texts) == 0 or offsets is None:
        return np.empty(0, np.uint8), np.zeros(1, np.int64)
    start = texts.offset
    offset_array = np.frombuffer(offsets, np.int64)[start : start + len(texts) + 1]
    return np.frombuffer(data, np.uint8) if data else np.empty(0, np.uint8), offset_array


def _require_partitions(partitions: int) -> None:
    if partitions < 1:
        raise ValueError(f"partitions must be at least 1, not {partitions}")


@njit(cache=True, nogil=True)
def murmur2(data: UInt8Array, start: int, end: int) -> np.uint32:
    """Kafka's MurmurHash2 (seed 0x9747b28c) of data[start:end]."""
    m = np.uint32(0x5BD1E995)
    h = np.uint32(np.uint32(0x9747B28C) ^ np.uint32(end - start))
    at = start
    while end - at >= 4:
        k = np.uint32(data[at]) | (np.uint32(data[at + 1]) << np.uint32(8))
        k |= (np.uint32(data[at + 2]) << np.uint32(16)) | (np.uint32(data[at + 3]) << np.uint32(24))
        k = np.uint32(np.uint32(k) * m)
        k = np.uint32(np.uint32(k ^ (k >> np.uint32(24))) * m)
        h = np.uint32(np.uint32(h * m) ^ k)
        at += 4
    if end - at >= 3:
        h = np.uint32(h ^ (np.uint32(data[at + 2]) << np.uint32(16)))
    if end - at >= 2:
        h = np.uint32(h ^ (np.uint32(data[at + 1]) << np.uint32(8)))
    if end - at >= 1:
        h = np.uint32(np.uint32(h ^ np.uint32(data[at])) * m)
    h = np.uint32(np.uint32(h ^ (h >> np.uint32(13))) * m)
    return np.uint32(h ^ (h >> np.uint32(15)))


@njit(cache=True, nogil=True)
def _write_decimal(number: np.int64, text: UInt8Array) -> int:
    """Writes the number right-aligned and returns where it starts."""
    # The magnitude as unsigned, so that -2**63 has one.
    rest = np.uint64(number) if number >= 0 else np.uint64(0) - np.uint64(number)
    at = _MAX_DIGITS
    while True:
        at -= 1
        quotient = np.uint64(rest // np.uint64(10))
        text[at] = np.uint8(48 + np.int64(rest - quotient * np.uint64(10)))
        rest = quotient
        if rest == np.uint64(0):
            break
    if number < 0:
        at -= 1
        text[at] = np.uint8(45)
    return at


@njit(cache=True, nogil=True)
def _partition_numbers(user_ids: Int64Array, partitions: int, out: Int32Array) -> None:
    text = np.empty(_MAX_DIGITS, np.uint8)
    for n in range(len(user_ids)):
        start = _write_decimal(user_ids[n], text)
        hashed = np.int64(murmur2(text, start, _MAX_DIGITS)) & np.int64(0x7FFFFFFF)
        out[n] = hashed % partitions


@njit(cache=True, nogil=True)
def _partition_texts(data: UInt8Array, offsets: Int64Array, partitions: int, out: Int32Array) -> None:
    for n in range(len(out)):
        hashed = np.int64(murmur2(data, offsets[n], offsets[n + 1])) & np.int64(0x7FFFFFFF)
        out[n] = hashed % partitions
