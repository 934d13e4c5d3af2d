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
        ids: int64, of each query; empty for none of any query.
        longest: the most that one query has.
    """

    ids: Sequence[Int64Array]
    longest: int

    @staticmethod
    def of(exclude: Sequence[Int64Array]) -> Exclusions:
        """Ids in any order and any number of times."""
        ids = [_distinct(some) for some in exclude]
        return Exclusions(ids, max((some.shape[0] for some in ids), default=0))

    def of_queries(self, numbers: Int64Array) -> Exclusions:
        """Those of some queries."""
        if not self.longest:
            return self
        ids = [self.ids[q] for q in numbers]
        return Exclusions(ids, max((some.shape[0] for some in ids), default=0))

    def first_kept(
        self, ids_QF: Int64Array, scores_QF: Float32Array, k: int
    ) -> tuple[Int64Array, Float32Array]:
        """The first k of each query's results that it may get, int64 and float32 (Q, K), padded with -1 and -inf.

        Args:
            ids_QF: int64, item ids, best first.
            scores_QF: float32, -inf behind the last result of a query.
            k: K.
        """
        ids_QK = np.full((ids_QF.shape[0], k), -1, np.int64)
        scores_QK = np.full(ids_QK.shape, -np.inf, np.float32)
        if not self.longest:
            count = min(k, ids_QF.shape[1])
            ids_QK[:, :count], scores_QK[:, :count] = ids_QF[:, :count], scores_QF[:, :count]
            return ids_QK, scores_QK
        for q, unwanted_E in enumerate(self.ids):
            ids_F, scores_F = ids_QF[q], scores_QF[q]
            if unwanted_E.shape[0]:
                at_F = unwanted_E.searchsorted(ids_F)
                kept = (unwanted_E.take(at_F, mode="clip") != ids_F).nonzero()[0][:k]
                ids_F, scores_F = ids_F[kept], scores_F[kept]
            count = min(k, ids_F.shape[0])
            ids_QK[q, :count], scores_QK[q, :count] = ids_F[:count], scores_F[:count]
        ids_QK[np.isneginf(scores_QK)] = -1
        return ids_QK, scores_QK


NO_EXCLUSIONS = Exclusions([], 0)
"""Each query may get any item."""


def _distinct(ids: Int64Array) -> Int64Array:
    ascending = np.sort(ids)
    twin = ascending[1:] == ascending[:-1]
    return np.unique(ascending) if twin.any() else ascending
