"""WALS: weighted alternating least squares on implicit feedback, by the package `implicit` (extra `evaluation`).

Source: Hu, Koren, Volinsky, "Collaborative Filtering for Implicit Feedback Datasets", ICDM 2008.

Shape letters: E events, P events that have been read, X known items of all events, I items, Q items to encode,
F factors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from model.arrays import Float32Array, Int64Array
from model.baselines.extra import evaluation_package
from model.baselines.histories import Histories, ItemIndex


class _Read(NamedTuple):
    """Events of known items."""

    partition_P: Int64Array
    offset_P: Int64Array
    row_P: Int64Array
    user_P: Int64Array
    item_P: Int64Array
    weight_P: Float32Array


_NOTHING_READ = _Read._make([*np.zeros((5, 0), np.int64), np.zeros(0, np.float32)])


class WALS:
    """min Σ_ui c_ui (p_ui − x_u·y_i)² + λ (Σ ‖x_u‖² + Σ ‖y_i‖²), c_ui = 1 + κ w_ui, p_ui = 1 where u took i, else 0.

    w_ui is the summed weight of the user's events with the item. `end_pass` factorises everything read so far from
    scratch; before the first one, all vectors are zero. The events themselves are kept, so that an event read again in
    a further pass counts once; partition, offset and row identify it. A query's user vector is solved from its history,
    with weight 1 for each distinct item:
    x = (YᵀY + κ Σ_i y_i y_iᵀ + λ I)⁻¹ (1 + κ) Σ_i y_i.
    So users need not be in the factorised data. An item without an interaction has a zero vector.

    Args:
        item_ids: int64 (I,), the catalogue's ids; other items are left out.
        factors: F.
        regularization: λ.
        iterations: each solves all users and then all items.
        kappa: κ.
        threads: of `implicit`; BLAS gets one, as `implicit` requires.
        seed: of the initial factors.
    """

    def __init__(
        self,
        item_ids: Int64Array,
        *,
        factors: int = 100,
        regularization: float = 0.01,
        iterations: int = 15,
        kappa: float = 40.0,
        threads: int = 1,
        seed: int = 0,
    ) -> None:
        self._index = ItemIndex(item_ids)
        self.factors, self.regularization, self.iterations = factors, regularization, iterations
        self.kappa, self.threads, self.seed = kappa, threads, seed
        self._solved, self._since = _NOTHING_READ, list[_Read]()
        self._item_IF = np.zeros((len(self._index), factors), np.float32)

    def train_on(self, batch: pa.RecordBatch, *, decay: float = 1.0) -> Mapping[str, float]:
        """See RetrievalModel: keeps the events for `end_pass`."""
        histories = Histories.of(batch, self._index)
        known_E = histories.target_E >= 0
        places: Any = batch.column("offset")
        partition_E = np.repeat(batch.column("partition").to_numpy(), np.diff(places.offsets.to_numpy()))
        row_E = batch.column("row").flatten().to_numpy()
        self._since.append(
            _Read(
                partition_E[known_E].astype(np.int64),
                places.flatten().to_numpy()[known_E],
                row_E[known_E].astype(np.int64),
                histories.user_E[known_E],
                histories.target_E[known_E],
                histories.weight_E[known_E],
            )
        )
        return {}

    def end_pass(self) -> None:
        """See RetrievalModel: factorises all events so far, if there are new ones."""
        read = _each_once([self._solved, *self._since])
        is_new, self._since = len(read.user_P) > len(self._solved.user_P), []
        if not is_new:
            return
        self._solved = read
        _, row_P = np.unique(read.user_P, return_inverse=True)
        confidence = self._matrix(row_P, read.item_P, read.weight_P, int(row_P.max()) + 1)
        confidence.data = 1.0 + np.float32(self.kappa) * confidence.data
        with _one_blas_thread():
            solver = self._solver()
            solver.fit(confidence, show_progress=False)
        self._item_IF = np.ascontiguousarray(solver.item_factors)
        # The remains of an untrained item's initial factors are noise.
        self._item_IF[np.bincount(read.item_P, minlength=len(self._index)) == 0] = 0.0

    def encode_users(self, batch: pa.RecordBatch) -> Float32Array:
        """See RetrievalModel: solved from each event's history, float32 (E, F)."""
        histories = Histories.of(batch, self._index)
        events = histories.place_E.shape[0]
        event_X, item_X = histories.known()
        weight_X = np.full(event_X.shape[0], 1.0 + self.kappa, np.float32)
        if not events:
            return np.zeros((0, self.factors), np.float32)
        with _one_blas_thread():
            solver = self._solver()
            solver.item_factors = self._item_IF
            solved: Float32Array = solver.recalculate_user(
                np.arange(events), self._matrix(event_X, item_X, weight_X, events)
            )
        return solved

    def encode_items(self, item_ids: Int64Array) -> Float32Array:
        """See RetrievalModel: float32 (Q, F)."""
        column_Q = self._index.find(item_ids)
        return self._item_IF[np.maximum(column_Q, 0)] * (column_Q >= 0)[:, None].astype(np.float32)

    def scores(self, users: Float32Array, items: Float32Array) -> Float32Array:
        """See RetrievalModel: how near each p_ui is to 1."""
        return users @ items.T

    def state(self) -> Any:
        """See RetrievalModel."""
        # The arrays of read events are replaced, never modified.
        return self._item_IF.copy(), self._solved, self._since.copy()

    def load_state(self, state: Any) -> None:
        """See RetrievalModel."""
        item_IF, self._solved, since = state
        self._item_IF, self._since = item_IF.copy(), since.copy()

    def _solver(self) -> Any:
        als = evaluation_package("implicit.cpu.als")
        return als.AlternatingLeastSquares(
            factors=self.factors,
            regularization=self.regularization,
            iterations=self.iterations,
            num_threads=self.threads,
            random_state=self.seed,
        )

    def _matrix(self, row: Int64Array, column: Int64Array, value: Float32Array, rows: int) -> Any:
        sparse = evaluation_package("scipy.sparse")
        return sparse.coo_matrix((value, (row, column)), shape=(rows, len(self._index))).tocsr()


def _each_once(parts: list[_Read]) -> _Read:
    """The events in log order, without repetitions: of equal ones, the first that was read."""
    read = _Read._make(np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.lexsort((read.row_P, read.offset_P, read.partition_P))
    place_3P = np.stack(read[:3])[:, order]
    is_first_P = np.ones(order.shape[0], np.bool_)
    is_first_P[1:] = (place_3P[:, 1:] != place_3P[:, :-1]).any(0)
    return _Read._make(column[order[is_first_P]] for column in read)


def _one_blas_thread() -> Any:
    """Limits BLAS to one thread while the block runs; `implicit` calls it from its own threads and warns of more."""
    return evaluation_package("threadpoolctl").threadpool_limits(1, "blas")
