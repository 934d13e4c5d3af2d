"""Counts of pairs: the lists of all and of changed pairs equal a recount of the events."""

from collections import Counter

import numpy as np
import pytest

from model.baselines.pair_table import Pairs, PairTable


def _counted(table, target_E, recent_ER):
    """Counts the events in a table and by hand."""
    table.reserve(int(max(target_E.max(), recent_ER.max())) + 1)
    table.count(target_E, recent_ER)
    together = Counter()
    for target, recent in zip(target_E.tolist(), recent_ER.tolist(), strict=True):
        together.update((min(target, r), max(target, r)) for r in recent if r not in (-1, target))
    return together


def _as_dict(pairs):
    keys = list(zip(pairs.low_P.tolist(), pairs.high_P.tolist(), strict=True))
    assert len(set(keys)) == len(keys)
    return dict(zip(keys, pairs.count_P.tolist(), strict=True))


def _events(seed, items=30, count=40):
    rng = np.random.default_rng(seed)
    return rng.integers(0, items, count), rng.integers(-1, items, (count, 5))


@pytest.mark.parametrize("events", [40, 3000], ids=["tables", "plain rows too"])
def test_every_pair_is_known_once_with_its_count_and_changes_are_those_since_the_last_call(events):
    table, everything = PairTable(), Counter()
    for seed in range(4):
        now = _counted(table, *_events(seed, items=100 + 200 * seed, count=events))
        assert table.tables.plain_I.any() == (events == 3000)
        everything += now
        assert _as_dict(table.take_changes()) == {pair: everything[pair] for pair in now}
        assert _as_dict(table.pairs()) == everything
        assert len(table) == len(everything)
    assert table.take_changes().count_P.shape == (0,)


@pytest.mark.parametrize("most", [1, 9, 10_000])
def test_slices_put_together_are_all_pairs(most):
    table = PairTable()
    _counted(table, *_events(7))
    parts = list(table.slices(most))
    together = {pair: count for part in parts for pair, count in _as_dict(part).items()}
    assert together == _as_dict(table.pairs())
    assert sum(part.count_P.shape[0] for part in parts) == len(table)
    assert len(parts) > 1 or most == 10_000


def test_slices_and_the_changes_since_their_beginning_are_the_counts_at_the_end():
    table = PairTable()
    _counted(table, *_events(7))
    table.take_changes()
    found = {}
    for seed, part in enumerate(table.slices(20)):
        found |= _as_dict(part)
        _counted(table, *_events(100 + seed, items=30 + 40 * seed, count=5))
    assert seed > 3
    assert found | _as_dict(table.take_changes()) == _as_dict(table.pairs())


def test_a_table_that_is_cleared_is_empty_and_its_slices_end():
    table = PairTable()
    _counted(table, *_events(7))
    slices = table.slices(1)
    next(slices)
    table.clear()
    assert list(slices) == []
    assert (len(table), table.nbytes) == (0, 0)
    assert table.take_changes().count_P.shape == (0,)
    assert _as_dict(table.pairs()) == {}
    assert _counted(table, *_events(8)) == _as_dict(table.pairs())


def test_memory_grows_with_the_pairs_that_came():
    table = PairTable()
    rng = np.random.default_rng(0)
    items = 20_000
    popular = np.minimum((items * rng.random((20_000, 6)) ** 4).astype(np.int64), items - 1)
    table.reserve(items)
    table.count(popular[:, 0].copy(), popular[:, 1:])
    table.take_changes()
    assert 50_000 < len(table) <= 100_000
    assert table.nbytes < 60 * len(table)


def test_pairs_that_are_put_are_known_with_totals_and_are_no_changes():
    table, copy = PairTable(), PairTable()
    _counted(table, *_events(8))
    copy.put(Pairs(np.array([1], np.int32), np.array([2], np.int32), np.array([99], np.int32)))
    copy.put(table.pairs())
    known = dict(_as_dict(table.pairs()))
    assert _as_dict(copy.pairs()) == {(1, 2): 99} | known
    assert copy.take_changes().count_P.shape == (0,)
    total = np.zeros(30, np.int64)
    for (low, high), n in _as_dict(copy.pairs()).items():
        total[[low, high]] += n
    np.testing.assert_array_equal(copy.total_I[:30], total)


def test_a_change_that_was_not_taken_yet_stays_one_when_pairs_are_put():
    table = PairTable()
    _counted(table, np.array([3]), np.array([[5]]))
    table.put(Pairs(np.array([3], np.int32), np.array([5], np.int32), np.array([7], np.int32)))
    assert _as_dict(table.take_changes()) == {(3, 5): 7}


def test_totals_are_the_sums_of_the_counts_through_tables_plain_rows_and_what_is_put():
    table, copy = PairTable(), PairTable()
    for seed in range(3):
        _counted(table, *_events(seed, items=90 + 200 * seed, count=2000))
        copy.put(table.take_changes())
    assert _as_dict(copy.pairs()) == _as_dict(table.pairs())
    total = np.zeros(table.total_I.shape, np.int64)
    for (low, high), n in _as_dict(table.pairs()).items():
        total[[low, high]] += n
    for one in (table, copy):
        np.testing.assert_array_equal(one.total_I[: total.shape[0]], total)
        assert (one.tables.used_I.sum()) == 2 * len(one)
