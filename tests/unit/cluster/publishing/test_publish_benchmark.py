"""The benchmark of a publish beside training, at a tiny size."""

import pytest

from tests.benchmarks.publish import Trainer, measure

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_benchmark_measures_pauses_and_examples_of_a_publish_and_of_a_large_delta(tmp_path, monkeypatch):
    monkeypatch.setattr("cluster.checkpoints.writing._AT_ONCE_BYTES", 1 << 16)
    trainer = Trainer(str(tmp_path), items=400, users=300, batch_events=32, in_thread_items=400)
    try:
        result = measure(trainer, pairs=1, touched=350)
    finally:
        trainer.close()
    [publish], delta = result["publishes"], result["delta"]
    kinds = {what for what, _ in publish["pauses_ms"]}
    assert kinds <= {"begin", "copy", "commit", "build"}
    before, after = result["without"]
    assert publish["steps"] == after["steps"] > 0
    assert 0 < publish["pause_share"] < 1
    longest = max(stretch["pauses_ms"][0][1] for stretch in (publish, delta))
    assert result["longest_pause_ms"] == pytest.approx(longest, abs=0.01)
    assert result["ratio"] > 0
    around = (before["examples_per_cpu_s"] + after["examples_per_cpu_s"]) / 2
    assert result["ratio"] == pytest.approx(publish["examples_per_cpu_s"] / around)
    assert "commit" not in {what for what, _ in before["pauses_ms"] + after["pauses_ms"]}
    assert delta["steps"] > 0
    assert list((tmp_path / "index").glob("v0000000*"))
    assert len(list((tmp_path / "checkpoints").glob("step-*"))) == 2
    assert list((tmp_path / "checkpoints").glob("step-*/rows-*.base1.arrow"))
