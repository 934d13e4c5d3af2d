"""Streaming popularity: an item's score is its number of events so far.

Shape letters: E events, I items, R recent items, Q items to encode.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from model.arrays import Float32Array, Int64Array
from model.baselines.histories import Histories, ItemIndex

_DAY_MS = 86_400_000


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
        """Number of events of each of the first `items` items, float32 (items,)."""
        padded_I = np.zeros(items, np.float32)
        known = min(items, self._count_I.shape[0])
        padded_I[:known] = self._count_I[:known]
        return padded_I

    def to_arrays(self) -> dict[str, npt.NDArray[np.int64]]:
        """The state for a checkpoint."""
        return {"count": self._count_I}

    def load_arrays(self, arrays: dict[str, npt.NDArray[np.int64]]) -> None:
        """Restore a checkpoint's state."""
        self._count_I = np.array(arrays["count"], np.int64)


class Popularity:
    """Popularity as a RetrievalModel: a user is [1], an item is [its count].

    count(i) = Σ_e w_e,  w_e = 2^(−(t − t_e) / half-life),  t: the latest event's time; w_e = 1 without a half-life.

    Args:
        item_ids: int64 (I,), the catalogue's ids; other items are not counted.
        half_life_days: age at which an event counts half; 0: events do not lose weight.
    """

    def __init__(self, item_ids: Int64Array, *, half_life_days: float = 0.0) -> None:
        self._index = ItemIndex(item_ids)
        self._count_I = np.zeros(len(self._index), np.float64)
        self._half_life_ms = half_life_days * _DAY_MS
        self._latest_ms = 0

    def train_on(self, batch: pa.RecordBatch, *, decay: float = 1.0) -> Mapping[str, float]:
        """See RetrievalModel: counts the events' items."""
        events = Histories.of(batch, self._index)
        known_E = events.target_E >= 0
        weight_E = None
        if self._half_life_ms:
            time_E = batch.column("times_ms").flatten().to_numpy()[events.place_E][known_E]
            latest_ms = max(self._latest_ms, int(time_E.max(initial=0)))
            self._count_I *= self._weight(latest_ms - self._latest_ms)
            self._latest_ms = latest_ms
            weight_E = self._weight(latest_ms - time_E)
        self._count_I += np.bincount(events.target_E[known_E], weight_E, minlength=len(self._index))
        return {}

    def _weight(self, age_ms: Any) -> Any:
        return np.exp2(-age_ms / self._half_life_ms)

    def end_pass(self) -> None:
        """See RetrievalModel: counts are ready at any time."""

    def encode_users(self, batch: pa.RecordBatch) -> Float32Array:
        """See RetrievalModel: ones, float32 (E, 1)."""
        return np.ones((batch.column("weight").flatten().to_numpy().shape[0], 1), np.float32)

    def encode_items(self, item_ids: Int64Array) -> Float32Array:
        """See RetrievalModel: counts, float32 (Q, 1)."""
        column_Q = self._index.find(item_ids)
        if len(self._index) == 0:
            return np.zeros((column_Q.shape[0], 1), np.float32)
        count_Q = self._count_I[np.maximum(column_Q, 0)].astype(np.float32)
        return np.where(column_Q >= 0, count_Q, np.float32(0))[:, None]

    def scores(self, users: Float32Array, items: Float32Array) -> Float32Array:
        """See RetrievalModel."""
        return users @ items.T

    def state(self) -> Any:
        """See RetrievalModel."""
        return self._count_I.copy(), self._latest_ms

    def load_state(self, state: Any) -> None:
        """See RetrievalModel."""
        count_I, self._latest_ms = state
        self._count_I = count_I.copy()
