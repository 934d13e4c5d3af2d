"""Full ranking with half-counted ties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from model.metrics import full_ranks, hit_rate, ndcg
from tests.support.equations import check_hit_rate, check_one_test_item_each, check_recall


def test_ties_count_half_and_dropped_items_not_at_all():
    scores = np.array([[3, 1, 2, 1, 1, 9], [0, 0, 0, 0, 0, 0]], np.float32)
    drop = np.zeros((2, 6), np.bool_)
    drop[0, 5] = drop[0, 1] = True
    assert full_ranks(scores, np.array([1, 2]), drop).tolist() == [2 + 1.0, 2.5]


def test_a_score_that_is_not_a_number_is_a_tie_and_no_win():
    scores = np.full((1, 5), np.nan, np.float32)
    assert full_ranks(scores, np.array([0]), np.zeros((1, 5), np.bool_)).tolist() == [2.0]


@settings(deadline=None)
@given(
    arrays.arrays(np.float32, (3, 8), elements=st.integers(-2, 2).map(float)),
    arrays.arrays(np.bool_, (3, 8)),
    st.lists(st.integers(0, 7), min_size=3, max_size=3),
)
def test_a_rank_is_the_mean_place_over_all_orders_of_the_ties(scores, drop, targets):
    ranks = full_ranks(scores, np.array(targets), drop)
    for e, target in enumerate(targets):
        rivals = [scores[e, i] for i in range(8) if i != target and not drop[e, i]]
        best = sum(r > scores[e, target] for r in rivals)
        worst = sum(r >= scores[e, target] for r in rivals)
        assert ranks[e] == (best + worst) / 2


def test_equation_26_hit_rate_is_the_share_of_all_test_items_in_their_users_top_n():
    check_hit_rate()


def test_equation_27_recall_is_the_mean_share_of_a_users_test_items_in_its_top_n_and_no_hit_rate():
    check_recall()


def test_equations_26_and_27_with_one_test_item_per_user_hit_rate_is_recall():
    check_one_test_item_each()


@settings(deadline=None)
@given(st.lists(st.floats(0, 40), min_size=1, max_size=30), st.integers(1, 40))
def test_hit_rate_grows_with_n_and_is_never_below_ndcg(ranks, n):
    rank_E = np.array(ranks)
    assert 0 <= ndcg(rank_E, n) <= hit_rate(rank_E, n) <= hit_rate(rank_E, n + 1) <= 1
    assert ndcg(rank_E, n) <= ndcg(rank_E, n + 1)
    assert hit_rate(rank_E, 41) == 1


def test_hit_rate_and_ndcg_of_known_ranks():
    ranks = np.array([0.0, 2.0, 9.0, 10.0])
    assert hit_rate(ranks, 10) == 0.75
    assert ndcg(ranks, 10) == pytest.approx((1 + 1 / np.log2(4) + 1 / np.log2(11)) / 4)
    assert np.isnan(hit_rate(np.zeros(0), 10))
    assert np.isnan(ndcg(np.zeros(0), 10))
