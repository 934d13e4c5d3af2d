"""Ranks each query's targets among all items.

Shape letters: Q queries, G targets of all queries, I items, S seen items of all queries.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from cluster.evaluation.protocol.batches import query_batches
from cluster.evaluation.protocol.interactions import Interactions
from cluster.evaluation.protocol.protocols import Queries
from model.metrics import rank_in_row
from model.retrieval_model import RetrievalModel
from streaming.arrays import Float64Array, Int64Array

_QUERIES_AT_ONCE = 1024


@dataclass(frozen=True)
class Ranking:
    """The result of one system on some queries."""

    rank_G: Float64Array
    """float64, items above the target plus half of its ties; 0 is best."""
    query_G: Int64Array
    """int64, the query of each target."""


def rank(
    recommender: RetrievalModel,
    interactions: Interactions,
    queries: Queries,
    item_ids: Int64Array,
    *,
    window: int,
    exclude_seen: bool,
) -> Ranking:
    """Full ranking: every target among all items, by default without items that the user has already had.

    Args:
        recommender: encodes users and items.
        interactions: the histories.
        queries: users, times, and targets.
        item_ids: int64 (I,), ascending: all items that are ranked. A target that is not among them ranks last.
        window: W, items of history in the query batches.
        exclude_seen: whether seen items are left out; the target itself never is.
    """
    items = recommender.encode_items(item_ids)
    ranks = []
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        part = queries.take(np.arange(start, min(start + _QUERIES_AT_ONCE, len(queries))))
        [batch] = query_batches(interactions, part, window, _QUERIES_AT_ONCE)
        scores = recommender.scores(recommender.encode_users(batch), items)
        seen = batch.column("seen") if exclude_seen else None
        seen_items = seen.flatten().to_numpy() if seen is not None else np.zeros(0, np.int64)
        seen_offsets = seen.offsets.to_numpy() if seen is not None else np.zeros(len(part) + 1, np.int32)
        ranks.append(
            _ranks(
                np.ascontiguousarray(scores, np.float32),
                _columns(item_ids, part.target_G),
                part.target_offset_Q1,
                _columns(item_ids, seen_items),
                seen_offsets.astype(np.int64),
            )
        )
    query_G = np.repeat(np.arange(len(queries)), np.diff(queries.target_offset_Q1))
    return Ranking(np.concatenate(ranks) if ranks else np.zeros(0), query_G)


def _columns(item_ids: Int64Array, wanted: Int64Array) -> Int64Array:
    """The column of each id; -1 if it is not among the items."""
    at = np.minimum(np.searchsorted(item_ids, wanted), item_ids.shape[0] - 1)
    return np.where(item_ids[at] == wanted, at, -1)


@njit(cache=True, nogil=True)
def _ranks(
    scores_QI: npt.NDArray[np.float32],
    target_G: Int64Array,
    target_offset_Q1: Int64Array,
    seen_S: Int64Array,
    seen_offset_Q1: Int64Array,
) -> Float64Array:
    items = scores_QI.shape[1]
    out = np.empty(target_G.shape[0], np.float64)
    for q in range(scores_QI.shape[0]):
        had = np.zeros(items, np.bool_)
        for s in range(seen_offset_Q1[q], seen_offset_Q1[q + 1]):
            if seen_S[s] >= 0:
                had[seen_S[s]] = True
        for g in range(target_offset_Q1[q], target_offset_Q1[q + 1]):
            target = target_G[g]
            # A target that is not among the items ranks last.
            out[g] = items if target < 0 else rank_in_row(scores_QI[q], target, had)
    return out
