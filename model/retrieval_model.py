"""What every system of an evaluation can do, be it counted, factorised or trained.

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
        """Take one batch in. Returns loss terms by name, empty for what only counts; `refused` if nothing was learned.

        Args:
            batch: one row per run of a user; the events are `items[context_length:]`.
            decay: factor of the learning rates, in (0, 1]; what has none ignores it.
        """
        ...

    def end_pass(self) -> None:
        """The whole data set has been read once: models that solve instead of taking steps do it here."""
        ...

    def encode_users(self, batch: pa.RecordBatch) -> Vectors:
        """The query vector of every event of a batch as of just before it; its own item is never looked at."""
        ...

    def encode_items(self, item_ids: Int64Array) -> Vectors:
        """The vectors of items, raw ids int64 (I,); an item never seen in training gets one too."""
        ...

    def scores(self, users: Vectors, items: Vectors) -> Float32Array:
        """How well each item fits each user, float32 (Q, I); larger is better."""
        ...

    def state(self) -> Any:
        """A copy of everything that training changes, for going back to the best pass."""
        ...

    def load_state(self, state: Any) -> None:
        """Go back to what `state` returned."""
        ...
