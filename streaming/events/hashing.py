"""xxh64 hashes of texts as int64 ids: string ids, categories and attribute values.

Source: xxHash specification 0.1.1 (XXH64, seed 0); equality with the `xxhash` package is tested.
"""

import numpy as np
import pyarrow as pa
from numba import njit

from streaming.arrays import Int64Array, UInt8Array
from streaming.events.partitioner import text_buffers

_P1 = np.uint64(0x9E3779B185EBCA87)
_P2 = np.uint64(0xC2B2AE3D27D4EB4F)
_P3 = np.uint64(0x165667B19E3779F9)
_P4 = np.uint64(0x85EBCA77C2B2AE63)
_P5 = np.uint64(0x27D4EB2F165667C5)


def hash_texts(texts: pa.Array) -> Int64Array:
    """xxh64 of each text's UTF-8, as signed int64.

    Args:
        texts: Arrow string array without nulls, (n,).
    Returns:
        int64, (n,).
    """
    data, offsets = text_buffers(texts)
    out = np.empty(len(texts), np.int64)
    _hash_slices(data, offsets, out)
    return out


def feature_ids(texts: pa.Array) -> Int64Array:
    """As `hash_texts`, but never 0, which means "none" in a feature column."""
    ids = hash_texts(texts)
    ids[ids == 0] = 1
    return ids


@njit(cache=True, nogil=True)
def _rotate(x: np.uint64, bits: int) -> np.uint64:
    return np.uint64((x << np.uint64(bits)) | (x >> np.uint64(64 - bits)))


@njit(cache=True, nogil=True)
def _round(acc: np.uint64, lane: np.uint64) -> np.uint64:
    return np.uint64(_rotate(np.uint64(acc + lane * _P2), 31) * _P1)


@njit(cache=True, nogil=True)
def _little_endian(data: UInt8Array, at: int, width: int) -> np.uint64:
    value = np.uint64(0)
    for byte in range(width):
        value |= np.uint64(data[at + byte]) << np.uint64(8 * byte)
    return value


@njit(cache=True, nogil=True)
def _stripes(data: UInt8Array, start: int, end: int) -> np.uint64:
    """State after all whole 32-byte stripes of data[start:end]; there must be at least one."""
    v1, v2, v3, v4 = np.uint64(_P1 + _P2), _P2, np.uint64(0), np.uint64(np.uint64(0) - _P1)
    at = start
    while end - at >= 32:
        v1 = _round(v1, _little_endian(data, at, 8))
        v2 = _round(v2, _little_endian(data, at + 8, 8))
        v3 = _round(v3, _little_endian(data, at + 16, 8))
        v4 = _round(v4, _little_endian(data, at + 24, 8))
        at += 32
    state = np.uint64(_rotate(v1, 1) + _rotate(v2, 7) + _rotate(v3, 12) + _rotate(v4, 18))
    for lane in (v1, v2, v3, v4):
        state = np.uint64((state ^ _round(np.uint64(0), lane)) * _P1 + _P4)
    return state


@njit(cache=True, nogil=True)
def xxh64(data: UInt8Array, start: int, end: int) -> np.uint64:
    """The hash of data[start:end]."""
    length = end - start
    state = _stripes(data, start, end) if length >= 32 else _P5
    state = np.uint64(state + np.uint64(length))
    at = start + length // 32 * 32
    while end - at >= 8:
        lane = _round(np.uint64(0), _little_endian(data, at, 8))
        state = np.uint64(_rotate(np.uint64(state ^ lane), 27) * _P1 + _P4)
        at += 8
    if end - at >= 4:
        lane = np.uint64(_little_endian(data, at, 4) * _P1)
        state = np.uint64(_rotate(np.uint64(state ^ lane), 23) * _P2 + _P3)
        at += 4
    while at < end:
        state = np.uint64(_rotate(np.uint64(state ^ np.uint64(np.uint64(data[at]) * _P5)), 11) * _P1)
        at += 1
    state = np.uint64((state ^ (state >> np.uint64(33))) * _P2)
    state = np.uint64((state ^ (state >> np.uint64(29))) * _P3)
    return np.uint64(state ^ (state >> np.uint64(32)))


@njit(cache=True, nogil=True)
def _hash_slices(data: UInt8Array, offsets: Int64Array, out: Int64Array) -> None:
    for n in range(len(out)):
        out[n] = np.int64(xxh64(data, offsets[n], offsets[n + 1]))
