"""Chooses the keys to remove when all ranks together exceed a limit: the lowest, on any rank.

Shape letters: N keys of this rank, O orders.

The limit applies to the whole table. The ranks search for the threshold together, 12 bits per round, by summing
histograms. So the choice does not depend on the number of ranks, and uneven shares waste no part of the limit, unlike a
limit per bucket.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cluster.collectives import Collectives
from model.key_index import hash_keys
from streaming.arrays import BoolArray, Int16Array, Int64Array, UInt64Array

_DIGIT_BITS = 12
_SHIFTS = (52, 40, 28, 16, 4, 0)
_PARTS_OF_ONE = 1024.0
"""Frequencies are sums whose last bits depend on the number of ranks, so they are compared in steps of 1/1024."""


def as_orders(
    tables: Int16Array,
    ids: Int64Array,
    frequency_N: npt.NDArray[np.float64],
    last_seen_ms_N: Int64Array,
    by: str,
) -> list[UInt64Array]:
    """The values to compare, most significant first. The last is a hash of the key, which has no ties."""
    frequency = np.rint(frequency_N * _PARTS_OF_ONE).astype(np.uint64)
    recency = last_seen_ms_N.astype(np.uint64) ^ np.uint64(1 << 63)
    pair = [recency, frequency] if by == "recency" else [frequency, recency]
    return [*pair, hash_keys(tables, ids)]


def lowest(comm: Collectives, orders: Sequence[UInt64Array], count: int) -> BoolArray:
    """Collective. bool (N,): whether each of this rank's keys is among the `count` lowest of all ranks."""
    chosen = np.zeros(orders[0].shape[0], np.bool_)
    undecided = np.arange(orders[0].shape[0])
    for order in orders:
        for shift in _SHIFTS:
            bits = _DIGIT_BITS if shift else 4
            digits = ((order[undecided] >> np.uint64(shift)) & np.uint64((1 << bits) - 1)).astype(np.int64)
            histogram = np.bincount(digits, minlength=1 << bits).astype(np.float64)
            total = np.cumsum(comm.exchange(histogram).sum(axis=0))
            border = int(np.searchsorted(total, count, side="left"))
            if border == total.shape[0]:  # fewer than `count` are left
                chosen[undecided] = True
                return chosen
            chosen[undecided[digits < border]] = True
            count -= int(total[border - 1]) if border else 0
            undecided = undecided[digits == border]
            if count == total[border] - (total[border - 1] if border else 0):
                chosen[undecided] = True
                return chosen
    chosen[undecided] = count > 0
    return chosen
