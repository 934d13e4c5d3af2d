"""Which rows of a full version are superseded or deleted by deltas, and the row of each item id."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from retrieval.arrays import Int64Array, UInt8Array

Bools = npt.NDArray[np.bool_]
_BITS = np.left_shift(1, np.arange(8)).astype(np.uint8)


class RowsById:
    """Finds the rows of item ids; built once per version.

    Args:
        item_ids: int64 (N,), the id of each row, distinct.
    """

    def __init__(self, item_ids: Int64Array) -> None:
        # Stable, because the ids of each shard are often ascending, and then it is a merge.
        self._row_N = np.argsort(item_ids, kind="stable")
        self._ascending_N = item_ids[self._row_N]

    def find(self, item_ids: Int64Array) -> Int64Array:
        """The rows int64 of those ids that have one."""
        if not self._row_N.shape[0]:
            return np.empty(0, np.int64)
        place = np.minimum(self._ascending_N.searchsorted(item_ids), self._row_N.shape[0] - 1)
        found: Int64Array = self._row_N[place[self._ascending_N[place] == item_ids]]
        return found


@dataclass(frozen=True)
class RowSet:
    """A set of rows, a bit for each row of the version: 125 kB per million.

    Attributes:
        bits: uint8 (ceil(N / 8),), lowest bit first.
        size: number of rows in the set.
    """

    bits: UInt8Array
    size: int

    @staticmethod
    def empty(rows: int) -> RowSet:
        """No row of `rows`."""
        return RowSet(np.zeros(-(-rows // 8), np.uint8), 0)

    def with_rows(self, rows: Int64Array) -> RowSet:
        """A set that also has these distinct rows."""
        new = rows[~self.has(rows)]
        if not new.shape[0]:
            return self
        bits = self.bits.copy()
        np.bitwise_or.at(bits, new >> 3, _bit(new))
        return RowSet(bits, self.size + new.shape[0])

    def has(self, rows: Int64Array) -> Bools:
        """Whether each row is in the set, bool in the shape of `rows`; any value for -1."""
        found: Bools = (self.bits.take(rows >> 3) & _bit(rows)).astype(np.bool_)
        return found


def _bit(rows: Int64Array) -> UInt8Array:
    return _BITS.take(rows & 7)
