"""Counts the rows that a table's limits remove, to show that the limits were effective."""

from collections import Counter

import numpy as np

from cluster.tables.sharded_embedding import ShardedEmbedding
from model.key_index import KeyIndex


class TableWatch:
    """Counts the rows of one rank that its sweeps remove, by reason."""

    def __init__(self, table: ShardedEmbedding) -> None:
        self.removed: Counter[str] = Counter(expired=0, evicted=0)
        self._table, self._sweep = table, table.sweep
        table.sweep = self._watched

    def _watched(self, now_ms: int) -> int:
        table = self._table
        rows = table.rows()
        keys, seen_ms = table.keys_of(rows), table.last_seen_ms_C[rows]
        removed = self._sweep(now_ms)
        left = KeyIndex()
        left.add(*table.keys_of(table.rows()))
        gone = left.find(*keys) < 0
        late = seen_ms < now_ms - int(table.limits.expire_after_s * 1000)
        self.removed["expired"] += int(np.count_nonzero(gone & late))
        self.removed["evicted"] += int(np.count_nonzero(gone & ~late))
        return removed
