"""The figures of a cell and its slices."""

from dataclasses import replace

import numpy as np
import pytest

from cluster.evaluation.config import OfflineConfig
from cluster.evaluation.measuring.measures import SLICES, RankedTargets, head_items, ranked_targets
from cluster.evaluation.measuring.ranking import Ranking
from cluster.evaluation.protocol.data import prepare
from model.metrics import ndcg, ndcg_per_query, recall_per_query
from tests.support.data_tables import random_tables, tables_of


def _ranks():
    # Three queries with 2, 1 and 3 targets.
    return RankedTargets(
        rank_G=np.array([0.0, 20.0, 9.5, 3.0, 60.0, 11.0]),
        query_G=np.array([0, 0, 1, 2, 2, 2]),
        user_Q=np.array([7, 8, 9]),
        tail_G=np.array([False, True, True, False, False, True]),
        low_activity_Q=np.array([True, False, False]),
    )


def test_hit_rate_is_over_targets_and_recall_over_users():
    figures = _ranks().figures()
    assert figures["hr@10"] == pytest.approx(3 / 6)
    assert figures["recall@10"] == pytest.approx((1 / 2 + 1 + 1 / 3) / 3)
    assert figures["hr@50"] == pytest.approx(5 / 6)
    assert figures["recall@50"] == pytest.approx((1 + 1 + 2 / 3) / 3)


def test_slices_count_only_their_targets_and_the_users_that_have_some():
    figures = _ranks().figures()
    assert figures["tail_hr@10"] == pytest.approx(1 / 3)
    assert figures["tail_hr@50"] == 1.0
    assert figures["tail_recall@10"] == pytest.approx((0 + 1 + 0) / 3)
    assert figures["low_activity_hr@10"] == pytest.approx(1 / 2)
    metrics = ("hr@10", "hr@50", "recall@10", "recall@50", "ndcg@10")
    assert set(figures) == {
        f"{prefix}{name}" for prefix in ("", *(f"{s}_" for s in SLICES)) for name in metrics
    }


def test_ndcg_divides_by_what_a_perfect_ranking_of_so_many_targets_gets():
    gain = 1 / np.log2(np.arange(2, 5))
    wanted = [gain[0] / gain[:2].sum(), 1 / np.log2(9.5 + 2), (1 / np.log2(5)) / gain.sum()]
    ranks = _ranks()
    assert ndcg_per_query(ranks.rank_G, ranks.query_G, 3, 10) == pytest.approx(wanted)
    assert ranks.figures()["ndcg@10"] == pytest.approx(np.mean(wanted))
    perfect = ndcg_per_query(np.arange(12.0), np.zeros(12, np.int64), 1, 10)
    assert perfect == pytest.approx([1.0])


def test_one_target_per_user_makes_recall_the_hit_rate_and_ndcg_the_simple_one():
    rank = np.array([0.0, 4.5, 30.0, 70.0])
    ranks = RankedTargets(rank, np.arange(4), np.arange(4), np.zeros(4, np.bool_), np.ones(4, np.bool_))
    figures = ranks.figures()
    assert figures["hr@10"] == figures["recall@10"] == 0.5
    assert figures["ndcg@10"] == pytest.approx(ndcg(rank, 10))
    assert np.isnan(figures["tail_hr@10"])


def test_a_query_without_targets_has_no_recall():
    assert np.isnan(recall_per_query(np.array([1.0]), np.array([1]), 2, 10)).tolist() == [True, False]


@pytest.mark.parametrize(
    "metric", ["hr@10", "hr@50", "ndcg@10", "tail_hr@10", "tail_hr@50", "low_activity_hr@10"]
)
def test_shares_of_users_add_up_to_the_figure(metric):
    numerator, denominator = _ranks().per_user(metric)
    assert numerator.shape == denominator.shape == (3,)
    assert numerator.sum() / denominator.sum() == pytest.approx(_ranks().figures()[metric])


def test_the_queries_of_a_user_stay_together():
    ranks = replace(_ranks(), user_Q=np.array([7, 5, 7]))
    alone, together = _ranks().per_user("hr@10"), ranks.per_user("hr@10")
    for by_query, by_user in zip(alone, together, strict=True):
        assert by_user.tolist() == [by_query[1], by_query[0] + by_query[2]]


def test_tail_is_what_the_fifth_of_items_trained_most_leaves_by_training_events_only():
    # Item 1 is trained on most, item 2 only appears in the tests.
    events = [(u, item, t) for u in range(1, 6) for t, item in enumerate([1, 1, 3 + u % 2, 9, 2])]
    data = prepare(tables_of(events), OfflineConfig())
    assert data.item_ids.tolist() == [1, 2, 3, 4, 9]
    assert head_items(data).tolist() == [1]
    ranking = Ranking(np.zeros(5), np.arange(5))
    assert ranked_targets(data, ranking).tail_G.all()


def test_low_activity_is_at_most_the_median_of_training_events_of_the_tested():
    events = [(u, 10 * u + k, k) for u, count in ((1, 4), (2, 5), (3, 9), (4, 2)) for k in range(count)]
    data = prepare(tables_of(events), OfflineConfig())
    found = ranked_targets(data, Ranking(np.zeros(3), np.arange(3)))
    assert dict(zip(found.user_Q.tolist(), found.low_activity_Q.tolist(), strict=True)) == {
        1: True,
        2: True,
        3: False,
    }


def test_slices_of_a_drawn_set_are_those_of_a_loop():
    data = prepare(random_tables(events=500), OfflineConfig())
    counts = dict.fromkeys(data.item_ids.tolist(), 0)
    for u, trained in enumerate(data.split.train_U):
        start = data.interactions.offset_U1[u]
        for item in data.interactions.item_T[start : start + trained].tolist():
            counts[item] += 1
    wanted = sorted(counts, key=lambda item: (-counts[item], item))[: len(counts) // 5]
    assert head_items(data).tolist() == wanted
