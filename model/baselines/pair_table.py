"""Counts of unordered pairs, in memory proportional to the pairs that occur, not to all possible pairs.

Each item has a small hash table of the items that it occurs with. Reading an item's counts means reading its table from
start to end; counting a pair takes one search in each of two tables. An item that occurs with many of the others has a
plain row of counts instead, once that is no larger. All of them are in one array: a table that grows moves to a larger
block, and its old block is reused.

Shape letters: I items, P pairs, S slots, C cells (two per slot), E events, R items that each event's item is paired
with, −1 padded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from model.arrays import Int32Array, Int64Array
from model.reserved_memory import GrowingArray, machine_bytes

CHANGED = np.int64(1 << 30)
"""Bit of a pair's count, in the table of its smaller item, that says that the pair is in the list of changes."""
COUNT = np.int64((1 << 30) - 1)
"""Bits of a slot or cell that hold the count; a slot's upper half is the other item + 1, or 0 if the slot is empty."""
_SLOT_BYTES = _PAIR_BYTES = 8
_LEAST_BITS = 2
_FIRST_ITEMS = 256


@dataclass(frozen=True)
class Pairs:
    """Counts of distinct pairs.

    Attributes:
        low_P: int32, the smaller index.
        high_P: int32, the larger one.
        count_P: int32.
    """

    low_P: Int32Array
    high_P: Int32Array
    count_P: Int32Array


class Tables(NamedTuple):
    """The arrays that the compiled code works on.

    Attributes:
        slot_S: int64.
        cell_C: int32, the same memory, for plain rows.
        start_I: int64, first slot of each item's block.
        bits_I: int64, log2 of its slots; 0 for an item without a block.
        plain_I: int64, 1 for an item with a plain row, 0 for one with a table.
        used_I: int64, number of items that it occurs with.
        total_I: int64, sum of the item's counts.
        free_B: int64 (64,), first slot + 1 of a free block of each size; that slot links to the next free block.
        sizes: int64 (3,): slots in use or free, distinct pairs, pairs in the list of changes.
    """

    slot_S: Int64Array
    cell_C: Int32Array
    start_I: Int64Array
    bits_I: Int64Array
    plain_I: Int64Array
    used_I: Int64Array
    total_I: Int64Array
    free_B: Int64Array
    sizes: Int64Array


_TOP, _PAIRS, _CHANGES = 0, 1, 2


class PairTable:
    """A symmetric, sparse matrix of counts."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Remove all counts and release the memory."""
        self._slots = GrowingArray(machine_bytes() // _SLOT_BYTES, (), np.int64)
        self._changed = GrowingArray(machine_bytes() // _PAIR_BYTES, (2,), np.int32)
        slot_S, none = self._slots.first(0), np.zeros(0, np.int64)
        free_B, sizes = np.zeros(64, np.int64), np.zeros(3, np.int64)
        self.tables = Tables(slot_S, slot_S.view(np.int32), none, none, none, none, none, free_B, sizes)

    def __len__(self) -> int:
        """Number of distinct pairs that have been counted."""
        return int(self.tables.sizes[_PAIRS])

    @property
    def nbytes(self) -> int:
        """Bytes in use for pairs."""
        return int(_SLOT_BYTES * self.tables.sizes[_TOP] + _PAIR_BYTES * self.tables.sizes[_CHANGES])

    @property
    def total_I(self) -> Int64Array:
        """Sum of each item's counts, int64; longer than the number of items, to leave room for more."""
        return self.tables.total_I

    def count(self, target_E: Int64Array, recent_ER: Int64Array) -> None:
        """Count each event's item with every other item of its row; `reserve` must have made room for all items."""
        recent_ER = np.ascontiguousarray(recent_ER)
        changed_P2 = self._changed.first(int(self.tables.sizes[_CHANGES]) + recent_ER.size)
        done = 0
        while True:
            done, wanted = _count(self.tables, changed_P2, target_E, recent_ER, done)
            if done == target_E.shape[0]:
                return
            self._make_slots(wanted)

    def slices(self, most: int) -> Iterator[Pairs]:
        """All pairs, in parts of at most this size, or of one item. Counting may continue between the parts.

        Pairs counted after the first part may or may not be in a later one; `take_changes` returns them.
        """
        items, first = self.tables.start_I.shape[0], 0
        while first < min(items, self.tables.start_I.shape[0]):
            within = np.searchsorted(np.cumsum(self.tables.used_I[first:items]), most, side="right")
            last = first + max(1, int(within))
            yield Pairs(*_rows(self.tables, first, last))
            first = last

    def pairs(self) -> Pairs:
        """A copy of all pairs."""
        return Pairs(*_rows(self.tables, 0, self.tables.start_I.shape[0]))

    def take_changes(self) -> Pairs:
        """A copy of the pairs counted since the last call; clears the list of changes."""
        pair_P2 = self._changed.first(int(self.tables.sizes[_CHANGES]))
        low_P, high_P = pair_P2[:, 0].copy(), pair_P2[:, 1].copy()
        count_P = _take(self.tables, low_P, high_P)
        self.tables.sizes[_CHANGES] = 0
        return Pairs(low_P, high_P, count_P)

    def put(self, pairs: Pairs) -> None:
        """Set the counts of pairs, replacing earlier counts; does not mark them as changed."""
        self.reserve(int(pairs.high_P.max(initial=-1)) + 1)
        done = 0
        while True:
            done, wanted = _put(self.tables, pairs.low_P, pairs.high_P, pairs.count_P, done)
            if done == pairs.low_P.shape[0]:
                return
            self._make_slots(wanted)

    def reserve(self, items: int) -> None:
        """Make room for this many items."""
        room = self.tables.start_I.shape[0]
        if items <= room:
            return
        more = max(items, room * 3 // 2, _FIRST_ITEMS) - room
        grown = {
            name: np.concatenate([getattr(self.tables, name), np.zeros(more, np.int64)])
            for name in ("start_I", "bits_I", "plain_I", "used_I", "total_I")
        }
        self.tables = self.tables._replace(**grown)

    def _make_slots(self, wanted: int) -> None:
        """Reserve address space for this many slots; memory is used once written."""
        slot_S = self._slots.first(max(wanted, 2 * self.tables.slot_S.shape[0]))
        self.tables = self.tables._replace(slot_S=slot_S, cell_C=slot_S.view(np.int32))


@njit(cache=True, nogil=True, inline="always")
def _place(item: Any, bits: Any) -> Any:
    mixed = (np.uint64(item) * np.uint64(0x9E3779B1)) & np.uint64(0xFFFFFFFF)
    return np.int64(mixed >> np.uint64(32 - bits))


@njit(cache=True, nogil=True)
def _find(tables: Tables, item: Any, other: Any) -> Any:
    """The slot of a pair in one item's table, or the empty slot where it belongs."""
    bits, start = tables.bits_I[item], tables.start_I[item]
    mask = (1 << bits) - 1
    at = _place(other, bits)
    while tables.slot_S[start + at] != 0 and (tables.slot_S[start + at] >> 32) - 1 != other:
        at = (at + 1) & mask
    return start + at


@njit(cache=True, nogil=True)
def _block(tables: Tables, bits: Any) -> Any:
    """The first slot of an empty block."""
    first = tables.free_B[bits] - 1
    if first >= 0:
        tables.free_B[bits] = tables.slot_S[first]
        tables.slot_S[first] = 0
        return first
    first = tables.sizes[_TOP]
    tables.sizes[_TOP] += 1 << bits
    return first


@njit(cache=True, nogil=True)
def _plain_bits(tables: Tables) -> Any:
    """log2 of the slots that a plain row takes, with room for all items."""
    bits = _LEAST_BITS
    while (2 << bits) < tables.start_I.shape[0]:
        bits += 1
    return bits


@njit(cache=True, nogil=True)
def _grow(tables: Tables, item: Any) -> None:
    """Move an item's counts to a larger block."""
    old_bits, old, was_plain = tables.bits_I[item], tables.start_I[item], tables.plain_I[item]
    bits, plain_bits = old_bits + 1 if old_bits > 0 else _LEAST_BITS, _plain_bits(tables)
    if was_plain or plain_bits <= bits:
        bits, tables.plain_I[item] = plain_bits, 1
    start = _block(tables, bits)
    tables.start_I[item], tables.bits_I[item] = start, bits
    if old_bits == 0:
        return
    for k in range(old, old + (1 << old_bits)):
        slot = tables.slot_S[k]
        if was_plain:
            tables.slot_S[start + k - old] = slot
        elif slot != 0 and tables.plain_I[item]:
            tables.cell_C[2 * start + (slot >> 32) - 1] = np.int32(slot & (COUNT | CHANGED))
        elif slot != 0:
            tables.slot_S[_find(tables, item, (slot >> 32) - 1)] = slot
        tables.slot_S[k] = 0
    tables.slot_S[old] = tables.free_B[old_bits]
    tables.free_B[old_bits] = old + 1


@njit(cache=True, nogil=True)
def _make(tables: Tables, item: Any, other: Any) -> Any:
    """Make room for a pair in one item's table; returns its slot, or −1 if the item has a plain row."""
    if tables.plain_I[item]:
        if other >= (2 << tables.bits_I[item]):
            _grow(tables, item)
        return -1
    if tables.bits_I[item] > 0:
        slot = _find(tables, item, other)
        if tables.slot_S[slot] != 0:
            return slot
    if tables.bits_I[item] == 0 or 4 * (tables.used_I[item] + 1) > 3 * (1 << tables.bits_I[item]):
        _grow(tables, item)
        if tables.plain_I[item]:
            return -1
    slot = _find(tables, item, other)
    tables.slot_S[slot] = np.int64(other + 1) << 32
    tables.used_I[item] += 1
    return slot


@njit(cache=True, nogil=True)
def _add(tables: Tables, item: Any, other: Any, more: Any, mark: Any) -> Any:
    """Add to one item's count of another, and mark it; returns the earlier count and mark, 0 for a new pair."""
    slot = _make(tables, item, other)
    if slot >= 0:
        before = tables.slot_S[slot] & (COUNT | CHANGED)
        tables.slot_S[slot] = (tables.slot_S[slot] | mark) + more
        return before
    cell = 2 * tables.start_I[item] + other
    before = np.int64(tables.cell_C[cell])
    if before == 0 and more > 0:
        tables.used_I[item] += 1
    tables.cell_C[cell] = np.int32((before | mark) + more)
    return before


@njit(cache=True, nogil=True)
def _unmark(tables: Tables, item: Any, other: Any) -> Any:
    """The count of an existing pair, whose mark is cleared."""
    if tables.plain_I[item]:
        cell = 2 * tables.start_I[item] + other
        tables.cell_C[cell] &= np.int32(COUNT)
        return tables.cell_C[cell]
    slot = _find(tables, item, other)
    tables.slot_S[slot] &= ~CHANGED
    return np.int32(tables.slot_S[slot] & COUNT)


@njit(cache=True, nogil=True)
def _most_slots(tables: Tables, item: Any, others: Any) -> Any:
    """Maximum number of slots used when an item's table gets this many more items, over all sizes that it grows to."""
    bits, most = max(tables.bits_I[item], _LEAST_BITS), 4
    while 3 * (1 << bits) < 4 * (tables.used_I[item] + others):
        bits += 1
        most += 1 << bits
    return most + (1 << _plain_bits(tables))


@njit(cache=True, nogil=True)
def _count(
    tables: Tables, changed_P2: Int32Array, target_E: Int64Array, recent_ER: Int64Array, first: int
) -> tuple[int, int]:
    """Count from an event on; returns the first event with too few free slots (or E), and the slots that it needs."""
    recents = recent_ER.shape[1]
    for e in range(first, target_E.shape[0]):
        target = target_E[e]
        wanted = tables.sizes[_TOP] + _most_slots(tables, target, recents)
        for r in range(recents):
            if recent_ER[e, r] >= 0:
                wanted += _most_slots(tables, recent_ER[e, r], recents)
        if wanted > tables.slot_S.shape[0]:
            return e, wanted
        for r in range(recents):
            recent = recent_ER[e, r]
            if recent < 0 or recent == target:
                continue
            low, high = min(recent, target), max(recent, target)
            # In both tables: the order of the two items does not matter.
            before = _add(tables, low, high, 1, CHANGED)
            _add(tables, high, low, 1, np.int64(0))
            if before & COUNT == 0:
                tables.sizes[_PAIRS] += 1
            if before & CHANGED == 0:
                changes = tables.sizes[_CHANGES]
                changed_P2[changes, 0], changed_P2[changes, 1] = low, high
                tables.sizes[_CHANGES] = changes + 1
            tables.total_I[low] += 1
            tables.total_I[high] += 1
    return target_E.shape[0], 0


@njit(cache=True, nogil=True)
def _put(
    tables: Tables, low_P: Int32Array, high_P: Int32Array, count_P: Int32Array, first: int
) -> tuple[int, int]:
    """Set counts from a pair on; returns what `_count` does, for pairs."""
    for p in range(first, low_P.shape[0]):
        low, high, count = np.int64(low_P[p]), np.int64(high_P[p]), np.int64(count_P[p])
        wanted = tables.sizes[_TOP] + _most_slots(tables, low, 1) + _most_slots(tables, high, 1)
        if wanted > tables.slot_S.shape[0]:
            return p, wanted
        before = _add(tables, high, low, 0, np.int64(0))  # where a pair has no mark
        _add(tables, high, low, count - before, np.int64(0))
        _add(tables, low, high, count - before, np.int64(0))
        tables.sizes[_PAIRS] += before == 0
        tables.total_I[low] += count - before
        tables.total_I[high] += count - before
    return low_P.shape[0], 0


@njit(cache=True, nogil=True)
def _take(tables: Tables, low_P: Int32Array, high_P: Int32Array) -> Int32Array:
    """Counts of pairs, whose marks of a change are cleared."""
    count_P = np.empty(low_P.shape[0], np.int32)
    for p in range(low_P.shape[0]):
        count_P[p] = _unmark(tables, np.int64(low_P[p]), np.int64(high_P[p]))
    return count_P


@njit(cache=True, nogil=True)
def _rows(tables: Tables, first: int, last: int) -> tuple[Int32Array, Int32Array, Int32Array]:
    """Pairs whose smaller item is in [first, last)."""
    most = tables.used_I[first:last].sum()
    low_P, high_P, count_P = np.empty(most, np.int32), np.empty(most, np.int32), np.empty(most, np.int32)
    pairs = 0
    for item in range(first, last):
        if tables.bits_I[item] == 0:
            continue
        start, end = tables.start_I[item], tables.start_I[item] + (1 << tables.bits_I[item])
        if tables.plain_I[item]:
            for other in range(item + 1, 2 * (end - start)):
                count = tables.cell_C[2 * start + other] & COUNT
                if count > 0:
                    low_P[pairs], high_P[pairs], count_P[pairs] = item, other, count
                    pairs += 1
            continue
        for k in range(start, end):
            other = (tables.slot_S[k] >> 32) - 1
            if other > item:
                low_P[pairs], high_P[pairs], count_P[pairs] = item, other, tables.slot_S[k] & COUNT
                pairs += 1
    return low_P[:pairs].copy(), high_P[:pairs].copy(), count_P[:pairs].copy()
