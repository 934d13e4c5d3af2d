"""Which rank owns a row: a hash picks one of 4096 virtual buckets, a rank owns a range of buckets.

A checkpoint stores rows by bucket range, so it does not depend on the number of ranks.

A key with a negative table belongs to a bucket instead of an id: see `shared_keys`.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from model.features import ITEM, SOURCE, USER
from model.key_index import hash_keys
from streaming.arrays import BoolArray, Int16Array, Int64Array

BUCKET_BITS = 12
BUCKETS = 1 << BUCKET_BITS
ENDLESS = (ITEM, USER, SOURCE)
"""Tables with an unbounded number of ids; only these are subject to admission, expiry and eviction."""


def buckets_of(tables: Int16Array, ids: Int64Array) -> Int64Array:
    """The virtual bucket of each key, int64 (K,) in [0, 4096): its hash's top bits (the map uses the low ones)."""
    hashed = (hash_keys(tables, ids) >> np.uint64(64 - BUCKET_BITS)).astype(np.int64)
    return np.where(tables < 0, ids, hashed) if (tables < 0).any() else hashed


def shared_keys(tables: Int16Array, ids: Int64Array) -> tuple[Int16Array, Int64Array]:
    """The key of the row that a bucket's ids of one table share until they have their own; in the same bucket."""
    return ~tables, buckets_of(tables, ids)


def are_endless(tables: Int16Array) -> BoolArray:
    """Whether each key is of one of the `ENDLESS` tables, or a row that its ids share, bool (K,)."""
    return np.isin(np.where(tables < 0, ~tables, tables), ENDLESS)


def in_range(tables: Int16Array, ids: Int64Array, buckets: tuple[int, int]) -> BoolArray:
    """Whether the bucket of each key is in a half-open range, bool (K,)."""
    bucket_K = buckets_of(tables, ids)
    return (bucket_K >= buckets[0]) & (bucket_K < buckets[1])


def owners_of(buckets: Int64Array, world: int) -> Int64Array:
    """The rank that owns each bucket, int64 (K,)."""
    return (buckets * world) >> BUCKET_BITS


def bucket_range(rank: int, world: int) -> tuple[int, int]:
    """The half-open range of buckets that a rank owns, the inverse of `owners_of`."""
    return -(-rank * BUCKETS // world), -(-(rank + 1) * BUCKETS // world)


def sort_by_owner(tables: Int16Array, ids: Int64Array, world: int) -> tuple[Int64Array, Int64Array]:
    """The stable order that groups keys by owner, int64 (K,), and the number of keys that each rank owns."""
    if world == 1:
        return np.arange(ids.shape[0]), np.array([ids.shape[0]])
    return _counting_sort(owners_of(buckets_of(tables, ids), world), world)


@njit(cache=True, nogil=True)
def _counting_sort(owners: Int64Array, world: int) -> tuple[Int64Array, Int64Array]:
    counts = np.zeros(world, np.int64)
    for k in range(owners.shape[0]):
        counts[owners[k]] += 1
    at = np.zeros(world, np.int64)
    for rank in range(1, world):
        at[rank] = at[rank - 1] + counts[rank - 1]
    order = np.empty(owners.shape[0], np.int64)
    for k in range(owners.shape[0]):
        order[at[owners[k]]] = k
        at[owners[k]] += 1
    return order, counts
