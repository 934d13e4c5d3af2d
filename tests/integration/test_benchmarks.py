"""Benchmarks of training and ingest at a tiny size: they measure what they say; their bars are for the full size."""

import json
import runpy
import sys
from contextlib import nullcontext
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from model.config import ModelConfig
from tests.benchmarks import (
    checkpoint,
    ingest,
    repartition,
    step,
    stream_ablation,
    stream_parity,
    workers,
)
from tests.benchmarks.support.synthetic import Population
from tests.benchmarks.support.window import Window
from tests.support.data_tables import random_tables

TINY = Window(prefill=200, warmup=2, steps=2, batch_events=32, partitions=2, validation=True)
POPULATION = Population(users=40, items=60)
MODEL = ModelConfig(dim=16, layers=1)


def test_the_step_benchmark_compares_with_the_bare_loop_another_tree_and_the_floor(
    stream_factory, pytestconfig
):
    stream = stream_factory(partitions=0)
    found = step.measure(stream, POPULATION, TINY, MODEL, runs=1, baseline=pytestconfig.rootpath)
    assert [run["examples"] for run in found["runs"]] == [run["examples"] for run in found["baseline_runs"]]
    assert 0 < found["floor_share"] < 1
    assert found["ratio"] > 0
    # This tree against itself, on a machine that others use.
    assert 0.1 < found["tree"]["ratio"] < 10


def test_the_workers_benchmark_trains_the_same_events_on_one_and_two_workers(stream_factory):
    found = workers.measure(stream_factory(partitions=0), POPULATION, TINY, MODEL, runs=1)
    assert [len(run) for run in found["runs"]] == [2]
    assert len({timing["examples"] for run in found["runs"] + found["baseline_runs"] for timing in run}) == 1
    assert found["ratio"] > 0


@pytest.mark.parametrize("encoding", ["arrow", "json"])
def test_the_ingest_benchmark_counts_every_row_of_both_encodings(stream_factory, encoding):
    settings = ingest.Settings(rows=600, encoding=encoding, users=50, partitions=2, runs=1)
    found = ingest.measure(stream_factory(partitions=0), settings)
    assert found["ratio"] > 0
    assert found["settings"]["encoding"] == encoding


@pytest.mark.parametrize("encoding", ["arrow", "json"])
def test_the_repartition_benchmark_copies_every_message_of_both_encodings(stream_factory, encoding):
    settings = ingest.Settings(rows=600, encoding=encoding, users=50, partitions=2, runs=1)
    found = repartition.measure(stream_factory(partitions=0), settings)
    assert found["ratio"] > 0
    assert found["events_per_cpu_s"] > 0


def test_the_checkpoint_benchmark_writes_deltas_fulls_and_a_checkpoint_beside_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "POPULATION", POPULATION)
    monkeypatch.setattr(checkpoint, "EVENTS", 2_000)
    monkeypatch.setattr(checkpoint, "BATCH", 64)
    checkpoint._log.cache_clear()
    found = checkpoint.measure(tmp_path, rows=20_000, runs=1, share=0.05, every=0.5, pairs=1, validation=True)
    checkpoint._log.cache_clear()
    assert 0 < found["bytes_ratio"] < 1
    assert found["throughput_ratio"] > 0


def test_the_command_of_the_large_table_prints_a_result_of_its_name(monkeypatch, capsys):
    program = Path(step.__file__).with_name("large_table.py")
    sizes = ["--ids", "20000", "--dim", "8", "--batch", "5000", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", [str(program), *sizes])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(program), run_name="__main__")
    assert ended.value.code in (0, 1)  # 1: below a bar, which is for the full size
    assert json.loads(capsys.readouterr().out)["name"] == "large_table"


@pytest.fixture
def drawn(tmp_path, stream_factory, kafka_broker, monkeypatch):
    """A data set of 400 events, and a function for settings with topics of its own on this session's broker."""
    tables = random_tables(first_ms=1_700_000_000_000)
    for name in ("interactions", "items", "users"):
        pq.write_table(getattr(tables, name), tmp_path / f"{name}.parquet")
    for benchmark in (stream_ablation, stream_parity):
        monkeypatch.setattr(benchmark, "LocalBroker", lambda folder: nullcontext(kafka_broker))
    stream = stream_factory(partitions=0)
    own = [
        f"stream.{kind}_topic={getattr(stream, f'{kind}_topic')}"
        for kind in ("interactions", "items", "users")
    ]
    tiny = ["dim=8", "heads=1", "layers=1", "history_length=8", "augmented_dim=4", "uniform_negatives=8"]
    return tmp_path, [*own, *(f"model.{setting}" for setting in tiny)]


def test_the_ablation_benchmark_scores_the_same_events_with_and_without_a_part(drawn):
    folder, settings = drawn
    found = stream_ablation.measure(folder, settings, ["model.contrastive_every=2"], range(1, 2))
    assert [run["events"] for run in found["with"] + found["without"]] == [400, 400]
    assert found["scored_events"] > 0
    assert found["ratio_low"] <= found["ratio"] <= found["ratio_high"]


def test_the_parity_benchmark_ranks_a_stream_and_data_at_rest_by_the_same_queries(drawn):
    folder, settings = drawn
    settings = [*settings, "fit.passes=1", "fit.batch_targets=64"]
    config = stream_parity.offline_settings(
        None, [*stream_parity.DEFAULTS, *settings, *stream_parity.FORCED], "default"
    )
    found = stream_parity.measure(folder, config, ranks=1)
    assert found["stream"]["events_per_pass"] == found["settings"]["training_events"] > 0
    assert found["ratio"] >= 0
