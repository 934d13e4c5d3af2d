"""Counts of unordered pairs in a dense matrix that knows which pairs it holds and which of them have changed.

Reading a row is reading memory in order; copying what it holds costs what it holds, not what there is room for.

Shape letters: I items, P pairs, E events, R items that each event's item is paired with, −1 padded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from model.reserved_memory import GrowingArray, machine_bytes

Int64Array = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]

CHANGED = np.int32(1 << 30)
"""Bit of a pair's entry in the upper triangle: it is in the list of changes."""
COUNT = np.int32((1 << 30) - 1)
"""Bits of an entry that are the count."""
_PAIR_BYTES = 8


@dataclass(frozen=True)
class Pairs:
    """Counts of pairs, each once.

    Attributes:
        low_P: int32, the smaller index.
        high_P: int32, the larger one.
        count_P: int32.
    """

    low_P: Int32Array
    high_P: Int32Array
    count_P: Int32Array


class PairMatrix:
    """A symmetric matrix of counts.

    Attributes:
        count_II: int32; entries above the diagonal carry the bit CHANGED.
        total_I: int64, sum of each row.
    """

    def __init__(self) -> None:
        self.count_II = np.zeros((0, 0), np.int32)
        self.total_I = np.zeros(0, np.int64)
        self._pairs, self._changed = _PairList(), _PairList()

    def __len__(self) -> int:
        """How many different pairs have been counted."""
        return self._pairs.size

    def count(self, target_E: Int64Array, recent_ER: Int64Array) -> None:
        """Count each event's item with every other item of its row; `reserve` has made room for them all."""
        most = recent_ER.size
        pair_P2, changed_P2 = self._pairs.with_room(most), self._changed.with_room(most)
        self._pairs.size, self._changed.size = _count(
            self.count_II,
            self.total_I,
            pair_P2,
            self._pairs.size,
            changed_P2,
            self._changed.size,
            target_E,
            np.ascontiguousarray(recent_ER),
        )

    def pairs(self, start: int = 0, stop: int | None = None) -> Pairs:
        """A copy of some of the pairs, in the order in which they came; by default of all."""
        return self._of(self._pairs.first()[start:stop])

    def take_changes(self) -> Pairs:
        """A copy of the pairs that have been counted since the last call, and forget that they were."""
        pair_P2 = self._changed.first()
        self.count_II[pair_P2[:, 0], pair_P2[:, 1]] &= COUNT
        self._changed.size = 0
        return self._of(pair_P2)

    def put(self, pairs: Pairs) -> None:
        """Set the counts of pairs, over what they had; marks nothing as changed."""
        low_P, high_P = pairs.low_P.astype(np.int64), pairs.high_P.astype(np.int64)
        self.reserve(int(high_P.max(initial=-1)) + 1)
        before_P = self.count_II[high_P, low_P]
        more_P = pairs.count_P.astype(np.int64) - before_P
        np.add.at(self.total_I, low_P, more_P)
        np.add.at(self.total_I, high_P, more_P)
        self.count_II[high_P, low_P] = pairs.count_P
        self.count_II[low_P, high_P] = (self.count_II[low_P, high_P] & CHANGED) | pairs.count_P
        self._pairs.extend(np.stack([low_P, high_P], axis=1)[before_P == 0])

    def reserve(self, items: int) -> None:
        """Make room for so many items; growing copies the matrix."""
        room = self.count_II.shape[0]
        if items <= room:
            return
        size = max(items, room * 3 // 2, 256)
        grown = np.zeros((size, size), np.int32)
        grown[:room, :room] = self.count_II
        self.count_II = grown
        self.total_I = np.concatenate([self.total_I, np.zeros(size - room, np.int64)])

    def _of(self, pair_P2: Int32Array) -> Pairs:
        low_P, high_P = pair_P2[:, 0].copy(), pair_P2[:, 1].copy()
        return Pairs(low_P, high_P, self.count_II[high_P, low_P])


class _PairList:
    """Pairs as they come, int32 (P, 2), in memory that grows in place."""

    def __init__(self) -> None:
        self.size = 0
        self._memory = GrowingArray(machine_bytes() // _PAIR_BYTES, (2,), np.int32)

    def first(self) -> Int32Array:
        """A view of what is in it."""
        view: Int32Array = self._memory.first(self.size)
        return view

    def with_room(self, more: int) -> Int32Array:
        """A view of what is in it and of room for more."""
        view: Int32Array = self._memory.first(self.size + more)
        return view

    def extend(self, pair_P2: Int64Array) -> None:
        """Put pairs behind the others."""
        self.with_room(len(pair_P2))[self.size :] = pair_P2
        self.size += len(pair_P2)


@njit(cache=True, nogil=True)
def _count(
    count_II: Int32Array,
    total_I: Int64Array,
    pair_P2: Int32Array,
    pairs: int,
    changed_P2: Int32Array,
    changed: int,
    target_E: Int64Array,
    recent_ER: Int64Array,
) -> tuple[int, int]:
    """Returns the new sizes of both lists."""
    for e in range(target_E.shape[0]):
        target = target_E[e]
        for r in range(recent_ER.shape[1]):
            recent = recent_ER[e, r]
            if recent < 0 or recent == target:
                continue
            low, high = min(recent, target), max(recent, target)
            before = count_II[low, high]
            if before & COUNT == 0:
                pair_P2[pairs, 0], pair_P2[pairs, 1] = low, high
                pairs += 1
            if before & CHANGED == 0:
                changed_P2[changed, 0], changed_P2[changed, 1] = low, high
                changed += 1
            # Both directions: taken together, in whatever order.
            count_II[low, high] = (before | CHANGED) + 1
            count_II[high, low] += 1
            total_I[low] += 1
            total_I[high] += 1
    return pairs, changed
