"""Ranking metrics with full ranking and ties counted half.

Shape letters: E events, I items.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@njit(cache=True, nogil=True)
def _ranks(scores_EI: Float32Array, target_E: Int64Array, drop_EI: BoolArray) -> Float64Array:
    out = np.empty(scores_EI.shape[0], np.float64)
    for e in range(scores_EI.shape[0]):
        own = scores_EI[e, target_E[e]]
        above, equal = 0, 0
        for i in range(scores_EI.shape[1]):
            if drop_EI[e, i] or i == target_E[e]:
                continue
            if scores_EI[e, i] > own:
                above += 1
            # Not "==": a score that is not a number counts as a tie, never as a win.
            elif not scores_EI[e, i] < own:
                equal += 1
        out[e] = above + 0.5 * equal
    return out


def full_ranks(scores_EI: Float32Array, target_E: Int64Array, drop_EI: BoolArray) -> Float64Array:
    """The target's place among all items, float64 (E,): items above it plus half of its ties; 0 is the best.

    Args:
        scores_EI: float32.
        target_E: int64, column of each event's item; counted even if `drop_EI` marks it.
        drop_EI: bool, items that are not ranked (the user has had them).
    """
    return _ranks(np.ascontiguousarray(scores_EI), target_E, drop_EI)


def hit_rate(rank_E: Float64Array, n: int) -> float:
    """HR@N = |{e : rank_e < N}| / E (Eq. 26 with one item per event); nan without events."""
    return float((rank_E < n).mean()) if rank_E.size else float("nan")


def ndcg(rank_E: Float64Array, n: int) -> float:
    """NDCG@N = 1/E Σ_e 1[rank_e < N] / log2(rank_e + 2), one relevant item per event; nan without events."""
    if not rank_E.size:
        return float("nan")
    return float(np.where(rank_E < n, 1.0 / np.log2(rank_E + 2.0), 0.0).mean())
