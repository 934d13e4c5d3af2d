"""The benchmark of searches, at a tiny size: it measures what it says; its bars are for the full size."""

import pytest

from tests.benchmarks.search import REQUIRED_RECALL, Case, measure


@pytest.mark.parametrize("kind", ["ivf_fp16", "ivf_pqfs"])
def test_the_search_benchmark_compares_equal_results_at_the_recall_that_it_requires(kind):
    case = Case(items=4000, dim=32, kind=kind, queries=64, batch=16, seen=20, runs=1)
    result = measure(case)
    assert result["recall@50"] >= REQUIRED_RECALL
    assert result["recall@50_excluding"] >= 0.9
    assert 0 < result["nprobe"] <= result["baseline_nprobe_excluding"] <= result["nlist"] / 2
    assert min(result[name] for name in ("ratio", "ratio_single_queries", "ratio_excluding")) > 0
