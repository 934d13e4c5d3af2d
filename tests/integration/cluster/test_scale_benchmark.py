"""The scale benchmark's table at a tiny size: each task is measured and does its work."""

from tests.benchmarks.support.scale_costs import as_table, costs


def test_every_task_is_measured_at_a_tiny_size():
    found = costs(1_200, dim=8, events=64)
    assert found["full_checkpoint"]["bytes"] > found["delta_checkpoint"]["bytes"] > 0
    assert found["refresh"]["bytes"] > 0
    assert found["refresh"]["nlist"] > 1
    assert all(found[task]["cpu_s"] > 0 for task in ("step", "resume", "refresh"))
    header, _, row = as_table([found]).splitlines()[:3]
    assert row.startswith("| 1,200 |")
    assert row.count("|") == header.count("|")
