"""The surplus keys are those that sorting all keys in one place would select."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.collectives import Collectives
from cluster.tables.surplus import as_orders, lowest

ROWS = st.lists(st.tuples(st.integers(-5, 3), st.sampled_from([0.0, 0.2, 1.0, 1e9])), min_size=1, max_size=40)


@settings(max_examples=150, deadline=None)
@given(ROWS, st.integers(1, 60), st.sampled_from(["recency", "frequency"]), st.sampled_from([1, 10**11]))
def test_the_lowest_are_those_that_a_sort_puts_first(rows, count, by, scale):
    time, frequency = np.array([t for t, _ in rows]) * scale, np.array([f for _, f in rows])
    orders = as_orders(np.zeros(len(rows), np.int16), np.arange(len(rows)), frequency, time, by)
    first, second = (time, frequency) if by == "recency" else (frequency, time)
    expected = np.lexsort((orders[2], second, first))[:count]
    assert np.flatnonzero(lowest(Collectives(), orders, count)).tolist() == sorted(expected.tolist())
