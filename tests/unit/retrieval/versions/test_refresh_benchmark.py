"""The benchmark of refreshes, at a tiny size: it measures what it says; its bars are for the full size."""

from tests.benchmarks.refresh import measure


def test_the_refresh_benchmark_publishes_a_cold_and_a_warm_version_of_all_items():
    result = measure(items=3000, queries=50)
    assert [result[name]["version"] for name in ("cold", "warm")] == ["v00000001", "v00000002"]
    assert [result[name]["items"] for name in ("cold", "warm")] == [3000, 3000]
    assert min(result[name] for name in ("baseline_cpu_s", "ratio", "ratio_warm")) > 0
