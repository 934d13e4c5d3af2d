"""Streaming item-item co-occurrence: how often an item occurs within the 20 events after another.

Shape letters: E events, I items, R recent items of a user (20), −1 padded, Q items to encode.

StreamingCooccurrence counts and scores in every step; Cooccurrence expresses the same scores as vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numba import njit

from model.arrays import Float32Array, Int64Array
from model.baselines.histories import Histories, ItemIndex
from model.baselines.pair_table import COUNT, PairTable, Tables

RECENT_ITEMS = 20
_COUNT = np.int32(COUNT)


@njit(cache=True, nogil=True)
def _scores(tables: Tables, norm_I: Float32Array, recent_ER: Int64Array, items: int) -> Float32Array:
    out = np.zeros((recent_ER.shape[0], items), np.float32)
    known = min(items, norm_I.shape[0])
    # Indexed by item + 1: empty slots add to entry 0, so no slot needs a branch.
    sums = np.empty(tables.start_I.shape[0] + 1, np.float32)
    for e in range(recent_ER.shape[0]):
        sums[:] = 0.0
        for r in range(recent_ER.shape[1]):
            recent = recent_ER[e, r]
            if recent < 0 or recent >= norm_I.shape[0] or tables.bits_I[recent] == 0:
                continue
            norm, first = norm_I[recent], tables.start_I[recent]
            if tables.plain_I[recent]:
                of_others = tables.cell_C[2 * first : 2 * first + min(known, 2 << tables.bits_I[recent])]
                for i in range(of_others.shape[0]):
                    sums[i + 1] += np.float32(of_others[i] & _COUNT) * norm
                continue
            for slot in tables.slot_S[first : first + (1 << tables.bits_I[recent])]:
                sums[np.uint64(slot) >> np.uint64(32)] += np.float32(np.int32(slot & COUNT)) * norm
        for i in range(known):
            out[e, i] = sums[i + 1] * norm_I[i]
    return out


class StreamingCooccurrence:
    """Score of item i after recent items R: Σ_{j∈R} count(i, j) / √(total(i) total(j))."""

    def __init__(self) -> None:
        self.pairs = PairTable()
        """The counts, by dense item index."""
        self.items = 0
        """One more than the largest item index so far; −1 once counting has stopped."""

    @property
    def stopped(self) -> bool:
        """Whether counting has stopped permanently."""
        return self.items < 0

    def stop(self) -> None:
        """Stop counting and release the memory."""
        self.pairs.clear()
        self.items = -1

    def update(self, target_E: Int64Array, recent_ER: Int64Array) -> None:
        """Count each event's item with the user's recent items.

        Args:
            target_E: int64, dense item index.
            recent_ER: int64, dense indices of the items before the event, −1 where there are fewer.
        """
        if target_E.shape[0] == 0 or self.stopped:
            return
        largest = max(int(target_E.max()), int(recent_ER.max(initial=-1)))
        self.items = max(self.items, largest + 1)
        self.pairs.reserve(self.items)
        self.pairs.count(target_E, recent_ER)

    def scores(self, recent_ER: Int64Array, items: int) -> Float32Array:
        """float32 (E, items); zeros once counting has stopped."""
        total_I = self.pairs.total_I[: max(self.items, 0)]
        norm_I = (1.0 / np.sqrt(np.maximum(total_I, 1))).astype(np.float32)
        return _scores(self.pairs.tables, norm_I, np.ascontiguousarray(recent_ER), items)


class Cooccurrence:
    """The scores of StreamingCooccurrence as inner products: Σ_{j∈R} [1 / √total(j)] · [count(i, j) / √total(i)].

    A user's vector holds the first factor at each recent item, CSR (E, I); an item's vector holds the second factor at
    each j, CSC (Q, I).

    Args:
        item_ids: int64 (I,), the catalogue's ids; other items are not counted.
        recent_items: R, number of items before an event that are used.
    """

    def __init__(self, item_ids: Int64Array, *, recent_items: int = RECENT_ITEMS) -> None:
        # Imported here: the streaming counter must work without SciPy.
        from model.baselines import sparse

        self._tools = sparse
        self._index = ItemIndex(item_ids)
        self._counts = sparse.PairCounts(len(self._index))
        self._recent_items = recent_items

    def train_on(self, batch: pa.RecordBatch, *, decay: float = 1.0) -> Mapping[str, float]:
        """See RetrievalModel: counts each event's item with the items before it."""
        histories = Histories.of(batch, self._index)
        recent_ER = histories.recent(self._recent_items)
        target_ER = np.broadcast_to(histories.target_E[:, None], recent_ER.shape)
        pair_ER = (target_ER >= 0) & (recent_ER >= 0) & (target_ER != recent_ER)
        target, recent = target_ER[pair_ER], recent_ER[pair_ER]
        # Both directions: the order of the two items does not matter.
        self._counts.add(np.concatenate([target, recent]), np.concatenate([recent, target]))
        return {}

    def end_pass(self) -> None:
        """See RetrievalModel: counts are ready at any time."""

    def encode_users(self, batch: pa.RecordBatch) -> Any:
        """See RetrievalModel."""
        recent_ER = Histories.of(batch, self._index).recent(self._recent_items)
        event, place = np.nonzero(recent_ER >= 0)
        item = recent_ER[event, place]
        shape = (recent_ER.shape[0], len(self._index))
        return self._tools.sparse.csr_matrix((self._norms()[item], (event, item)), shape=shape)

    def encode_items(self, item_ids: Int64Array) -> Any:
        """See RetrievalModel."""
        column_Q = self._index.find(item_ids)
        norm_Q = self._norms()[np.maximum(column_Q, 0)]
        return self._tools.rows_or_zero(self._counts.matrix(), column_Q, norm_Q).tocsc()

    def scores(self, users: Any, items: Any) -> Float32Array:
        """See RetrievalModel."""
        scores: Float32Array = self._tools.inner_products(users, items)
        return scores

    def state(self) -> Any:
        """See RetrievalModel."""
        return self._counts.matrix().copy()

    def load_state(self, state: Any) -> None:
        """See RetrievalModel."""
        self._counts.load(state.copy())

    def _norms(self) -> Float32Array:
        """1 / √total of each item, float32 (I,)."""
        total_I = np.asarray(self._counts.matrix().sum(axis=1, dtype=np.int64)).reshape(-1)
        norm_I: Float32Array = (1.0 / np.sqrt(np.maximum(total_I, 1))).astype(np.float32)
        return norm_I
