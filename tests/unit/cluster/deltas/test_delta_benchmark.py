"""The benchmark of deltas, at a tiny size."""

import pytest

from tests.benchmarks.delta import measure
from tests.benchmarks.publish import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_benchmark_measures_deltas_a_refresh_and_training_beside_deltas(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.benchmarks.delta.IndexConfig.delta_every_s", 0.001)
    trainer = Trainer(str(tmp_path), items=400, users=300, batch_events=32, in_thread_items=400)
    try:
        result = measure(trainer, items=400, steps=4)
    finally:
        trainer.close()
    assert set(result["seconds"]) == {"0.0001", "0.001", "0.01", "0.02"}
    assert result["ratio"] == pytest.approx(result["seconds"]["0.01"] / result["refresh_cpu_s"])
    assert result["trained"]["deltas"] >= 1
    assert result["trained"]["ratio"] > 0
