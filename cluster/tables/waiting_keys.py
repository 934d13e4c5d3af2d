"""Keys of users and items that are counted but have no row of their own yet. Exact counts; 34 bytes per key plus slots.

`waiting-LLLL-HHHH.arrow` holds those of a range of buckets; every checkpoint has all of them.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from model.key_index import KeyIndex
from streaming.arrays import Float64Array, Int16Array, Int64Array


class WaitingKeys:
    """The number of times that each key was seen, and the last time."""

    def __init__(self) -> None:
        self.index = KeyIndex()
        self.frequency_C = np.zeros(1024)
        self.last_seen_ms_C = np.zeros(1024, np.int64)

    def __len__(self) -> int:
        return len(self.index)

    def count(self, tables: Int16Array, ids: Int64Array, weights: Float64Array, time_ms: int) -> Float64Array:
        """Count distinct keys once each; returns their new counts, float64 (K,)."""
        rows = self._rows(tables, ids)
        self.frequency_C[rows] += weights
        self.last_seen_ms_C[rows] = np.maximum(self.last_seen_ms_C[rows], time_ms)
        return self.frequency_C[rows]

    def frequencies(self, tables: Int16Array, ids: Int64Array) -> Float64Array:
        """The counts, float64 (K,); 0 for a key that does not wait."""
        rows = self.index.find(tables, ids)
        return np.where(rows >= 0, self.frequency_C[rows], 0.0)

    def remove(self, tables: Int16Array, ids: Int64Array) -> None:
        """Remove keys that no longer wait."""
        rows = self.index.remove(tables, ids)
        gone = rows[rows >= 0]
        self.frequency_C[gone] = 0.0
        self.last_seen_ms_C[gone] = 0

    def to_table(self) -> pa.Table:
        """A table for a checkpoint, sorted by table and id."""
        rows = self.index.rows()
        tables, ids = self.index.keys_of(rows)
        columns = {
            "table": tables,
            "id": ids,
            "frequency": self.frequency_C[rows],
            "last_seen_ms": self.last_seen_ms_C[rows],
        }
        return pa.table(columns).sort_by([("table", "ascending"), ("id", "ascending")])

    def load(self, waiting: pa.Table) -> None:
        """Add the keys of a table from `to_table`."""
        tables = np.ascontiguousarray(waiting["table"].to_numpy(), np.int16)
        rows = self._rows(tables, np.ascontiguousarray(waiting["id"].to_numpy(), np.int64))
        self.frequency_C[rows] = waiting["frequency"].to_numpy()
        self.last_seen_ms_C[rows] = waiting["last_seen_ms"].to_numpy()

    def _rows(self, tables: Int16Array, ids: Int64Array) -> Int64Array:
        rows = self.index.add(tables, ids)
        missing = self.index.top - self.frequency_C.shape[0]
        if missing > 0:
            extra = max(missing, self.frequency_C.shape[0] // 2)
            self.frequency_C = np.concatenate([self.frequency_C, np.zeros(extra)])
            self.last_seen_ms_C = np.concatenate([self.last_seen_ms_C, np.zeros(extra, np.int64)])
        return rows
