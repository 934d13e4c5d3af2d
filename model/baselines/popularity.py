"""Streaming popularity: an item's score is how often it has been taken so far.

Shape letters: E events, I items, R recent items, Q items that are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from model.baselines.histories import Histories, ItemIndex

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]


class StreamingPopularity:
    """Counts over dense item indices; grows with the catalogue."""

    def __init__(self) -> None:
        self._count_I = np.zeros(0, np.int64)

    def update(self, target_E: Int64Array, recent_ER: Int64Array) -> None:
        """Count the events' items; `recent_ER` is not read (the baselines share one interface)."""
        if target_E.shape[0] == 0:
            return
        size = max(self._count_I.shape[0], int(target_E.max()) + 1)
        counts = np.bincount(target_E, minlength=size)
        counts[: self._count_I.shape[0]] += self._count_I
        self._count_I = counts

    def scores(self, recent_ER: Int64Array, items: int) -> Float32Array:
        """The same counts for every event, float32 (E, items), read-only."""
        return np.broadcast_to(self.counts(items), (recent_ER.shape[0], items))

    def counts(self, items: int) -> Float32Array:
        """How often each of the first `items` items has been taken, float32 (items,)."""
        padded_I = np.zeros(items, np.float32)
        known = min(items, self._count_I.shape[0])
        padded_I[:known] = self._count_I[:known]
        return padded_I

    def to_arrays(self) -> dict[str, npt.NDArray[np.int64]]:
        """The state for a checkpoint."""
        return {"count": self._count_I}

    def load_arrays(self, arrays: dict[str, npt.NDArray[np.int64]]) -> None:
        """Take up a checkpoint's state."""
        self._count_I = np.array(arrays["count"], np.int64)


class Popularity:
    """StreamingPopularity as a Recommender: a user is the vector [1], an item is [its count].

    Args:
        item_ids: int64 (I,), the catalogue's ids; other items are not counted.
    """

    def __init__(self, item_ids: Int64Array) -> None:
        self._index = ItemIndex(item_ids)
        self._counter = StreamingPopularity()

    def train_on(self, batch: pa.RecordBatch, *, decay: float = 1.0) -> Mapping[str, float]:
        """See Recommender: counts the events' items."""
        target_E = Histories.of(batch, self._index).target_E
        known = target_E[target_E >= 0]
        self._counter.update(known, np.zeros((known.shape[0], 0), np.int64))
        return {}

    def end_pass(self) -> None:
        """See Recommender: counts are ready at any time."""

    def encode_users(self, batch: pa.RecordBatch) -> Float32Array:
        """See Recommender: ones, float32 (E, 1)."""
        return np.ones((batch.column("weight").flatten().to_numpy().shape[0], 1), np.float32)

    def encode_items(self, item_ids: Int64Array) -> Float32Array:
        """See Recommender: counts, float32 (Q, 1)."""
        column_Q = self._index.find(item_ids)
        count_I = self._counter.counts(max(1, len(self._index)))
        return np.where(column_Q >= 0, count_I[np.maximum(column_Q, 0)], np.float32(0))[:, None]

    def scores(self, users: Float32Array, items: Float32Array) -> Float32Array:
        """See Recommender."""
        return users @ items.T

    def state(self) -> Any:
        """See Recommender."""
        return {name: array.copy() for name, array in self._counter.to_arrays().items()}

    def load_state(self, state: Any) -> None:
        """See Recommender."""
        self._counter.load_arrays(state)
