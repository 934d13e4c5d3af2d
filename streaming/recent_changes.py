"""Which numbers have changed since they were last taken, at a cost that follows the changes."""

import numpy as np

from streaming.arrays import Int32Array, Int64Array

_MERGED_FROM = 1 << 16


class RecentChanges:
    """A growing set of int64 numbers, such as ids or places.

    Nothing is kept before the first `take`: state that is never saved needs no record of its changes.
    """

    def __init__(self) -> None:
        self._parts: list[Int64Array] = []
        self._held = self._distinct = 0
        self._taken = False

    def __len__(self) -> int:
        """How many distinct numbers `take` would return."""
        self._merge()
        return self._distinct

    def add(self, number_N: Int64Array | Int32Array) -> None:
        """Add numbers, which may repeat."""
        if not self._taken or not len(number_N):
            return
        self._parts.append(np.array(number_N, np.int64))
        self._held += len(number_N)
        if self._held > 2 * self._distinct + _MERGED_FROM:
            self._merge()

    def take(self) -> Int64Array:
        """int64: the numbers that were added since the last call, ascending."""
        self._merge()
        found = self._parts[0]
        self._parts, self._held, self._distinct, self._taken = [], 0, 0, True
        return found

    def _merge(self) -> None:
        self._parts = [np.unique(np.concatenate([np.zeros(0, np.int64), *self._parts]))]
        self._held = self._distinct = self._parts[0].shape[0]
