"""First-order Markov: counts of the item that follows the user's last item.

Shape letters: E events, Q queries, I items.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from model.arrays import Float32Array, Int64Array
from model.baselines.histories import Histories, ItemIndex
from model.baselines.popularity import StreamingPopularity
from model.baselines.sparse import PairCounts, SparseMatrix, inner_products, rows_or_zero, sparse


class Markov:
    """score(i | last item j) = n(j → i) + n(i) / (1 + Σ n): transitions, with ties broken by popularity.

    The second term is below 1, so it never outweighs a transition. It orders items that have not followed j, and is the
    whole score for a user without history. (In float32 it vanishes beside counts of millions, which then tie.)

    A user's vector is 1 at the last item and 1 in an extra column, which holds the items' popularity: CSR (E, I + 1)
    against CSC (Q, I + 1).

    Args:
        item_ids: int64 (I,), the catalogue's ids; other items are not counted.
    """

    def __init__(self, item_ids: Int64Array) -> None:
        self._index = ItemIndex(item_ids)
        self._transitions = PairCounts(len(self._index))
        self._popularity = StreamingPopularity()

    def train_on(self, batch: pa.RecordBatch, *, decay: float = 1.0) -> Mapping[str, float]:
        """See RetrievalModel: counts each event's item, and the transition to it from the previous item."""
        histories = Histories.of(batch, self._index)
        target_E, last_E = histories.target_E, histories.recent(1)[:, 0]
        known_E = target_E >= 0
        self._popularity.update(target_E[known_E], last_E[known_E])
        pair_E = known_E & (last_E >= 0)
        self._transitions.add(target_E[pair_E], last_E[pair_E])
        return {}

    def end_pass(self) -> None:
        """See RetrievalModel: counts are ready at any time."""

    def encode_users(self, batch: pa.RecordBatch) -> SparseMatrix:
        """See RetrievalModel."""
        last_E = Histories.of(batch, self._index).recent(1)[:, 0]
        events, items = np.arange(last_E.shape[0]), len(self._index)
        rows = np.concatenate([events[last_E >= 0], events])
        columns = np.concatenate([last_E[last_E >= 0], np.full(events.shape[0], items)])
        ones = np.ones(rows.shape[0], np.float32)
        return sparse.csr_matrix((ones, (rows, columns)), shape=(events.shape[0], items + 1))

    def encode_items(self, item_ids: Int64Array) -> SparseMatrix:
        """See RetrievalModel: the counts of transitions to each item, and its share of all events."""
        column_Q = self._index.find(item_ids)
        steps = rows_or_zero(self._transitions.matrix(), column_Q)
        count_I = self._popularity.counts(len(self._index))
        share_I = count_I / np.float32(1 + count_I.sum(dtype=np.float64))
        share_Q = np.where(column_Q >= 0, share_I[np.maximum(column_Q, 0)], 0).astype(np.float32)
        return sparse.hstack([steps, sparse.csr_matrix(share_Q[:, None])], format="csc")

    def scores(self, users: SparseMatrix, items: SparseMatrix) -> Float32Array:
        """See RetrievalModel."""
        return inner_products(users, items)

    def state(self) -> Any:
        """See RetrievalModel."""
        return self._transitions.matrix().copy(), self._popularity.to_arrays()

    def load_state(self, state: Any) -> None:
        """See RetrievalModel."""
        self._transitions.load(state[0].copy())
        self._popularity.load_arrays(state[1])
