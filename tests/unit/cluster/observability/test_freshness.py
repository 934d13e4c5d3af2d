"""Percentiles in constant memory, and which append times are remembered until the next version."""

import numpy as np
import pytest

from cluster.observability.freshness import Freshness, FreshnessHistogram, UnpublishedAppends


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.99, 1.0])
def test_a_percentile_is_within_twelve_and_a_half_percent_of_the_exact_one(seed, share):
    rng = np.random.default_rng(seed)
    ages = np.exp(rng.normal(rng.uniform(-3, 6), rng.uniform(0.1, 2), 5000)).clip(2e-3, 9e5)
    histogram = FreshnessHistogram()
    histogram.add(ages)
    exact = np.percentile(ages, 100 * share, method="inverted_cdf")
    # Bins are 10^(1/20) wide and the answer is a bin's upper border: never below the exact age.
    assert exact * (1 - 1e-9) <= histogram.percentile_s(share) <= exact * 10 ** (1 / 20) * (1 + 1e-9)


def test_a_histogram_of_nothing_has_no_percentile():
    assert FreshnessHistogram().percentile_s(0.5) is None


def test_memory_does_not_grow_and_histograms_merge_by_adding():
    first, second, both = FreshnessHistogram(), FreshnessHistogram(), FreshnessHistogram()
    size = first.counts.nbytes
    for k in range(20):
        ages = np.random.default_rng(k).exponential(5.0, 1000)
        (first if k % 2 else second).add(ages)
        both.add(ages)
    assert both.counts.nbytes == size
    merged = FreshnessHistogram(first.counts + second.counts)
    assert merged.percentile_s(0.5) == both.percentile_s(0.5)
    assert merged.counts.sum() == 20_000


def test_ages_beyond_the_bins_count_at_the_borders():
    histogram = FreshnessHistogram()
    histogram.add(np.array([-5.0, 0.0, 1e9]))
    assert histogram.percentile_s(0.5) == pytest.approx(1e-3)
    assert histogram.percentile_s(1.0) == pytest.approx(1e6)


def test_append_times_are_kept_whole_below_the_limit_and_drained_once():
    appends = UnpublishedAppends(limit=100)
    appends.add(np.arange(40))
    appends.add(np.arange(40, 70))
    assert appends.drain().tolist() == list(range(70))
    assert appends.drain().shape == (0,)


@pytest.mark.parametrize("part", [1, 7, 64, 1000])
def test_beyond_the_limit_old_and_new_append_times_are_thinned_alike(part):
    appends, events = UnpublishedAppends(limit=100), 5000
    for start in range(0, events, part):
        appends.add(np.arange(start, min(start + part, events)))
    kept = appends.drain()
    assert 45 <= kept.shape[0] <= 100
    assert np.unique(np.diff(kept)).shape == (1,), "some stretch of time weighs more than another"
    assert kept[0] < 128
    assert kept[-1] >= events - 128


def test_after_a_drain_nothing_is_thinned_until_the_limit_is_reached_again():
    appends = UnpublishedAppends(limit=10)
    appends.add(np.arange(1000))
    appends.drain()
    appends.add(np.arange(9))
    assert appends.drain().tolist() == list(range(9))


def test_what_waited_at_the_start_stands_in_the_runs_figures_and_leaves_those_of_late():
    now_s = [0.0]
    freshness = Freshness(window_s=300, clock=lambda: now_s[0])
    assert freshness.figures()["p50_s"] is None
    freshness.add(np.full(900, 5000.0))
    now_s[0] = 10.0
    freshness.add(np.full(100, 2.0))
    mixed = freshness.figures()
    assert mixed["p50_s"] == mixed["run_p50_s"] > 4000
    now_s[0] = 301.0
    later = freshness.figures()
    assert later["p99_s"] == pytest.approx(2.0, rel=0.13)
    assert later["run_p50_s"] == mixed["run_p50_s"]
    now_s[0] = 400.0
    silent = freshness.figures()
    assert (silent["p50_s"], silent["run_p50_s"]) == (None, mixed["run_p50_s"])
