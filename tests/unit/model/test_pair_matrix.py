"""Counts of pairs: what is in the list of all and of the changed ones is what a recount of the events gives."""

from collections import Counter

import numpy as np

from model.baselines.pair_matrix import PairMatrix, Pairs


def _counted(matrix, target_E, recent_ER):
    """Counts the events in a matrix and by hand."""
    matrix.reserve(int(max(target_E.max(), recent_ER.max())) + 1)
    matrix.count(target_E, recent_ER)
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


def test_every_pair_is_known_once_with_its_count_and_changes_are_those_since_the_last_call():
    matrix, everything = PairMatrix(), Counter()
    for seed in range(4):
        now = _counted(matrix, *_events(seed, items=30 + 200 * seed))
        everything += now
        assert _as_dict(matrix.take_changes()) == {pair: everything[pair] for pair in now}
        assert _as_dict(matrix.pairs()) == everything
        assert len(matrix) == len(everything)
    assert matrix.take_changes().count_P.shape == (0,)


def test_slices_put_together_are_all_pairs_in_the_order_in_which_they_came():
    matrix = PairMatrix()
    _counted(matrix, *_events(7))
    whole, parts = matrix.pairs(), [matrix.pairs(start, start + 9) for start in range(0, len(matrix), 9)]
    for name in ("low_P", "high_P", "count_P"):
        np.testing.assert_array_equal(np.concatenate([getattr(p, name) for p in parts]), getattr(whole, name))


def test_pairs_that_are_put_are_known_with_totals_and_are_no_changes():
    matrix, copy = PairMatrix(), PairMatrix()
    _counted(matrix, *_events(8))
    copy.put(Pairs(np.array([1], np.int32), np.array([2], np.int32), np.array([99], np.int32)))
    copy.put(matrix.pairs())
    known = dict(_as_dict(matrix.pairs()))
    assert _as_dict(copy.pairs()) == {(1, 2): 99} | known
    assert copy.take_changes().count_P.shape == (0,)
    total = np.zeros(30, np.int64)
    for (low, high), n in _as_dict(copy.pairs()).items():
        total[[low, high]] += n
    np.testing.assert_array_equal(copy.total_I[:30], total)


def test_a_change_that_was_not_taken_yet_stays_one_when_pairs_are_put():
    matrix = PairMatrix()
    _counted(matrix, np.array([3]), np.array([[5]]))
    matrix.put(Pairs(np.array([3], np.int32), np.array([5], np.int32), np.array([7], np.int32)))
    assert _as_dict(matrix.take_changes()) == {(3, 5): 7}
