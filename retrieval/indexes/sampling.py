"""Samples the items that k-means is trained on by a hash of their ids, so any number of ranks gives the same sample.

Shape letters: N items.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from retrieval.arrays import Int64Array


def in_sample(item_ids: Int64Array, wanted: int, total: int, seed: int) -> npt.NDArray[np.bool_]:
    """Whether each item is in a sample of about `wanted`, bool (N,); all are, if there are no more than that.

    Args:
        item_ids: int64, of one rank.
        wanted: size of the whole sample.
        total: items of all ranks.
        seed: selects the sample.
    """
    if wanted >= total:
        return np.ones(item_ids.shape[0], np.bool_)
    chosen: npt.NDArray[np.bool_] = _hashed(item_ids, seed) < np.uint64(wanted / total * 2**64)
    return chosen


def _hashed(item_ids: Int64Array, seed: int) -> npt.NDArray[np.uint64]:
    """SplitMix64 of the ids, uint64 (N,)."""
    x = item_ids.astype(np.uint64) + np.uint64((seed * 0x9E3779B97F4A7C15) % 2**64)
    x += np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
