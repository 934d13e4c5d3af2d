"""Which rows of one rank have changed since any of several moments, in time that depends on the changes alone.

Shape letters: K rows of a call, C rows of capacity.

    touch ► interval 1 │ mark ► touch ► interval 2 │ mark ► touch ► interval 3 …
                             └──────── since(mark): the rows of these intervals, each once ───────┘

Each row has a stamp: the interval of its last change. An interval lists the rows that changed in it; an entry whose row
has a later stamp is out of date for every reader, because a later interval of the same reader lists the row as well. So
the lists together hold each row once, plus entries that the next compaction drops.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from numba import njit

from model.key_index import KeyIndex
from model.reserved_memory import GrowingArray, machine_bytes
from streaming.arrays import Int16Array, Int32Array, Int64Array

_FIRST_ROOM = 1024
_FEW = 1 << 16
"""Number of entries below which nothing is compacted."""


@dataclass
class _Interval:
    """The changes between two marks."""

    number: int
    rows: list[Int64Array] = field(default_factory=list)
    removed: list[tuple[Int16Array, Int64Array]] = field(default_factory=list)

    def listed(self) -> Int64Array:
        """int64 (n,), the rows that changed, some of them out of date."""
        return np.concatenate([np.zeros(0, np.int64), *self.rows])


class ChangeLog:
    """Changes of rows and removed keys; for one thread. 4 bytes per row, and 8 per entry."""

    def __init__(self) -> None:
        self._memory = GrowingArray(machine_bytes() // 4, (), np.int32)
        self._stamp_C: Int32Array = self._memory.first(_FIRST_ROOM)
        self._intervals = [_Interval(1)]
        self._entries = self._compacted = 0

    def touch(self, rows: Int64Array) -> None:
        """Record that rows have changed, int64 (K,); none may be negative."""
        if rows.shape[0] == 0:
            return
        self._make_room(int(rows.max()) + 1)
        now = self._intervals[-1]
        fresh = _stamp(self._stamp_C, rows, np.int32(now.number))
        if fresh.shape[0]:
            now.rows.append(fresh)
            self._entries += fresh.shape[0]

    def remove(self, rows: Int64Array, tables: Int16Array, ids: Int64Array) -> None:
        """Record that rows are gone, int64 (K,), and their keys; the numbers may be given to other keys."""
        self._make_room(int(rows.max(initial=-1)) + 1)
        self._stamp_C[rows] = 0
        self._intervals[-1].removed.append((tables, ids))

    def mark(self) -> int:
        """A moment: `since` with it returns the changes that come after this call."""
        now = self._intervals[-1]
        if now.rows or now.removed:
            if self._entries > max(_FEW, 2 * self._compacted):
                self._compact()
            self._intervals.append(_Interval(now.number + 1))
        return self._intervals[-1].number

    def since(self, mark: int) -> Int64Array:
        """int64 (n,): distinct rows that have changed since then and still exist, those that changed last at the end.

        Args:
            mark: from `mark`, not before the one given to `drop_before`.
        """
        parts = [self._last_of(interval) for interval in self._intervals if interval.number >= mark]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def last_changed_before(self, rows: Int64Array, mark: int) -> Int64Array:
        """Those of distinct rows, int64 (K,), that still exist and have not changed since a mark."""
        stamp_K = self._stamp_C[rows]
        return rows[(stamp_K > 0) & (stamp_K < mark)]

    def removed_since(self, mark: int) -> tuple[Int16Array, Int64Array]:
        """Tables int16 (n,) and ids int64 (n,) of the distinct keys whose rows were removed since then.

        Some of them may have a row again.
        """
        gone = KeyIndex()
        for interval in self._intervals:
            if interval.number >= mark:
                for tables, ids in interval.removed:
                    gone.add(tables, ids)
        tables, ids = gone.keys()
        return tables, ids

    def drop_before(self, mark: int) -> None:
        """Forget the changes before a mark."""
        kept = [interval for interval in self._intervals if interval.number >= mark]
        if len(kept) < len(self._intervals):
            self._intervals = kept
            self._entries = sum(part.shape[0] for interval in kept for part in interval.rows)

    @property
    def entries(self) -> int:
        """How many entries are held."""
        return self._entries

    def _last_of(self, interval: _Interval) -> Int64Array:
        """The rows whose last change was in this interval."""
        listed = interval.listed()
        return _stamped(self._stamp_C, listed, np.int32(interval.number))

    def _compact(self) -> None:
        for interval in self._intervals:
            interval.rows = [self._last_of(interval)] if interval.rows else []
        self._intervals = [i for i in self._intervals if i.removed or any(part.size for part in i.rows)]
        self._entries = sum(part.shape[0] for interval in self._intervals for part in interval.rows)
        self._compacted = self._entries

    def _make_room(self, size: int) -> None:
        if size > self._stamp_C.shape[0]:
            self._stamp_C = self._memory.first(max(size, self._stamp_C.shape[0] * 3 // 2))


@njit(cache=True, nogil=True)
def _stamp(stamp_C: Int32Array, rows: Int64Array, now: np.int32) -> npt.NDArray[np.int64]:
    """Stamp rows; returns those that did not have this stamp, each once."""
    fresh = np.empty(rows.shape[0], np.int64)
    count = 0
    for k in range(rows.shape[0]):
        if stamp_C[rows[k]] != now:
            stamp_C[rows[k]] = now
            fresh[count] = rows[k]
            count += 1
    return fresh[:count].copy()


@njit(cache=True, nogil=True)
def _stamped(stamp_C: Int32Array, rows: Int64Array, number: np.int32) -> npt.NDArray[np.int64]:
    """The rows with this stamp, in order, each once; each that is returned keeps its stamp."""
    found = np.empty(rows.shape[0], np.int64)
    count = 0
    for k in range(rows.shape[0]):
        if stamp_C[rows[k]] == number:
            stamp_C[rows[k]] = -number
            found[count] = rows[k]
            count += 1
    for k in range(count):
        stamp_C[found[k]] = number
    return found[:count]
