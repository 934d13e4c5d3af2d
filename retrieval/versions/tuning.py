"""Chooses nprobe: the fewest lists that reach the wanted recall on recent queries.

Shape letters: Q queries, K results, L lists, D columns.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from retrieval.arrays import Float32Array, Int64Array
from retrieval.config import IndexConfig
from retrieval.indexes.exact import recall_at_k

_SLICE_BYTES = 32 << 20


class Tuned(Protocol):
    """The interface of an index, whole or sharded; row numbers and lists are as in `IvfIndex`."""

    @property
    def nlist(self) -> int:
        """L."""

    def centroids(self) -> Float32Array:
        """Centroids float32 (L, D)."""

    def lists_of(self, rows: Int64Array) -> Int64Array:
        """The list of each row."""

    def search(self, query_QD: Float32Array, k: int, nprobe: int) -> tuple[Int64Array, Any]:
        """Row numbers int64 (Q, K), and their scores."""


def choose_nprobe(
    index: Tuned, query_QD: Float32Array, wanted_QK: Int64Array, config: IndexConfig
) -> tuple[int, float]:
    """nprobe and its recall@k.

    A search finds a wanted item only if it probes that item's list, so the lists' ranks give an upper bound of every
    nprobe's recall without a search. Usually the first nprobe that the bound allows is the answer, and one search
    confirms it; rounding in the lists may require a few more.

    Args:
        index: as it was built, because an index read from a file does not know its items' lists.
        query_QD: float32, recent queries, at least one.
        wanted_QK: int64, exact results as row numbers, -1 padded.
        config: `nprobe` fixes it; otherwise at most `max_probe_fraction` of the lists, and that many if they do not
            reach `recall_target`.
    """

    def recall(nprobe: int) -> float:
        return recall_at_k(index.search(query_QD, wanted_QK.shape[1], nprobe)[0], wanted_QK)

    if config.nprobe:
        fixed = min(config.nprobe, index.nlist)
        return fixed, recall(fixed)
    most = max(1, int(index.nlist * config.max_probe_fraction))
    bound = _recall_bounds(index, query_QD, wanted_QK)
    low = _first(bound, config.recall_target, most)
    reached = recall(low)
    if reached >= config.recall_target or low == most:
        return low, reached
    # Lists that round vectors lose about the same recall at every nprobe, so the bound minus that loss is accurate.
    high, best = low, reached
    while best < config.recall_target and high < most:
        low, loss = high + 1, float(bound[high - 1]) - best
        high = max(low, _first(bound, config.recall_target + loss, most))
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


def _first(bound_L: npt.NDArray[np.float64], target: float, most: int) -> int:
    """The fewest lists whose bound reaches the target, `most` if none does."""
    return min(most, int(np.searchsorted(bound_L, target)) + 1)


def _recall_bounds(index: Tuned, query_QD: Float32Array, wanted_QK: Int64Array) -> npt.NDArray[np.float64]:
    """float64 (L,), ascending: the share of wanted results in the 1, 2, … L lists nearest to their query."""
    centroid_LD, list_QK = index.centroids(), index.lists_of(wanted_QK)
    lists = index.nlist
    found_L = np.zeros(lists, np.int64)
    step = max(1, _SLICE_BYTES // (lists * (4 + wanted_QK.shape[1])))
    for start in range(0, query_QD.shape[0], step):
        some = slice(start, start + step)
        score_QL = query_QD[some] @ centroid_LD.T
        score_QK = np.take_along_axis(score_QL, list_QK[some], axis=1)
        rank_QK = (score_QL[:, None, :] > score_QK[:, :, None]).sum(axis=2)
        found_L += np.bincount(rank_QK[wanted_QK[some] >= 0], minlength=lists)
    bound_L: npt.NDArray[np.float64] = found_L.cumsum() / max(1, int(found_L.sum()))
    return bound_L
