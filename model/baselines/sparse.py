"""Counts of item pairs, and scores of vectors as wide as the catalogue. Needs SciPy (extra `evaluation`).

Shape letters: I items, P pairs, Q queries, D columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from model.arrays import Float32Array, Int32Array, Int64Array
from model.baselines.extra import evaluation_package

sparse = evaluation_package("scipy.sparse")

SparseMatrix = Any

_PENDING_PAIRS = 2_000_000


class PairCounts:
    """Number of occurrences of each pair of items; memory grows with the distinct pairs, not with I²."""

    def __init__(self, items: int) -> None:
        self._items = items
        self._merged: SparseMatrix = sparse.csr_matrix((items, items), dtype=np.int32)
        self._pending: list[tuple[Int64Array, Int64Array]] = []
        self._pending_pairs = 0

    def add(self, row_P: Int64Array, column_P: Int64Array) -> None:
        """Count pairs of columns of the catalogue, int64 (P,) each."""
        self._pending.append((row_P, column_P))
        self._pending_pairs += row_P.shape[0]
        # Merging passes over all known pairs, so it waits until there are as many pending ones.
        if self._pending_pairs > max(_PENDING_PAIRS, self._merged.nnz):
            self.matrix()

    def matrix(self) -> SparseMatrix:
        """All counts so far, CSR int32 (I, I); not to be written to."""
        if self._pending:
            rows, columns = (np.concatenate(parts) for parts in zip(*self._pending, strict=True))
            ones = np.ones(rows.shape[0], np.int32)
            fresh = sparse.coo_matrix((ones, (rows, columns)), shape=(self._items, self._items))
            self._merged = self._merged + fresh.tocsr()
            self._pending, self._pending_pairs = [], 0
        return self._merged

    def load(self, matrix: SparseMatrix) -> None:
        """Restore what `matrix` returned."""
        self._merged, self._pending, self._pending_pairs = matrix, [], 0


def rows_or_zero(
    matrix: SparseMatrix, row_Q: Int64Array, scale_Q: Float32Array | None = None
) -> SparseMatrix:
    """Rows of a CSR matrix times a factor each, CSR float32 (Q, D); a zero row for −1."""
    factor_Q = (row_Q >= 0).astype(np.float32)
    if scale_Q is not None:
        factor_Q = factor_Q * scale_Q
    taken = matrix[np.maximum(row_Q, 0)].astype(np.float32)
    taken.data *= np.repeat(factor_Q, np.diff(taken.indptr))
    return taken


def inner_products(user_QD: SparseMatrix, item_ID: SparseMatrix) -> Float32Array:
    """All inner products, dense float32 (Q, I).

    Args:
        user_QD: CSR, few entries in a row.
        item_ID: by columns (CSC), to find the items that share an entry with a user; other formats are converted.
    """
    users, items = user_QD.tocsr(), item_ID.tocsc()
    out = np.zeros((users.shape[0], items.shape[0]), np.float32)
    _accumulate(
        users.indptr,
        users.indices,
        users.data.astype(np.float32, copy=False),
        items.indptr,
        items.indices,
        items.data.astype(np.float32, copy=False),
        out,
    )
    return out


@njit(cache=True, nogil=True)
def _accumulate(
    user_indptr: Int32Array,
    user_column: Int32Array,
    user_value: Float32Array,
    column_indptr: Int32Array,
    item_row: Int32Array,
    item_value: Float32Array,
    out_QI: Float32Array,
) -> None:
    for q in range(out_QI.shape[0]):
        for u in range(user_indptr[q], user_indptr[q + 1]):
            column, value = user_column[u], user_value[u]
            for k in range(column_indptr[column], column_indptr[column + 1]):
                out_QI[q, item_row[k]] += value * item_value[k]
