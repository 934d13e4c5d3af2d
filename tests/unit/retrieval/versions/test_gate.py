"""Each gate by itself: at its bound it passes, just beyond it fails and names the setting to look at."""

import math
from dataclasses import replace

import pytest

from retrieval.config import IndexConfig
from retrieval.versions.gate import Measured, check_version, not_finite

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
