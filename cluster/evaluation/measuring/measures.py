"""The figures of a cell, computed from the ranks of its targets.

Shape letters: Q queries, G targets of all queries, I items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cluster.evaluation.measuring.ranking import Ranking
from cluster.evaluation.protocol.data import EvaluationData
from model.metrics import hit_rate, hits_per_query, ndcg_per_query, recall_per_query
from streaming.arrays import BoolArray, Float64Array, Int64Array

CUTS = (10, 50)
SLICES = ("tail", "low_activity")
HEAD_SHARE = 0.2
"""Share of the items, ordered by training count, that are not in the tail."""


@dataclass(frozen=True)
class RankedTargets:
    """The ranks of the test's targets, and the slices that they belong to."""

    rank_G: Float64Array
    query_G: Int64Array
    user_Q: Int64Array
    """Raw ids."""
    tail_G: BoolArray
    """Targets outside the HEAD_SHARE of items with the most training events."""
    low_activity_Q: BoolArray
    """Queries whose users have at most the median number of training events of all queries."""

    @property
    def queries(self) -> int:
        """Q."""
        return len(self.user_Q)

    def figures(self) -> dict[str, float]:
        """Every metric, then the same for each slice, such as `tail_hr@10`; nan for an empty slice."""
        return {
            f"{prefix}{name}": value
            for prefix, keep_G in self._slices().items()
            for name, value in self._metrics(keep_G).items()
        }

    def _slices(self) -> dict[str, BoolArray]:
        """The targets in each slice, by the prefix of its metrics' names."""
        everything = np.ones(self.rank_G.shape[0], np.bool_)
        return {"": everything, "tail_": self.tail_G, "low_activity_": self.low_activity_Q[self.query_G]}

    def _metrics(self, keep_G: BoolArray) -> dict[str, float]:
        rank_G, query_G = self.rank_G[keep_G], self.query_G[keep_G]
        names, query_G = np.unique(query_G, return_inverse=True)
        found = {f"hr@{n}": hit_rate(rank_G, n) for n in CUTS}
        for n in CUTS:
            found[f"recall@{n}"] = _mean(recall_per_query(rank_G, query_G, names.shape[0], n))
        found["ndcg@10"] = _mean(ndcg_per_query(rank_G, query_G, names.shape[0], 10))
        return found

    def per_user(self, metric: str) -> tuple[Float64Array, Float64Array]:
        """Numerator and denominator of each user; the metric is the quotient of their sums.

        The queries of one user (a walk-forward has many) are not independent, so they stay together.

        Args:
            metric: `hr@N` (hits over targets), also of a slice, such as `tail_hr@N`; or `ndcg@10` (over one target).
        """
        _, user_of_Q = np.unique(self.user_Q, return_inverse=True)
        numerator_Q, denominator_Q = self._per_query(metric)
        numerator_U: Float64Array = np.bincount(user_of_Q, numerator_Q).astype(np.float64)
        return numerator_U, np.bincount(user_of_Q, denominator_Q).astype(np.float64)

    def _per_query(self, metric: str) -> tuple[Float64Array, Float64Array]:
        name, _, cut = metric.partition("@")
        if name.endswith("hr"):
            keep_G = self._slices()[name.removesuffix("hr")]
            query_G = self.query_G[keep_G]
            hits_Q = hits_per_query(self.rank_G[keep_G], query_G, self.queries, int(cut))
            return hits_Q, np.bincount(query_G, minlength=self.queries).astype(np.float64)
        return ndcg_per_query(self.rank_G, self.query_G, self.queries, int(cut)), np.ones(self.queries)


def ranked_targets(data: EvaluationData, ranking: Ranking) -> RankedTargets:
    """Ranks of the test's targets with their slices."""
    queries, train_U = data.split.test, data.split.train_U
    trained_Q = train_U[queries.user_Q]
    return RankedTargets(
        rank_G=ranking.rank_G,
        query_G=ranking.query_G,
        user_Q=data.interactions.user_U[queries.user_Q],
        tail_G=~np.isin(queries.target_G, head_items(data)),
        low_activity_Q=trained_Q <= np.median(trained_Q),
    )


def head_items(data: EvaluationData) -> Int64Array:
    """The HEAD_SHARE of all ranked items with the most training events; ties go to the smaller id."""
    interactions, train_U = data.interactions, data.split.train_U
    within_T = np.arange(interactions.item_T.shape[0]) - np.repeat(
        interactions.offset_U1[:-1], interactions.length_U
    )
    trained_T = within_T < np.repeat(train_U, interactions.length_U)
    places = np.searchsorted(data.item_ids, interactions.item_T[trained_T])
    count_I = np.bincount(places, minlength=data.item_ids.shape[0])
    order = np.argsort(-count_I, kind="stable")
    head: Int64Array = data.item_ids[order[: int(HEAD_SHARE * data.item_ids.shape[0])]]
    return head


def _mean(values: Float64Array) -> float:
    return float(values.mean()) if values.size else float("nan")
