"""Which rank owns a row: a hash picks one of 4096 virtual buckets, a rank owns a range of buckets.

A checkpoint stores rows by bucket range, so it does not depend on the number of ranks.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from model.key_index import hash_keys

BUCKET_BITS = 12
BUCKETS = 1 << BUCKET_BITS


def buckets_of(tables: npt.NDArray[np.int16], ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The virtual bucket of each key, int64 (K,) in [0, 4096): its hash's top bits (the map uses the low)."""
    return (hash_keys(tables, ids) >> np.uint64(64 - BUCKET_BITS)).astype(np.int64)


def owners_of(buckets: npt.NDArray[np.int64], world: int) -> npt.NDArray[np.int64]:
    """The rank that owns each bucket, int64 (K,)."""
    return (buckets * world) >> BUCKET_BITS


def bucket_range(rank: int, world: int) -> tuple[int, int]:
    """The half-open range of buckets that a rank owns, the inverse of `owners_of`."""
    return -(-rank * BUCKETS // world), -(-(rank + 1) * BUCKETS // world)
