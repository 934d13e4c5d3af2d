"""Results without the items that a query must not get.

Shape letters: Q queries, F found items, K results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retrieval.arrays import Float32Array, Int64Array


@dataclass(frozen=True)
class Exclusions:
    """Item ids that each query must not get, ascending and distinct.

    Attributes:
        ids: int64, for each query; empty if no query has any.
        longest: maximum number of ids of a query.
    """

    ids: Sequence[Int64Array]
    longest: int

    @staticmethod
    def of(exclude: Sequence[Int64Array]) -> Exclusions:
        """From ids in any order, with repetitions."""
        ids = [np.sort(some) for some in exclude]
        if not ids:
            return NO_EXCLUSIONS
        together = np.concatenate(ids)
        if (together[1:] == together[:-1]).any():
            ids = [np.unique(some) for some in ids]
        return Exclusions(ids, max(some.shape[0] for some in ids))

    def of_queries(self, numbers: Int64Array) -> Exclusions:
        """The exclusions of some queries."""
        if not self.longest:
            return self
        ids = [self.ids[q] for q in numbers]
        return Exclusions(ids, max((some.shape[0] for some in ids), default=0))

    def first_kept(
        self, ids_QF: Int64Array, scores_QF: Float32Array, k: int
    ) -> tuple[Int64Array, Float32Array]:
        """The first k allowed results of each query, int64 and float32 (Q, K), padded with -1 and -inf.

        Args:
            ids_QF: int64, item ids, best first.
            scores_QF: float32, -inf after the last result of a query.
            k: K.
        """
        kept_QF = np.ones(ids_QF.shape, np.bool_)
        if self.longest:
            for ids_F, unwanted_E, kept_F in zip(ids_QF, self.ids, kept_QF, strict=True):
                if unwanted_E.shape[0]:
                    nearest_F = unwanted_E.take(unwanted_E.searchsorted(ids_F), mode="clip")
                    np.not_equal(nearest_F, ids_F, out=kept_F)
        number_QF = kept_QF.cumsum(axis=1)
        kept_QF &= number_QF <= k
        filled_QK = np.arange(k) < number_QF[:, -1:]
        ids_QK = np.full(filled_QK.shape, -1, np.int64)
        scores_QK = np.full(filled_QK.shape, -np.inf, np.float32)
        ids_QK[filled_QK], scores_QK[filled_QK] = ids_QF[kept_QF], scores_QF[kept_QF]
        return ids_QK, scores_QK


NO_EXCLUSIONS = Exclusions([], 0)
"""Each query may get any item."""
