"""The number of ranks has no effect: what a run learns after a change of it, and the ledgers of idle ranks."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist

from cluster.audit.exactly_once import verify_exactly_once
from cluster.audit.state import read_state
from cluster.collectives import Collectives
from cluster.config import FreshetConfig
from cluster.training.worker import Worker
from streaming.config import StreamConfig
from tests.support.ranks import run_on_ranks
from tests.support.state_digests import digests
from tests.support.worker_runs import config_of, events, newest, produce, train

EVENTS, ROWS, STEPS = 1600, 60, 3
STAGES = (1, 2, 3, 1)
OF_THE_LOG = ("users ", "ledger ", "admission-", "catalogue-")


def _config(stream: StreamConfig, storage: Path) -> FreshetConfig:
    """Nothing is drawn by rank, every loss counts, and rates are high: what is not restored shows in the next loss."""
    rates = {"learning_rate": 0.01, "row_learning_rate": 0.02, "warmup_steps": 1}
    config = config_of(stream, storage, batch_events=ROWS, **rates)
    return replace(
        config,
        model=replace(config.model, dropout=0.0, contrastive_weight=0.5, init_std=0.2, max_categories=2),
    )


def _losses(config: FreshetConfig, until_rows: int) -> list[dict[str, float]]:
    """Every term of each step, summed over the ranks, from what lies in storage to so many rows in all."""
    config = replace(config, train=replace(config.train, stop_after_rows=until_rows))
    worker, losses = Worker(config, Collectives(), torch.device("cpu")), []
    told = worker.progress.stepped
    worker.progress.stepped = lambda terms, count: (losses.append(dict(terms)), told(terms, count))
    worker.train()
    return losses


def _stage(rank: int, config: FreshetConfig, copy: Path | None, until_rows: int) -> tuple[list, list]:
    """The stage's own steps; then those that a copy of its last checkpoint goes on with, on as many ranks."""
    own = _losses(config, until_rows)
    if copy is None:
        return own, []
    if rank == 0:
        shutil.copytree(config.storage_path, copy)
    if dist.is_initialized():
        dist.barrier()
    return own, _losses(replace(config, storage_path=str(copy)), until_rows + STEPS * ROWS)


def test_losses_after_a_re_shard_are_those_that_the_old_ranks_would_have_had(stream_factory, tmp_path):
    stream = stream_factory(3, negative_below_value=3.0)
    rng = np.random.default_rng(0)
    values = pa.array(rng.integers(1, 6, EVENTS), pa.float32())
    weights = pa.array(rng.choice([0.5, 1.0, 2.0], EVENTS), pa.float32())
    produce(stream, events(EVENTS).append_column("value", values).append_column("weight", weights), 100)
    config = _config(stream, tmp_path / "run")
    expected: list[dict[str, float]] = []
    for n, ranks in enumerate(STAGES):
        copy = tmp_path / f"copy-{n}" if n + 1 < len(STAGES) else None
        arguments = (config, copy, (n + 1) * (STEPS + 1) * ROWS)
        results = [_stage(0, *arguments)] if ranks == 1 else run_on_ranks(_stage, ranks, *arguments)
        assert newest(config).manifest["workers"] == ranks
        for found, _ in results:
            assert len(found) == STEPS + 1
            assert all(term > 0 for terms in found for term in terms.values()), (
                "a term that is off proves nothing"
            )
            for at, want in zip(found, expected, strict=False):
                np.testing.assert_allclose(list(at.values()), list(want.values()), rtol=1e-5, err_msg=str(n))
        expected = results[0][1]
        assert len(expected) == (0 if copy is None else STEPS)
    accounting = verify_exactly_once(config)
    assert accounting.adds_up, accounting
    assert accounting.events_doubled == 0
    assert accounting.events_negative > 100


def test_ranks_without_events_or_partitions_leave_the_books_as_one_rank_does(stream_factory, tmp_path):
    stream = stream_factory(2)
    produce(stream, events(200, users=1))
    alone, idle = (config_of(stream, tmp_path / name) for name in ("alone", "idle"))
    train(0, alone)
    run_on_ranks(train, 3, idle)
    for config in (alone, idle):
        accounting = verify_exactly_once(config)
        assert accounting.exactly_once, accounting
        assert accounting.events_trained == 200
    books = [
        {
            name: part
            for name, part in digests(read_state(newest(config))).items()
            if name.startswith(OF_THE_LOG)
        }
        for config in (alone, idle)
    ]
    assert len(books[0]) >= 8
    assert books[0] == books[1]
