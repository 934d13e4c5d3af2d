"""A map of (table, id) keys to dense row numbers that grows and shrinks, in compiled code.

Shape letters: K keys of a call, R row numbers that have been given out, S slots.

A slot holds key and row number together, so a key in its home slot costs one cache miss. Keys are processed in blocks:
the home slots of a block are all read before any is compared, so their misses overlap. A hash's home slot is the upper
half of its low 32 bits times S. Growing by any factor keeps the order of slots, so it is done in place, in one pass
through memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from model.arrays import Int16Array, Int64Array
from model.reserved_memory import GrowingArray, machine_bytes

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2^64 / golden ratio, the increment of splitmix64."""
_MAX_LOAD = 0.75
_GROWTH = 2.0
_BLOCK = 64
_LARGE = 1 << 16
"""Number of slots or row numbers above which address space is reserved for them."""
_ROW_BITS = np.int64(48)
_ROW_MASK = np.int64((1 << 48) - 1)
_FREE = np.int16(-(1 << 15))
"""The table number that marks a free row number."""


@njit(cache=True, nogil=True, inline="always")
def mix64(value: np.uint64) -> np.uint64:
    """The finalizer of splitmix64: every input bit moves every output bit."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@njit(cache=True, nogil=True, inline="always")
def _hash_key(table: np.int16, key: np.int64) -> np.uint64:
    return mix64(np.uint64(key) + (np.uint64(table) + np.uint64(1)) * GOLDEN)


@njit(cache=True, nogil=True)
def hash_keys(tables: Int16Array, ids: Int64Array) -> npt.NDArray[np.uint64]:
    """64 mixed bits of each key, uint64 (K,); slots use the low bits, buckets the high ones."""
    out = np.empty(ids.shape[0], np.uint64)
    for k in range(ids.shape[0]):
        out[k] = _hash_key(tables[k], ids[k])
    return out


@njit(cache=True, nogil=True, inline="always")
def _place(table: np.int16, key: np.int64, count: np.uint64) -> Any:
    return np.int64(((_hash_key(table, key) & np.uint64(0xFFFFFFFF)) * count) >> np.uint64(32))


@njit(cache=True, nogil=True)
def _find(slots: Int64Array, tables: Int16Array, ids: Int64Array) -> Int64Array:
    count = np.int64(slots.shape[0] // 2)
    places, first_ids = np.empty(_BLOCK, np.int64), np.empty(_BLOCK, np.int64)
    first_tags = np.empty(_BLOCK, np.int64)
    out = np.empty(ids.shape[0], np.int64)
    for start in range(0, ids.shape[0], _BLOCK):
        block = min(_BLOCK, ids.shape[0] - start)
        for b in range(block):
            places[b] = _place(tables[start + b], ids[start + b], np.uint64(count))
        for b in range(block):  # only reads, so that as many as possible are in flight at once
            first_ids[b] = slots[2 * places[b]]
            first_tags[b] = slots[2 * places[b] + 1]
        for b in range(block):
            key, table = ids[start + b], np.int64(tables[start + b])
            place: Any = places[b]
            at, tag = first_ids[b], first_tags[b]
            while tag != 0 and (at != key or (tag >> _ROW_BITS) != table):
                place += 1
                if place == count:
                    place = 0
                at, tag = slots[2 * place], slots[2 * place + 1]
            out[start + b] = (tag & _ROW_MASK) - 1
    return out


@njit(cache=True, nogil=True)
def _add(
    slots: Int64Array,
    key_tables: Int16Array,
    key_ids: Int64Array,
    free: Int64Array,
    top: np.int64,
    free_count: np.int64,
    tables: Int16Array,
    ids: Int64Array,
    out: Int64Array,
    created: Int64Array,
) -> tuple[np.int64, np.int64, np.int64]:
    """Get or add every key; the caller made room. Returns R, the number of free row numbers, and of new keys."""
    count = np.int64(slots.shape[0] // 2)
    places, first_tags = np.empty(_BLOCK, np.int64), np.empty(_BLOCK, np.int64)
    made = np.int64(0)
    for start in range(0, ids.shape[0], _BLOCK):
        block = min(_BLOCK, ids.shape[0] - start)
        for b in range(block):
            places[b] = _place(tables[start + b], ids[start + b], np.uint64(count))
        for b in range(block):
            # Only warms the cache: a key of this block may be inserted there.
            first_tags[b] = slots[2 * places[b] + 1]
        for b in range(block):
            k = start + b
            place: Any = places[b]
            key, table = ids[k], np.int64(tables[k])
            tag = slots[2 * place + 1]
            while tag != 0 and (slots[2 * place] != key or (tag >> _ROW_BITS) != table):
                place += 1
                if place == count:
                    place = 0
                tag = slots[2 * place + 1]
            if tag == 0:
                if free_count > 0:
                    free_count -= 1
                    row = free[free_count]
                else:
                    row = top
                    top += 1
                tag = (table << _ROW_BITS) | (row + 1)
                slots[2 * place] = key
                slots[2 * place + 1] = tag
                key_tables[row] = tables[k]
                key_ids[row] = key
                created[made] = k
                made += 1
            out[k] = (tag & _ROW_MASK) - 1
    # Using the sum keeps the compiler from removing the reads above; it is never negative.
    return top, free_count, made if first_tags[0] != -1 else np.int64(0)


@njit(cache=True, nogil=True)
def _spread(slots: Int64Array, old: np.int64) -> None:
    """Spread the keys of the first `old` slots over all slots, in place, from back to front.

    A key moves to a slot behind its old one, among keys that have already moved and stay. Two kinds of keys are
    inserted last: those near the front that would have to move forward, because they are far from their home slot, and
    those that would wrap around the end, into slots that are still to be moved.
    """
    count = np.int64(slots.shape[0] // 2)
    waiting, late = np.empty((_BLOCK, 2), np.int64), 0
    for back in range(old):
        place: Any = old - 1 - back
        key, tag = slots[2 * place], slots[2 * place + 1]
        if tag == 0:
            continue
        slots[2 * place + 1] = 0
        to = _place(np.int16(tag >> _ROW_BITS), key, np.uint64(count))
        if to > place:
            while to < count and slots[2 * to + 1] != 0:
                to += 1
            if to < count:
                slots[2 * to] = key
                slots[2 * to + 1] = tag
                continue
        if late == waiting.shape[0]:
            more = np.empty((2 * late, 2), np.int64)
            more[:late] = waiting
            waiting = more
        waiting[late, 0] = key
        waiting[late, 1] = tag
        late += 1
    for k in range(late):
        key, tag = waiting[k, 0], waiting[k, 1]
        _put(slots, _place(np.int16(tag >> _ROW_BITS), key, np.uint64(count)), key, tag, count)


@njit(cache=True, nogil=True, inline="always")
def _put(slots: Int64Array, to: Any, key: np.int64, tag: np.int64, count: np.int64) -> None:
    while slots[2 * to + 1] != 0:
        to += 1
        if to == count:
            to = 0
    slots[2 * to] = key
    slots[2 * to + 1] = tag


@njit(cache=True, nogil=True)
def _remove(slots: Int64Array, tables: Int16Array, ids: Int64Array, out: Int64Array) -> None:
    """Remove keys; `out` gets their row numbers, -1 for a key that is absent or repeated."""
    count = np.int64(slots.shape[0] // 2)
    for k in range(ids.shape[0]):
        key, table = ids[k], np.int64(tables[k])
        place = _place(tables[k], key, np.uint64(count))
        while slots[2 * place + 1] != 0 and (
            slots[2 * place] != key or (slots[2 * place + 1] >> _ROW_BITS) != table
        ):
            place += 1
            if place == count:
                place = 0
        out[k] = (slots[2 * place + 1] & _ROW_MASK) - 1
        if slots[2 * place + 1] != 0:
            _close_gap(slots, place, count)


@njit(cache=True, nogil=True)
def _close_gap(slots: Int64Array, gap: Any, count: np.int64) -> None:
    """Backward-shift deletion: keys displaced past the freed slot move back into it."""
    place: Any = gap
    while True:
        place += 1
        if place == count:
            place = 0
        tag = slots[2 * place + 1]
        if tag == 0:
            break
        home = _place(np.int16(tag >> _ROW_BITS), slots[2 * place], np.uint64(count))
        outside = home <= gap or home > place if gap < place else place < home <= gap
        if outside:
            slots[2 * gap] = slots[2 * place]
            slots[2 * gap + 1] = tag
            gap = place
    slots[2 * gap + 1] = 0


class KeyIndex:
    """Maps (table int16, id int64) to a row number; exact, no two keys share one.

    Row numbers are 0, 1, 2, … in order of arrival, and fixed while their key exists; those of removed keys are reused
    before new ones are given out. Open addressing with linear probing, 37 to 75 % full: 10 bytes per row number and 21
    to 43 per key. Table -32768 is reserved.
    """

    def __init__(self, capacity: int = 1024) -> None:
        self._top = 0
        self._free = np.empty(0, np.int64)
        self._free_count = 0
        self._ids, self._more_ids = np.empty(max(capacity, 16), np.int64), _Growth()
        self._tables, self._more_tables = np.empty(max(capacity, 16), np.int16), _Growth()
        # Pairs (id, table << 48 | row number + 1); a slot is empty if the second is 0.
        self._slots, self._more_slots = np.zeros(2 * _slot_count(capacity), np.int64), _Growth()

    def __len__(self) -> int:
        return self._top - self._free_count

    @property
    def top(self) -> int:
        """One more than the highest row number that has been given."""
        return self._top

    def add(self, tables: Int16Array, ids: Int64Array) -> Int64Array:
        """The row number of each key, int64 (K,); new keys are added."""
        return self.get_or_add(tables, ids)[0]

    def get_or_add(self, tables: Int16Array, ids: Int64Array) -> tuple[Int64Array, Int64Array]:
        """The row number of each key, int64 (K,), and the places k of new keys, int64, ascending."""
        self._reserve(ids.shape[0])
        out, created = np.empty(ids.shape[0], np.int64), np.empty(ids.shape[0], np.int64)
        state = (self._free, np.int64(self._top), np.int64(self._free_count))
        top, free, made = _add(self._slots, self._tables, self._ids, *state, tables, ids, out, created)
        self._top, self._free_count = int(top), int(free)
        return out, created[:made]

    def find(self, tables: Int16Array, ids: Int64Array) -> Int64Array:
        """The row number of each key, int64 (K,), -1 for an unknown key."""
        return _find(self._slots, tables, ids)

    def remove(self, tables: Int16Array, ids: Int64Array) -> Int64Array:
        """Remove keys; returns the row number of each, int64 (K,), -1 for a key that is unknown or repeated."""
        out = np.empty(ids.shape[0], np.int64)
        _remove(self._slots, tables, ids, out)
        gone = out[out >= 0]
        self._tables[gone] = _FREE
        count = self._free_count + gone.shape[0]
        if count > self._free.shape[0]:
            self._free = np.concatenate([self._free, np.empty(count * 3 // 2, np.int64)])
        self._free[self._free_count : count] = gone
        self._free_count = count
        return out

    def rows(self) -> Int64Array:
        """The row numbers in use, int64 (len,), ascending."""
        if self._free_count == 0:
            return np.arange(self._top, dtype=np.int64)
        return np.flatnonzero(self._tables[: self._top] != _FREE)

    def keys_of(self, rows: Int64Array) -> tuple[Int16Array, Int64Array]:
        """Tables int16 (n,) and ids int64 (n,) of row numbers in use; copies."""
        return self._tables[rows], self._ids[rows]

    def keys(self) -> tuple[Int16Array, Int64Array]:
        """Tables int16 (len,) and ids int64 (len,) by row number; views. Only while no row number is free."""
        assert self._free_count == 0, "after a removal row numbers have holes: ask for rows() and keys_of()"
        return self._tables[: self._top], self._ids[: self._top]

    def _reserve(self, more: int) -> None:
        rows = self._top + max(0, more - self._free_count)
        if rows > self._ids.shape[0]:
            room = max(rows, self._ids.shape[0] * 3 // 2)
            self._ids, self._tables = (
                self._more_ids.of(self._ids, room),
                self._more_tables.of(self._tables, room),
            )
        keys = len(self) + more
        if keys > self._slots.shape[0] // 2 * _MAX_LOAD:
            old = self._slots.shape[0] // 2
            count = _slot_count(max(keys, int(old * _MAX_LOAD * _GROWTH)))
            self._slots = self._more_slots.of(self._slots, 2 * count)
            _spread(self._slots, np.int64(old))


class _Growth:
    """A longer array with zeros at its end; a large one grows in place, because touching new memory is expensive."""

    def __init__(self) -> None:
        self._memory: GrowingArray | None = None

    def of(self, array: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
        if self._memory is None and size >= _LARGE:
            self._memory = GrowingArray(machine_bytes() // array.itemsize, (), array.dtype)
            self._memory.first(array.shape[0])[:] = array
        if self._memory is not None:
            return self._memory.first(size)
        longer = np.zeros(size, array.dtype)
        longer[: array.shape[0]] = array
        return longer


def _slot_count(keys: int) -> int:
    return max(16, int(keys / _MAX_LOAD) + 1)
