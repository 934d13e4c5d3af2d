"""Ranges of buckets are the inverse of their owners, for any number of ranks."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cluster.tables.buckets import BUCKETS, bucket_range, buckets_of, owners_of


@given(world=st.integers(1, BUCKETS))
def test_a_rank_owns_exactly_the_buckets_of_its_range(world):
    owners = owners_of(np.arange(BUCKETS), world)
    ranges = [bucket_range(rank, world) for rank in range(world)]
    expected = np.concatenate([np.full(high - low, rank) for rank, (low, high) in enumerate(ranges)])
    np.testing.assert_array_equal(owners, expected)
    sizes = [high - low for low, high in ranges]
    assert max(sizes) - min(sizes) <= 1


@given(
    ids=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=50), table=st.integers(0, 2**15 - 1)
)
def test_a_bucket_is_a_function_of_the_key_and_within_bounds(ids, table):
    keys, tables = np.array(ids, np.int64), np.full(len(ids), table, np.int16)
    buckets = buckets_of(tables, keys)
    assert ((buckets >= 0) & (buckets < BUCKETS)).all()
    np.testing.assert_array_equal(buckets, buckets_of(tables[::-1], keys[::-1])[::-1])


def test_keys_that_count_upwards_spread_evenly_over_the_buckets():
    counts = np.bincount(buckets_of(np.zeros(400_000, np.int16), np.arange(400_000)), minlength=BUCKETS)
    # A Poisson of mean 97.7: six standard deviations.
    assert np.abs(counts - 400_000 / BUCKETS).max() < 6 * np.sqrt(400_000 / BUCKETS)
