"""Training on several ranks is training on one: the same global batch gives the same losses, towers and rows."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from cluster.collectives import Collectives
from cluster.config import FreshetConfig, TrainConfig
from cluster.training.state.run import TrainingRun, partitions_of_rank
from model.config import ModelConfig
from streaming.batches.batcher import Batcher
from streaming.config import StreamConfig
from tests.benchmarks.support.synthetic import Population
from tests.support.memory_source import MemorySource, NoDeadLetters, partitioned_log
from tests.support.ranks import run_on_ranks

PARTITIONS, QUOTA = 3, 20
POPULATION = Population(users=40, items=60, burst=3.0, attributes=2)
CONFIG = FreshetConfig(
    stream=StreamConfig(
        history_length=6, seen_length=20, user_attributes=["gender", "age_group"], negative_below_value=3.0
    ),
    model=ModelConfig(
        dim=8,
        heads=2,
        layers=2,
        history_length=6,
        augmented_dim=4,
        dropout=0.0,
        uniform_negatives=15,
        contrastive_weight=0.5,
        init_std=0.2,
    ),
    train=TrainConfig(learning_rate=0.01, row_learning_rate=0.02, warmup_steps=1, gradient_clip=0.0),
    device="cpu",
)
# Without a clip a gradient of the wrong scale shows; with one far below its norm, a norm that ranks disagree on.
CONFIGS = (
    CONFIG,
    replace(CONFIG, train=replace(CONFIG.train, gradient_clip=0.1)),
    replace(CONFIG, model=replace(CONFIG.model, dim=16, members=2, layers=1)),
)
STEPS = 2


def _log() -> dict[int, pa.RecordBatch]:
    """Events of different weights; those with a value below 3 are explicit negatives."""
    events, rng = POPULATION.events(600), np.random.default_rng(0)
    # Halves add up exactly in any order.
    drawn = {"weight": rng.choice([0.5, 1.0, 2.0], 600), "value": rng.integers(1, 6, 600)}
    for name, values_N in drawn.items():
        place = events.schema.get_field_index(name)
        events = events.set_column(place, name, pa.array(values_N, pa.float32()))
    return partitioned_log(events, PARTITIONS)


def _train_each(rank: int) -> list[dict]:
    return [_train(config) for config in CONFIGS]


def _train(config: FreshetConfig) -> dict:
    """Losses of each step, then gradients and parameters of the towers, and the rows of this rank."""
    comm = Collectives()
    partitions = partitions_of_rank(PARTITIONS, comm.rank, comm.world)
    run = TrainingRun.create(config, partitions, comm, torch.device("cpu"))
    run.catalogue.apply(POPULATION.catalogue())
    batcher = Batcher(
        config.stream, MemorySource(_log(), partitions), run.users, run.catalogue, NoDeadLetters()
    )
    losses, negatives = [], 0
    for step in range(STEPS):
        batch = batcher.next_batch(QUOTA)
        negatives += len(batch["negatives"].flatten())
        losses.append(run.train_step.train(run.train_step.prepare(batch, step), step))
    size = len(run.table)
    tables, ids = run.table.index.keys()
    return {
        "losses": losses,
        "negatives": negatives,
        "gradients": {
            n: p.grad.numpy().copy() for n, p in run.model.named_parameters() if p.grad is not None
        },
        "parameters": {n: p.detach().numpy().copy() for n, p in run.model.named_parameters()},
        "keys": list(zip(tables.tolist(), ids.tolist(), strict=True)),
        "rows": run.table.values_CD[:size].numpy().copy(),
        "first_moment": run.table.state["first_moment"][:size].numpy().copy(),
        "frequency": run.table.frequency_C[:size].copy(),
        "events_seen": run.train_step.events_seen,
    }


@pytest.fixture(scope="module")
def alone_each() -> list[dict]:
    return _train_each(0)


@pytest.mark.parametrize("world", [2, 3])
def test_one_rank_and_several_ranks_train_the_same_steps_on_the_same_events(alone_each, world):
    weight = 0.0
    for rows in _log().values():
        read = rows.slice(0, STEPS * QUOTA)
        weight += read["weight"].to_numpy()[read["value"].to_numpy() >= 3].sum()
    ranks = zip(*run_on_ranks(_train_each, world), strict=True)
    for alone, together in zip(alone_each, ranks, strict=True):
        assert all(loss > 0 for loss in alone["losses"][0].values()), "a loss term that is off proves nothing"
        assert sum(rank["negatives"] for rank in together) == alone["negatives"] > 0
        assert alone["events_seen"] == weight
        for rank in together:
            _assert_same_towers(alone, rank)
        _assert_same_rows(alone, together)


def _assert_same_towers(alone: dict, together: dict) -> None:
    assert together["events_seen"] == alone["events_seen"]
    for one, two in zip(alone["losses"], together["losses"], strict=True):
        assert two.keys() == one.keys()
        np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=1e-5)
    # Adam divides by a gradient's own size: rounding of a small one moves a parameter by up to a hundredth of the rate.
    for kind, tolerance in (("gradients", 1e-5), ("parameters", 1e-4)):
        assert together[kind].keys() >= alone[kind].keys()
        for name, value in alone[kind].items():
            if name.endswith("to_qkv.bias"):
                # A key bias moves no softmax: its gradient is rounding error, which Adam scales up to steps.
                together[kind][name][8:16] = value[8:16]
            np.testing.assert_allclose(together[kind][name], value, atol=tolerance, err_msg=f"{kind} {name}")


def _assert_same_rows(alone: dict, ranks: Sequence[dict]) -> None:
    keys = [key for rank in ranks for key in rank["keys"]]
    assert sorted(keys) == sorted(alone["keys"])
    assert all(rank["keys"] for rank in ranks)
    place = {key: k for k, key in enumerate(alone["keys"])}
    for rank in ranks:
        at = [place[key] for key in rank["keys"]]
        np.testing.assert_allclose(rank["rows"], alone["rows"][at], atol=1e-5)
        np.testing.assert_allclose(rank["first_moment"], alone["first_moment"][at], atol=1e-5)
        assert np.abs(rank["first_moment"]).max() > 1e-3
        np.testing.assert_allclose(rank["frequency"], alone["frequency"][at])
