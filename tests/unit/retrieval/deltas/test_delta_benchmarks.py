"""The benchmarks of deltas, at a tiny size: they measure what they say; their bars are for the full size."""

import pytest

from tests.benchmarks import delta_search, drift


@pytest.mark.parametrize("kind", ["ivf_fp16", "ivf_pqfs"])
def test_searches_through_deltas_are_compared_at_the_recall_that_is_required(kind):
    case = delta_search.Case(items=4000, dim=32, kind=kind, queries=64, batch=16, runs=1)
    result = delta_search.measure(case)
    assert [*result["shares"]] == ["0%", "1%", "2%"]
    for share in result["shares"].values():
        assert share["recall@50"] >= delta_search.REQUIRED_RECALL
        assert share["recall@50"] == pytest.approx(share["baseline_recall@50"], abs=0.02)
        assert min(share["ratio"], share["ratio_single_queries"]) > 0


def test_recall_is_measured_through_deltas_and_a_refresh_that_is_due():
    result = drift.measure(drift.Case(items=4000, dim=16, checkpoints=4, deltas=2))
    rows = result["checkpoints"]
    assert [row["checkpoint"] for row in rows] == [1, 2, 3, 4]
    assert [row["delta"] for row in rows] == [2, 4, 6, 2]
    assert [row["version"] for row in rows] == ["v00000001"] * 3 + ["v00000002"]
    assert rows[2]["refresh"] == "share of the deltas is 0.03 (index.max_delta_share=0.02)"
    assert result["ratio"] >= 0.85
    assert min(row["baseline_recall@10"] for row in rows) >= 0.85
    assert [*result["delta_cpu_s"]] == ["0.01%", "0.10%", "1.00%", "2.00%"]
    assert result["cost_of_1%"] > 0
