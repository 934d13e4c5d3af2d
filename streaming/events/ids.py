"""The one rule for ids, wherever they are read: events, catalogue records, tombstones, replays, the command line.

An id is an int64. A text that is the plain decimal form of an int64 is that integer, because Kafka keys are texts and a
tombstone could not distinguish the two. Every other text ("007", "+1", "sku-1") is hashed by xxh64. A floating-point
number is the integer that it equals, if it has no fraction and its type holds every integer up to it exactly. Both
forms of an id have the same text, and so the same partition.
"""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numba import njit

from streaming.arrays import BoolArray, Int32Array, Int64Array, UInt8Array
from streaming.events.faults import Reason
from streaming.events.hashing import xxh64
from streaming.events.partitioner import key_hashes_of_texts, key_hashes_of_users, text_buffers
from streaming.events.quoting import quoted

EXACT_IN_DOUBLE = 2**53
"""Below this a float64 holds every integer."""
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
_MOST_DIGITS = 19


def ids_of_texts(texts: pa.Array) -> Int64Array:
    """The id of each text.

    Args:
        texts: Arrow string array without nulls, (n,).
    Returns:
        int64, (n,).
    """
    data, offsets = text_buffers(texts)
    out = np.empty(len(texts), np.int64)
    _read_ids(data, offsets, out)
    return out


def are_numbers(texts: pa.Array) -> BoolArray:
    """bool (n,): whether each text is the plain decimal form of an int64; nulls are not allowed."""
    data, offsets = text_buffers(texts)
    out = np.empty(len(texts), np.bool_)
    _find_decimals(data, offsets, out)
    return out


def id_of_text(text: str) -> int:
    """The id of one text, from the command line or a Kafka key."""
    return int(ids_of_texts(pa.array([text], pa.string()))[0])


def is_whole(number: float) -> bool:
    """Whether a float64 is exactly an integer, within the range in which every integer has a float64."""
    return number.is_integer() and abs(number) <= EXACT_IN_DOUBLE


def problem_of_id(name: str, identifier: Any) -> str:
    """Why a decoded JSON value is not an id; empty if it is one."""
    # bool is a subclass of int but not a number, so `type() is` instead of isinstance.
    if type(identifier) is int:
        if INT64_MIN <= identifier <= INT64_MAX:
            return ""
        return Reason("wrong_type", f"{name} must fit in 64 bits, got {quoted(identifier)}")
    if identifier is None or identifier == "":
        return Reason("missing_field", f"{name} is missing")
    if type(identifier) is str or (type(identifier) is float and is_whole(identifier)):
        return ""
    return Reason("wrong_type", f"{name} must be an integer or a string, got {quoted(identifier)}")


def text_of_id(identifier: float | str) -> str:
    """The text of an id that has passed `problem_of_id`: its message's key, which determines the partition."""
    return str(int(identifier)) if type(identifier) is float else str(identifier)


def integer_ids(ids: list[Any]) -> Int64Array:
    """Decoded JSON ids as int64 (n,); they must have passed `problem_of_id`."""
    return read_ids(ids).ids_N


class ReadIds(NamedTuple):
    """Decoded JSON ids.

    Attributes:
        ids_N: int64.
        text_at: places of those that came as texts.
        texts: Arrow strings, the texts at these places.
    """

    ids_N: Int64Array
    text_at: list[int]
    texts: pa.Array

    def key_hashes(self) -> Int32Array:
        """Kafka's hash of each id as text, int32 (n,)."""
        key_N = key_hashes_of_users(self.ids_N)
        if self.text_at:
            key_N[self.text_at] = key_hashes_of_texts(self.texts)
        return key_N

    def text_column(self) -> pa.Array | None:
        """Arrow strings (n,), null where an id came as a number; None if all did."""
        if not self.text_at:
            return None
        place_N = np.full(len(self.ids_N), -1, np.int64)
        place_N[self.text_at] = np.arange(len(self.text_at))
        return self.texts.take(pa.array(place_N, mask=place_N < 0))


def read_ids(ids: list[Any]) -> ReadIds:
    """Decoded JSON ids that have passed `problem_of_id`."""
    ids_N = np.array([0 if type(i) is str else i for i in ids], np.int64)
    text_at = [n for n, identifier in enumerate(ids) if type(identifier) is str]
    texts = pa.array([ids[n] for n in text_at], pa.string())
    if text_at:
        ids_N[text_at] = ids_of_texts(texts)
    return ReadIds(ids_N, text_at, texts)


@njit(cache=True, nogil=True)
def _read_ids(data: UInt8Array, offsets: Int64Array, out: Int64Array) -> None:
    for n in range(len(out)):
        start, end = offsets[n], offsets[n + 1]
        if _is_decimal(data, start, end):
            out[n] = _decimal(data, start, end)
        else:
            out[n] = np.int64(xxh64(data, start, end))


@njit(cache=True, nogil=True)
def _find_decimals(data: UInt8Array, offsets: Int64Array, out: BoolArray) -> None:
    for n in range(len(out)):
        out[n] = _is_decimal(data, offsets[n], offsets[n + 1])


@njit(cache=True, nogil=True)
def _is_decimal(data: UInt8Array, start: int, end: int) -> bool:
    """Whether the bytes are the plain decimal form of an int64; each integer has exactly one."""
    negative = end > start and data[start] == 45
    first = start + 1 if negative else start
    digits = end - first
    if digits < 1 or digits > _MOST_DIGITS:
        return False
    if data[first] == 48:
        return digits == 1 and not negative
    for at in range(first, end):
        if data[at] < 48 or data[at] > 57:
            return False
    limit = np.uint64(1) << np.uint64(63)
    magnitude = _magnitude(data, first, end)
    return bool(magnitude <= limit if negative else magnitude < limit)


@njit(cache=True, nogil=True)
def _magnitude(data: UInt8Array, first: int, end: int) -> np.uint64:
    # Nineteen digits are always below 2**64.
    value = np.uint64(0)
    for at in range(first, end):
        value = np.uint64(value * np.uint64(10) + np.uint64(data[at] - 48))
    return value


@njit(cache=True, nogil=True)
def _decimal(data: UInt8Array, start: int, end: int) -> np.int64:
    if data[start] == 45:
        return np.int64(np.uint64(0) - _magnitude(data, start + 1, end))
    return np.int64(_magnitude(data, start, end))
