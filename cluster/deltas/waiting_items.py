"""The items whose vectors are out of date: new ones are encoded at once, then those that moved most, under a budget.

Shape letters: N items of a call, K categories of an item, C entries of capacity.

An item's priority is how far its row has moved since its vector was encoded, summed over the deltas, times its traffic.
What a delta leaves waits with its priority. The number that wait is bounded, so a delta's cost is, too: of more, those
of the lowest priority are dropped until their rows change again.

The items that moved may only be a share of the version's, so that they do not make a full refresh due by themselves.
Once they are, deltas encode new items and those that are in an earlier delta already.
"""

from __future__ import annotations

import numpy as np

from model.key_index import KeyIndex
from streaming.arrays import BoolArray, Float64Array, Int16Array, Int64Array
from streaming.histories.id_index import IdIndex

_WAIT_PER_ITEM = 8
"""How many items may wait for each one that a delta may have."""
_ROOM = 1024


class WaitingItems:
    """The items of one rank that wait to be encoded.

    Args:
        budget: number of items that a delta may have on this rank.
        width: K.
        most_moved: number of items that all deltas of a version may have because they moved.
    """

    def __init__(self, budget: int, width: int, most_moved: int) -> None:
        self._budget, self._most_moved = budget, most_moved
        self._index, self._encoded = KeyIndex(), IdIndex()
        self._moved_C = np.zeros(_ROOM)
        self._traffic_C = np.zeros(_ROOM)
        self._fresh_C = np.zeros(_ROOM, np.bool_)
        self._category_CK = np.zeros((_ROOM, width), np.int64)

    def __len__(self) -> int:
        return len(self._index)

    def add(
        self,
        ids: Int64Array,
        category_NK: Int64Array,
        moved_N: Float64Array,
        traffic_N: Float64Array,
        fresh_N: BoolArray,
    ) -> None:
        """Note distinct items that have changed; those that are neither fresh nor moved are left out.

        Args:
            ids: int64 (N,).
            category_NK: int64, their present categories.
            moved_N: float64, the norm of the change of each row.
            traffic_N: float64, the summed weight of each item's events.
            fresh_N: whether each is new, or its record has changed.
        """
        some = np.flatnonzero(fresh_N | (moved_N > 0))
        at = self._index.add(_tables(some), ids[some])
        self._make_room()
        self._moved_C[at] += moved_N[some]
        self._traffic_C[at] = traffic_N[some]
        self._fresh_C[at] |= fresh_N[some]
        self._category_CK[at] = category_NK[some]
        most = _WAIT_PER_ITEM * self._budget
        if len(self) > 2 * most:
            rows = self._index.rows()
            self._remove_rows(rows[self._best(rows, most)[1]])

    def encoded(self, ids: Int64Array) -> None:
        """These are in a delta."""
        self._encoded.add(ids)
        self.remove(ids)

    def remove(self, ids: Int64Array) -> None:
        """These need not be encoded."""
        gone = self._index.find(_tables(ids), ids)
        self._remove_rows(gone[gone >= 0])

    def choose(self) -> tuple[Int64Array, Int64Array]:
        """Ids int64 (n,) and categories int64 (n, K) of the items to encode now, of the highest priority; they stay."""
        rows = self._index.rows()
        adds = ~self._fresh_C[rows] & (self._encoded.find(self._index.keys_of(rows)[1]) < 0)
        more = max(0, self._most_moved - len(self._encoded))
        moved = rows[adds]
        allowed = np.concatenate([rows[~adds], moved[self._best(moved, more)[0]]])
        chosen = allowed[self._best(allowed, self._budget)[0]]
        return self._index.keys_of(chosen)[1], self._category_CK[chosen]

    def _best(self, rows: Int64Array, most: int) -> tuple[Int64Array, Int64Array]:
        """Places in `rows` of the items of the highest priority, and of the others."""
        everything = np.arange(rows.shape[0])
        if most == 0 or rows.shape[0] <= most:
            return (everything, everything[:0]) if most else (everything[:0], everything)
        priority = self._moved_C[rows] * (1.0 + self._traffic_C[rows])
        priority[self._fresh_C[rows]] = np.inf
        order = np.argpartition(-priority, most)
        return order[:most], order[most:]

    def _remove_rows(self, rows: Int64Array) -> None:
        self._index.remove(*self._index.keys_of(rows))
        self._moved_C[rows] = 0.0
        self._fresh_C[rows] = False

    def _make_room(self) -> None:
        missing = self._index.top - self._moved_C.shape[0]
        if missing > 0:
            more = max(missing, self._moved_C.shape[0] // 2)
            self._moved_C = np.concatenate([self._moved_C, np.zeros(more)])
            self._traffic_C = np.concatenate([self._traffic_C, np.zeros(more)])
            self._fresh_C = np.concatenate([self._fresh_C, np.zeros(more, np.bool_)])
            width = self._category_CK.shape[1]
            self._category_CK = np.concatenate([self._category_CK, np.zeros((more, width), np.int64)])


def _tables(ids: Int64Array) -> Int16Array:
    return np.zeros(ids.shape[0], np.int16)
