"""The paired tests against known values and against their plain definitions."""

import math

import numpy as np
import pytest
from scipy import stats

from cluster.evaluation.measuring.significance import (
    PerQuery,
    bootstrap_figures,
    compare,
    paired_t_test,
    two_sided_p,
)


@pytest.mark.parametrize(
    ("t", "degrees", "p"),
    [
        (12.706204736, 1, 0.05),
        (2.570581836, 5, 0.05),
        (2.228138852, 10, 0.05),
        (3.169272673, 10, 0.01),
        (2.042272456, 30, 0.05),
        (3.290526731, 10**7, 0.001),
        (1.0, 1, 0.5),
        (0.0, 7, 1.0),
    ],
)
def test_p_values_are_those_of_the_tables(t, degrees, p):
    assert two_sided_p(t, degrees) == pytest.approx(p, rel=1e-5)
    assert two_sided_p(-t, degrees) == two_sided_p(t, degrees)


def test_the_t_test_is_scipys():
    rng = np.random.default_rng(0)
    for size in (2, 5, 40, 5000):
        a, b = rng.normal(0.1, 1, size), rng.normal(0, 1, size)
        wanted = stats.ttest_rel(a, b)
        assert paired_t_test(a - b) == pytest.approx((wanted.statistic, wanted.pvalue), rel=1e-9)


def test_differences_that_do_not_vary_are_no_difference_or_a_certain_one():
    assert paired_t_test(np.zeros(10)) == (0.0, 1.0)
    assert paired_t_test(np.full(10, 0.5)) == (math.inf, 0.0)
    assert all(math.isnan(value) for value in paired_t_test(np.array([0.3])))


def _hits(*rates, queries=2000, seed=0):
    rng = np.random.default_rng(seed)
    return PerQuery(
        np.stack([(rng.random(queries) < rate).astype(np.float64) for rate in rates], axis=1),
        np.ones(queries),
    )


def test_the_bootstrap_draws_queries_with_replacement_the_same_for_all_systems():
    metric = _hits(0.2, 0.2, queries=50)
    metric.numerator_QK[:, 1] = metric.numerator_QK[:, 0]
    [figures] = bootstrap_figures([metric], resamples=3000, seed=1)
    assert figures.shape == (3000, 2)
    assert (figures[:, 0] == figures[:, 1]).all()
    mean = metric.numerator_QK[:, 0].mean()
    assert figures[:, 0].mean() == pytest.approx(mean, abs=0.005)
    assert figures[:, 0].std() == pytest.approx(np.sqrt(mean * (1 - mean) / 50), rel=0.05)
    assert np.unique(np.round(figures * 50, 6) % 1).tolist() == [0.0]


def test_interval_and_gain_are_those_of_the_normal_approximation():
    metric = _hits(0.3, 0.25)
    [found] = compare({"hr@10": metric}, resamples=4000)["hr@10"]
    difference = metric.numerator_QK[:, 0] - metric.numerator_QK[:, 1]
    half = 1.96 * difference.std(ddof=1) / np.sqrt(2000)
    assert found.difference == pytest.approx(difference.mean())
    assert (found.low, found.high) == pytest.approx(
        (difference.mean() - half, difference.mean() + half), abs=0.002
    )
    other = metric.numerator_QK[:, 1].mean()
    assert found.gain == pytest.approx(difference.mean() / other)
    assert found.gain_low < found.gain < found.gain_high
    assert (found.t, found.p) == pytest.approx(paired_t_test(difference))


def test_a_resample_weighs_users_by_their_targets():
    # One user with 9 targets, all hit by the first system, and one with a single target that it misses.
    metric = PerQuery(np.array([[9.0, 0.0], [0.0, 1.0]]), np.array([9.0, 1.0]))
    [figures] = bootstrap_figures([metric], resamples=500, seed=0)
    assert sorted(np.unique(figures[:, 0]).round(6).tolist()) == [0.0, 0.9, 1.0]
    [found] = compare({"hr@10": metric}, resamples=500)["hr@10"]
    assert found.difference == pytest.approx(0.8)


def test_metrics_of_one_call_share_their_resamples_and_a_seed_gives_the_same_again():
    metric = _hits(0.3, 0.2, queries=300)
    found = compare({"a": metric, "b": metric}, resamples=200, seed=3)
    assert found["a"] == found["b"] == compare({"c": metric}, resamples=200, seed=3)["c"]
    assert found["a"] != compare({"c": metric}, resamples=200, seed=4)["c"]


def test_queries_that_a_metric_does_not_count_neither_add_to_it_nor_make_it_surer():
    metric = _hits(0.4, 0.3, queries=200)
    padded = PerQuery(
        np.concatenate([metric.numerator_QK, np.zeros((1000, 2))]),
        np.concatenate([metric.denominator_Q, np.zeros(1000)]),
    )
    [found], [alone] = (compare({"hr@10": m}, resamples=2000)["hr@10"] for m in (padded, metric))
    assert (found.difference, found.t, found.p) == pytest.approx((alone.difference, alone.t, alone.p))
    assert found.high - found.low == pytest.approx(alone.high - alone.low, rel=0.1)


def test_a_metric_that_no_query_counts_is_not_a_number():
    [found] = compare({"hr@10": PerQuery(np.zeros((5, 2)), np.zeros(5))}, resamples=20)["hr@10"]
    assert all(math.isnan(value) for value in vars(found).values())


def test_a_gain_over_nothing_is_not_a_number():
    metric = _hits(0.3, 0.0, queries=100)
    [found] = compare({"hr@10": metric}, resamples=50)["hr@10"]
    assert math.isnan(found.gain)
    assert math.isnan(found.gain_low)
    assert found.difference > 0
