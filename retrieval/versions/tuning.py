"""Chooses nprobe: the fewest lists that reach the wanted recall on recent queries.

Shape letters: Q queries, K results, D columns.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from retrieval.config import IndexConfig
from retrieval.indexes.exact import recall_at_k
from retrieval.indexes.ivf import IvfIndex


def choose_nprobe(
    index: IvfIndex, query_QD: npt.NDArray[np.float32], wanted_QK: npt.NDArray[np.int64], config: IndexConfig
) -> tuple[int, float]:
    """nprobe and its recall@k. Recall grows with nprobe, so the fewest lists are found by bisection.

    Args:
        index: to be searched.
        query_QD: float32, recent queries, at least one.
        wanted_QK: int64, exact results as row numbers.
        config: `nprobe` fixes it; else at most `max_probe_fraction` of the lists, and that many if even they do not
            reach `recall_target`.
    """

    def recall(nprobe: int) -> float:
        return recall_at_k(index.search(query_QD, wanted_QK.shape[1], nprobe)[0], wanted_QK)

    if config.nprobe:
        fixed = min(config.nprobe, index.nlist)
        return fixed, recall(fixed)
    low, high = 1, max(1, int(index.nlist * config.max_probe_fraction))
    best = recall(high)
    if best < config.recall_target:
        return high, best
    while low < high:
        middle = (low + high) // 2
        reached = recall(middle)
        if reached >= config.recall_target:
            high, best = middle, reached
        else:
            low = middle + 1
    return high, best
