"""The benchmark of kinds, at a tiny size: each kind is tuned to the same recall, and its memory is its own."""

import pytest

from tests.benchmarks.index_kinds import Case, measure


@pytest.mark.parametrize("norms", [0.0, 0.5])
def test_the_benchmark_of_kinds_compares_them_at_equal_recall(norms):
    result = measure(Case(items=3000, dim=32, noise=0.6, norms=norms, queries=64, runs=1))
    rows = result["kinds"]
    assert all(row["recall"] >= 0.94 and 0 < row["nprobe"] <= result["nlist"] / 2 for row in rows.values())
    assert all(row["queries_per_s"] > 0 for row in rows.values())
    bytes_per_item = [row["bytes_per_item"] for row in rows.values()]
    flat, fp16, sq8, refined_fp16, refined_sq8 = bytes_per_item
    # 32 columns of 4, 2 and 1 bytes; the codes of the fast scan add 8 bytes and padding, and the row number is 8 more.
    assert flat - fp16 == pytest.approx(64, abs=1)
    assert fp16 - sq8 == pytest.approx(32, abs=1)
    assert refined_fp16 - refined_sq8 == pytest.approx(32, abs=1)
    assert fp16 + 8 < refined_fp16 < fp16 + 24
