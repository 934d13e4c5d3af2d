"""A growing map of (table, id) keys to dense row indices, in compiled code.

Shape letters: K keys of a call, U keys in the map.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

Int64Array = npt.NDArray[np.int64]
Int16Array = npt.NDArray[np.int16]

_EMPTY = np.int64(-1)
_MAX_LOAD = 0.6


@njit(cache=True, nogil=True, inline="always")
def mix64(value: np.uint64) -> np.uint64:
    """The finalizer of splitmix64: every input bit moves every output bit."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@njit(cache=True, nogil=True, inline="always")
def _hash_key(table: np.int16, key: np.int64) -> np.uint64:
    return mix64(np.uint64(key) + (np.uint64(table) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))


@njit(cache=True, nogil=True)
def hash_keys(tables: Int16Array, ids: Int64Array) -> npt.NDArray[np.uint64]:
    """64 mixed bits of each key, uint64 (K,); the map slot uses the low ones, buckets the high ones."""
    out = np.empty(ids.shape[0], np.uint64)
    for k in range(ids.shape[0]):
        out[k] = _hash_key(tables[k], ids[k])
    return out


@njit(cache=True, nogil=True)
def _find(
    slots: Int64Array, key_tables: Int16Array, key_ids: Int64Array, tables: Int16Array, ids: Int64Array
) -> Int64Array:
    mask = np.int64(slots.shape[0] - 1)
    out = np.empty(ids.shape[0], np.int64)
    for k in range(ids.shape[0]):
        slot = np.int64(_hash_key(tables[k], ids[k])) & mask
        while True:
            index = slots[slot]
            if index < 0 or (key_ids[index] == ids[k] and key_tables[index] == tables[k]):
                out[k] = index
                break
            slot = (slot + 1) & mask
    return out


@njit(cache=True, nogil=True)
def _add(
    slots: Int64Array,
    key_tables: Int16Array,
    key_ids: Int64Array,
    size: np.int64,
    tables: Int16Array,
    ids: Int64Array,
    out: Int64Array,
) -> np.int64:
    """Get or add every key; the caller has made room for all of them. Returns the new size."""
    mask = np.int64(slots.shape[0] - 1)
    for k in range(ids.shape[0]):
        slot = np.int64(_hash_key(tables[k], ids[k])) & mask
        while True:
            index = slots[slot]
            if index < 0:
                slots[slot] = size
                key_tables[size] = tables[k]
                key_ids[size] = ids[k]
                out[k] = size
                size += 1
                break
            if key_ids[index] == ids[k] and key_tables[index] == tables[k]:
                out[k] = index
                break
            slot = (slot + 1) & mask
    return size


@njit(cache=True, nogil=True)
def _rehash(slots: Int64Array, key_tables: Int16Array, key_ids: Int64Array, size: np.int64) -> None:
    mask = np.int64(slots.shape[0] - 1)
    for index in range(size):
        slot = np.int64(_hash_key(key_tables[index], key_ids[index])) & mask
        while slots[slot] >= 0:
            slot = (slot + 1) & mask
        slots[slot] = index


class KeyIndex:
    """(table int16, id int64) to a dense index 0..U-1 in the order of arrival; exact, no two keys share one.

    Open addressing with linear probing, at most 60 % full. 18 bytes per key and slot.
    """

    def __init__(self, capacity: int = 1024) -> None:
        self._size = 0
        self._ids = np.empty(max(capacity, 16), np.int64)
        self._tables = np.empty(max(capacity, 16), np.int16)
        self._slots = np.empty(0, np.int64)
        self._resize_slots(capacity)

    def __len__(self) -> int:
        return self._size

    def add(self, tables: Int16Array, ids: Int64Array) -> Int64Array:
        """The dense index of each key, int64 (K,), adding the ones that are new."""
        self._reserve(self._size + ids.shape[0])
        out = np.empty(ids.shape[0], np.int64)
        self._size = int(_add(self._slots, self._tables, self._ids, np.int64(self._size), tables, ids, out))
        return out

    def find(self, tables: Int16Array, ids: Int64Array) -> Int64Array:
        """The dense index of each key, int64 (K,), -1 for a key that is not there."""
        return _find(self._slots, self._tables, self._ids, tables, ids)

    def keys(self) -> tuple[Int16Array, Int64Array]:
        """Tables int16 (U,) and ids int64 (U,) in the order of their indices; views, not copies."""
        return self._tables[: self._size], self._ids[: self._size]

    def _reserve(self, size: int) -> None:
        if size > self._ids.shape[0]:
            room = max(size, self._ids.shape[0] * 3 // 2)
            self._ids = np.concatenate([self._ids, np.empty(room - self._ids.shape[0], np.int64)])
            self._tables = np.concatenate([self._tables, np.empty(room - self._tables.shape[0], np.int16)])
        if size > self._slots.shape[0] * _MAX_LOAD:
            self._resize_slots(size * 2)

    def _resize_slots(self, keys: int) -> None:
        slots = 1 << max(4, int(np.ceil(np.log2(max(keys, 1) / _MAX_LOAD))))
        self._slots = np.full(slots, _EMPTY, np.int64)
        _rehash(self._slots, self._tables, self._ids, np.int64(self._size))
