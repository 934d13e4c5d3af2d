"""The interface of every system under evaluation, whether it counts, factorises or trains.

Shape letters: E events of a batch, Q queries, I items, D columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import pyarrow as pa

from model.arrays import Float32Array, Int64Array

Vectors = Any
"""float32 (n, D): a NumPy array, or a SciPy CSR matrix where D is as large as the catalogue."""


class RetrievalModel(Protocol):
    """Fits on training batches (docs/reference/batch.md) of a stream or of a data set; encodes users and items."""

    def train_on(self, batch: pa.RecordBatch, *, decay: float = 1.0) -> Mapping[str, float]:
        """Learn from one batch. Returns loss terms by name (none if the system counts); `refused` if it was not used.

        Args:
            batch: one row per run of a user; the events are `items[context_length:]`.
            decay: factor of the learning rates, in (0, 1]; ignored by systems without learning rates.
        """
        ...

    def end_pass(self) -> None:
        """Called after each pass over the data; systems that solve instead of taking steps do it here."""
        ...

    def encode_users(self, batch: pa.RecordBatch) -> Vectors:
        """The query vector of every event of a batch, as of just before the event; its own item is not read."""
        ...

    def encode_items(self, item_ids: Int64Array) -> Vectors:
        """The vectors of items, given as raw ids int64 (I,), including items never seen in training."""
        ...

    def scores(self, users: Vectors, items: Vectors) -> Float32Array:
        """The score of each item for each user, float32 (Q, I); larger is better."""
        ...

    def state(self) -> Any:
        """A copy of everything that training changes, to return to the best pass."""
        ...

    def load_state(self, state: Any) -> None:
        """Restore what `state` returned."""
        ...
