"""Metrics of a full ranking, with ties counted half.

Shape letters: E events, I items, Q queries, G targets of all queries; query q has the targets G with `query_G == q`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from model.arrays import BoolArray, Float32Array, Float64Array, Int64Array


@njit(cache=True, nogil=True)
def rank_in_row(scores_I: Float32Array, target: int, drop_I: BoolArray) -> float:
    """The target's rank among items that are not dropped: items above it plus half of its ties; 0 is best."""
    own = scores_I[target]
    above, equal = 0, 0
    for i in range(scores_I.shape[0]):
        if drop_I[i] or i == target:
            continue
        if scores_I[i] > own:
            above += 1
        # Not "==", so that NaN counts as a tie and never as a win.
        elif not scores_I[i] < own:
            equal += 1
    return above + 0.5 * equal


@njit(cache=True, nogil=True)
def _ranks(scores_EI: Float32Array, target_E: Int64Array, drop_EI: BoolArray) -> Float64Array:
    out = np.empty(scores_EI.shape[0], np.float64)
    for e in range(scores_EI.shape[0]):
        out[e] = rank_in_row(scores_EI[e], target_E[e], drop_EI[e])
    return out


def full_ranks(scores_EI: Float32Array, target_E: Int64Array, drop_EI: BoolArray) -> Float64Array:
    """The target's rank among all items, float64 (E,): items above it plus half of its ties; 0 is best.

    Args:
        scores_EI: float32.
        target_E: int64, column of each event's item; counted even if `drop_EI` marks it.
        drop_EI: bool, items that are not ranked (the user has had them).
    """
    return _ranks(np.ascontiguousarray(scores_EI), target_E, drop_EI)


def hit_rate(rank_E: Float64Array, n: int) -> float:
    """HR@N = Σ_u |Top-N(u) ∩ T_u| / Σ_u |T_u| (Eq. 26): the share of all targets ranked above N; nan without any."""
    return float((rank_E < n).mean()) if rank_E.size else float("nan")


def ndcg(rank_E: Float64Array, n: int) -> float:
    """NDCG@N = 1/E Σ_e 1[rank_e < N] / log2(rank_e + 2), one relevant item per event; nan without events."""
    if not rank_E.size:
        return float("nan")
    return float(np.where(rank_E < n, 1.0 / np.log2(rank_E + 2.0), 0.0).mean())


def hits_per_query(rank_G: Float64Array, query_G: Int64Array, queries: int, n: int) -> Float64Array:
    """|Top-N(u) ∩ T_u| of every query, float64 (Q,).

    Args:
        rank_G: float64, 0 is the best.
        query_G: int64, the query of each target.
        queries: Q.
        n: N.
    """
    return _summed(query_G, rank_G < n, queries)


def recall_per_query(rank_G: Float64Array, query_G: Int64Array, queries: int, n: int) -> Float64Array:
    """|Top-N(u) ∩ T_u| / |T_u| of every query, float64 (Q,), whose mean is Recall@N (Eq. 27); nan without targets."""
    targets_Q = np.bincount(query_G, minlength=queries)
    return _divided(hits_per_query(rank_G, query_G, queries, n), targets_Q.astype(np.float64))


def ndcg_per_query(rank_G: Float64Array, query_G: Int64Array, queries: int, n: int) -> Float64Array:
    """DCG / ideal DCG of every query, float64 (Q,), whose mean is NDCG@N; nan without targets.

    DCG = Σ_{t∈T_u, rank_t < N} 1 / log2(rank_t + 2)         (Järvelin and Kekäläinen 2002, binary gains)
    ideal DCG = Σ_{k < min(|T_u|, N)} 1 / log2(k + 2)        what a perfect ranking gets
    """
    gain_G = np.where(rank_G < n, 1.0 / np.log2(rank_G + 2.0), 0.0)
    ideal_N1 = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(n) + 2.0))])
    targets_Q = np.bincount(query_G, minlength=queries)
    return _divided(_summed(query_G, gain_G, queries), ideal_N1[np.minimum(targets_Q, n)])


def _summed(query_G: Int64Array, value_G: npt.NDArray[Any], queries: int) -> Float64Array:
    sums: Float64Array = np.bincount(query_G, value_G.astype(np.float64), minlength=queries).astype(
        np.float64
    )
    return sums


def _divided(numerator_Q: Float64Array, denominator_Q: Float64Array) -> Float64Array:
    with np.errstate(invalid="ignore"):
        quotient: Float64Array = numerator_Q / denominator_Q
    return quotient
