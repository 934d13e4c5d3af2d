"""Benchmarks without a stream at a tiny size: they measure what they say; their bars are for the full size.

Peers that have an environment of their own are stood in for, because making one takes minutes.
"""

import argparse
import io
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from cluster.evaluation.config import OfflineConfig
from cluster.evaluation.protocol.data import prepare
from model.config import ModelConfig
from tests.benchmarks import admission, cooccurrence, embedding, id_map, packing, refresh_memory, sasrec
from tests.benchmarks.support import peer_id_map
from tests.benchmarks.support.peer import PeerFit, PeerRun
from tests.support.data_tables import random_tables

MODEL = ModelConfig(dim=8, heads=1, layers=1, history_length=8, augmented_dim=4, uniform_negatives=8)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors; the number is what a benchmark sets too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 400 events."""
    place, drawn = tmp_path_factory.mktemp("data"), random_tables()
    for name, table in (("interactions", drawn.interactions), ("items", drawn.items), ("users", drawn.users)):
        pq.write_table(table, place / f"{name}.parquet")
    return place


def test_the_cooccurrence_benchmark_compares_counts_and_scores_with_a_dense_matrix():
    found = cooccurrence.measured(items=60, events=300, share=0.1, runs=2)
    assert 0 < found["delta_bytes"] < found["full_bytes"]
    assert found["scores_ratio"] > 0


def test_the_admission_benchmark_scores_the_same_events_with_both_starts(folder):
    config = OfflineConfig(model=MODEL, device="cpu")
    found = admission.measure(folder, config, admit_after=3.0, shared=[4096], events=400)
    both = found["by_shared_rows"]["4096"]
    assert both["shared"]["scored_events"] == both["fresh"]["scored_events"] > 300
    assert found["at_once"]["hr10"] > 0


def test_the_packing_benchmark_finds_both_forms_equal():
    config = OfflineConfig(model=MODEL, device="cpu")
    size = packing.Size(targets=32, warmup=1, steps=1, checked=1, runs=1)
    found = packing.measure(prepare(random_tables(), config), config, size)
    assert found["ratio"] > 0
    assert found["settings"]["targets"] == 32


def test_the_benchmark_of_a_refresh_measures_the_memory_of_a_rank(tmp_path, monkeypatch):
    monkeypatch.setattr(refresh_memory, "DIM", 8)
    # In this process, which has everything loaded already.
    monkeypatch.setattr(
        refresh_memory, "run_on_ranks", lambda work, ranks, *given, timeout_s: [work(0, *given)]
    )
    found = refresh_memory.measure(argparse.Namespace(items=2000, ranks=1, threads=1), tmp_path)
    assert found["version"]
    assert found["peak_mb"] > 0


def test_the_sasrec_benchmark_trains_as_many_targets_as_its_peer(folder, monkeypatch):
    run = PeerRun(examples=640, wall_s=1.0, cpu_s=1.0, version="a stand-in", steps=2)
    monkeypatch.setattr(sasrec, "peer_python", lambda: Path(sys.executable))
    monkeypatch.setattr(sasrec, "timed_peer", lambda data, settings, steps, warmup: run)
    monkeypatch.setattr(
        sasrec, "fit_peer", lambda data, settings, queries, epochs: PeerFit(run, [0.1], 0.1, 1)
    )
    sizes = sasrec.Sizes(
        dim=8, layers=1, window=8, negatives=8, batch_users=8, steps=1, warmup=1, runs=1, epochs=1
    )
    found = sasrec.measure(folder, ["sampled_softmax"], sizes)
    assert found["targets_per_step"] > 0
    assert 0 <= found["hr@10"] <= 1
    assert found["ratio"] > 0


def test_the_id_map_benchmark_measures_insertion_and_lookup(monkeypatch):
    def in_this_process(command: list[str]) -> str:
        name = command[2] if command[2] in ("ours", "ours at once", "pyarrow index_in") else "dict"
        monkeypatch.setattr(sys, "argv", ["peer_id_map.py", name, command[3]])
        with redirect_stdout(io.StringIO()) as printed:
            peer_id_map.main()
        return printed.getvalue()

    monkeypatch.setattr(id_map, "peer_environment", lambda *given: Path(sys.executable))
    monkeypatch.setattr(id_map, "run_peer", in_this_process)
    found = id_map.measure(ids=3000, runs=1)
    assert found["ratio"] > 0
    assert set(found["m_per_cpu_s"]) == {"ours", "ours at once", *id_map.GROWING, *id_map.BUILT}


def test_the_embedding_benchmark_runs_its_steps_in_a_process_of_their_own(monkeypatch):
    settings = {"runs": 1, "steps": 1, "warmup": 1, "batch": 8, "items": 4, "dim": 8, "rows": 100}
    ours = embedding.run(Path(sys.executable), "ours-adam", 1, settings)
    monkeypatch.setattr(embedding, "peer_environment", lambda *given: Path(sys.executable))
    monkeypatch.setattr(embedding, "run", lambda python, kind, processes, sizes: ours)
    found = embedding.measure(settings, processes=1)
    assert ours["examples"] == 8
    assert found["ratio"] == found["ratio_sparse_adam"] == 1
