"""int64 ids to dense indices, by open addressing.

Shapes: N queried ids, T table slots (a power of two).
"""

import numpy as np
from numba import njit

from streaming.arrays import Int32Array, Int64Array

_FIRST_SLOTS = 1024


class IdIndex:
    """Assigns indices 0, 1, 2, … to ids in order of arrival; ids are never removed."""

    def __init__(self) -> None:
        self._ids = np.empty(_FIRST_SLOTS // 2, np.int64)
        self._count = 0
        self._key_T = np.empty(_FIRST_SLOTS, np.int64)
        self._index_T = np.full(_FIRST_SLOTS, -1, np.int32)

    def __len__(self) -> int:
        return self._count

    @property
    def ids(self) -> Int64Array:
        """int64 (len,): the ids by index; a view, valid until the next `add`."""
        return self._ids[: self._count]

    def find(self, id_N: Int64Array) -> Int32Array:
        """int32 (n,): the index of each id, -1 where it is unknown."""
        out_N = np.empty(len(id_N), np.int32)
        _find(id_N, self._key_T, self._index_T, out_N)
        return out_N

    def add(self, id_N: Int64Array) -> Int32Array:
        """int32 (n,): the index of each id; unknown ones get the next indices, in the given order."""
        self._reserve(self._count + len(id_N))
        out_N = np.empty(len(id_N), np.int32)
        self._count = _add(id_N, self._key_T, self._index_T, self._ids, self._count, out_N)
        return out_N

    def _reserve(self, count: int) -> None:
        """Room for `count` ids at a load of at most one half."""
        if 2 * count <= len(self._key_T):
            return
        slots = 1 << (2 * count - 1).bit_length()
        ids = self.ids
        self._ids = np.empty(slots // 2, np.int64)
        self._key_T = np.empty(slots, np.int64)
        self._index_T = np.full(slots, -1, np.int32)
        _add(ids, self._key_T, self._index_T, self._ids, 0, np.empty(len(ids), np.int32))


@njit(cache=True, nogil=True)
def _slot(identifier: np.int64, mask: np.uint64) -> np.uint64:
    """First slot to try: the finaliser of splitmix64 spreads consecutive ids."""
    x = np.uint64(identifier)
    x = np.uint64((x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9))
    x = np.uint64((x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB))
    return np.uint64((x ^ (x >> np.uint64(31))) & mask)


@njit(cache=True, nogil=True)
def _find(id_N: Int64Array, key_T: Int64Array, index_T: Int32Array, out_N: Int32Array) -> None:
    mask = np.uint64(len(key_T) - 1)
    for n in range(len(id_N)):
        slot = _slot(id_N[n], mask)
        while index_T[slot] >= 0 and key_T[slot] != id_N[n]:
            slot = np.uint64((slot + np.uint64(1)) & mask)
        out_N[n] = index_T[slot]


@njit(cache=True, nogil=True)
def _add(
    id_N: Int64Array, key_T: Int64Array, index_T: Int32Array, ids: Int64Array, count: int, out_N: Int32Array
) -> int:
    mask = np.uint64(len(key_T) - 1)
    for n in range(len(id_N)):
        slot = _slot(id_N[n], mask)
        while index_T[slot] >= 0 and key_T[slot] != id_N[n]:
            slot = np.uint64((slot + np.uint64(1)) & mask)
        if index_T[slot] < 0:
            key_T[slot] = id_N[n]
            index_T[slot] = count
            ids[count] = id_N[n]
            count += 1
        out_N[n] = index_T[slot]
    return count
