"""Each gate by itself: at its bound it passes, just beyond it fails and names the setting to look at."""

import math
from dataclasses import replace

import numpy as np
import pytest

from retrieval.config import IndexConfig
from retrieval.versions.gate import Measured, check_quality, check_vectors, check_version, hits, not_finite

CONFIG = IndexConfig(min_recall=0.9, min_coverage=0.8, max_imbalance=4.0, min_overlap=0.5)
GOOD = Measured(recall=0.9, coverage=0.8, imbalance=4.0, overlap=0.5)


def failed(report):
    return [check.name for check in report.checks if not check.passed]


def test_what_is_at_its_bounds_passes():
    report = check_version(GOOD, CONFIG)
    assert report.passed
    assert [check.name for check in report.checks] == ["recall", "coverage", "imbalance", "overlap"]
    assert report.why_not() == ""


@pytest.mark.parametrize(
    ("name", "value", "setting"),
    [
        ("recall", 0.8999, "index.min_recall"),
        ("coverage", 0.7999, "index.min_coverage"),
        ("imbalance", 4.001, "index.max_imbalance"),
        ("overlap", 0.4999, "index.min_overlap"),
        ("recall", math.nan, "index.min_recall"),
        ("imbalance", math.nan, "index.max_imbalance"),
    ],
)
def test_each_gate_fails_alone_and_names_value_bound_and_setting(name, value, setting):
    report = check_version(replace(GOOD, **{name: value}), CONFIG)
    assert not report.passed
    assert failed(report) == [name]
    assert f"{name} is {value:.4g}" in report.why_not()
    assert setting in report.why_not()


def test_every_failed_gate_is_told():
    report = check_version(Measured(0.0, 0.0, 99.0, 0.0), CONFIG)
    assert report.why_not().count(";") >= 3
    assert failed(report) == ["recall", "coverage", "imbalance", "overlap"]


def test_without_a_version_to_compare_with_there_is_no_overlap_gate():
    assert [check.name for check in check_version(replace(GOOD, overlap=None), CONFIG).checks] == [
        "recall",
        "coverage",
        "imbalance",
    ]


def test_numbers_that_are_not_finite_fail_with_their_share():
    assert failed(not_finite(0.75)) == ["finite"]
    assert "finite is 0.75" in not_finite(0.75).why_not()


@pytest.mark.parametrize(
    ("finite", "nonzero", "names"),
    [(1.0, 1.0, []), (0.99, 1.0, ["finite"]), (1.0, 0.99, ["nonzero"]), (0.5, 0.5, ["finite", "nonzero"])],
)
def test_vectors_must_all_be_finite_and_of_some_length(finite, nonzero, names):
    report = check_vectors(finite, nonzero)
    assert failed(report) == names
    assert report.passed == (not names)
    assert all(name in report.why_not() for name in names)


def events(count, rate, seed=0):
    return np.random.default_rng(seed).random(count) < rate


@pytest.mark.parametrize(
    ("rate", "live_rate", "passed"),
    [(0.10, 0.10, True), (0.09, 0.10, True), (0.03, 0.10, False), (0.0, 0.10, False), (0.3, 0.1, True)],
)
def test_a_candidate_that_finds_far_less_than_the_live_version_fails(rate, live_rate, passed):
    check = check_quality(events(2000, rate, 1), events(2000, live_rate, 2), CONFIG)
    assert check.passed == passed
    assert check.value == pytest.approx(rate, abs=0.02)
    assert "index.max_quality_loss" in check.in_words()
    assert "on 2,000 events" in check.in_words()


def test_the_quality_bound_is_the_allowed_share_of_the_live_hit_rate_less_three_standard_errors():
    hit_Q, live_Q = np.arange(1000) < 300, np.arange(1000) < 500
    check = check_quality(hit_Q, live_Q, CONFIG)
    difference_Q = hit_Q - 0.8 * live_Q
    assert check.value == 0.3
    assert check.bound == pytest.approx(0.8 * 0.5 - 3 * difference_Q.std(ddof=1) / math.sqrt(1000))
    assert not check.passed


def test_equal_candidates_are_almost_never_refused_by_chance():
    """200 events at a hit rate of .1 whose hits are not even correlated, the worst that noise can do."""
    checks = [check_quality(events(200, 0.1, n), events(200, 0.1, 10_000 + n), CONFIG) for n in range(2000)]
    assert sum(not check.passed for check in checks) <= 4


def test_few_events_and_a_loss_of_everything_are_not_compared():
    few, many = np.zeros(199, bool), np.zeros(200, bool)
    assert check_quality(few, ~few, CONFIG) is None
    assert not check_quality(many, ~many, CONFIG).passed
    assert check_quality(many, ~many, replace(CONFIG, max_quality_loss=1.0)) is None


def test_a_live_version_that_finds_nothing_bounds_nothing():
    none = np.zeros(500, bool)
    assert check_quality(none, none, CONFIG).passed


def test_padding_is_no_hit_although_minus_one_is_an_id():
    ids = np.array([[3, -1], [-1, -1], [5, 6]])
    scores = np.array([[1.0, 0.5], [0.1, -np.inf], [2.0, 1.0]], np.float32)
    assert hits(ids, scores, np.array([-1, -1, 7])).tolist() == [True, True, False]
    assert hits(ids, np.full((3, 2), -np.inf, np.float32), np.array([3, -1, 5])).tolist() == [False] * 3
