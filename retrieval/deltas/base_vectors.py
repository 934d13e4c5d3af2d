"""The item vectors of a full version by row, read from its files when they are needed.

Shape letters: N items, D columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from retrieval.arrays import Float32Array, Int64Array


class BaseVectors:
    """Memory-mapped; row numbers continue from file to file, as in the version's index.

    Args:
        item_files: of the version's shards, in their order.
    """

    def __init__(self, item_files: Sequence[Path]) -> None:
        self._batches: list[Float32Array] = []
        for path in item_files:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            width = reader.schema.field("vector").type.list_size
            for number in range(reader.num_record_batches):
                flat = reader.get_batch(number).column(1).flatten().to_numpy()
                self._batches.append(flat.reshape(-1, width))
        self._first_row = np.cumsum([0, *(batch.shape[0] for batch in self._batches)])

    def of_rows(self, rows: Int64Array) -> Float32Array:
        """Their vectors, float32 (N, D)."""
        found = np.empty((rows.shape[0], self._batches[0].shape[1] if self._batches else 0), np.float32)
        batch_N = self._first_row.searchsorted(rows, side="right") - 1
        for number in np.unique(batch_N):
            here = batch_N == number
            found[here] = self._batches[number][rows[here] - self._first_row[number]]
        return found
