"""Trains the same on a device and on the CPU, for comparison."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from cluster.collectives import Collectives
from cluster.tables.row_optimizer import row_optimizer
from cluster.tables.sharded_embedding import ShardedEmbedding
from cluster.training.state.run import TrainingRun, partitions_of_rank
from model.features import ITEM, USER
from streaming.batches.batcher import Batcher
from streaming.config import StreamConfig
from tests.support.memory_source import MemorySource, NoDeadLetters
from tests.support.unit_runs import LOG_WITH_ACTIONS, PARTITIONS, POPULATION, QUOTA, SIGNALS, small_config
from tests.support.worker_runs import events

VARIANTS: dict[str, dict[str, Any]] = {
    "the defaults": {},
    "two members": {"members": 2, "dim": 16},
    "two layers": {"layers": 2},
    "dot products": {"similarity": "dot"},
    "pointwise": {"loss": "pointwise"},
    "a temperature": {"temperature": 0.5, "logq_strength": 0.5},
    "the older half": {"negative_sequence": "older_half"},
    "views of all candidates": {"contrastive_items": "candidates"},
    "past items only": {"history_mask": "past", "history_before": "time"},
    "epidtn": {"contrastive_weight": 0.0},
    "cltd": {"augmented_vectors": False},
    "cl_dssm": {"transformer": False},
    "no sources": {"source_items": 0, "state_skip": 0.0},
    "no user ids, no categories of sources": {"user_id_embedding": False, "source_categories": False},
    "the towers alone": {"transformer": False, "augmented_vectors": False, "contrastive_weight": 0.0},
}
"""Settings of the model, each apart: every option of the loss and every part that can be off."""


def config_of(variant: str, **model: Any) -> Any:
    """A run's settings with explicit negatives and all terms in each step, so that no term of the loss is zero; by
    default without dropout."""
    return small_config(SIGNALS, **{"dropout": 0.0, "contrastive_every": 1, **VARIANTS[variant], **model})


def train_and_score(run: TrainingRun, steps: int, quota: int = QUOTA) -> list[dict[str, float]]:
    """As the worker's loop does; the terms of each step's loss, and what validation found before it."""
    said = []
    for _ in range(steps):
        batch = run.batcher.next_batch(quota)
        run.ledger.add_set_aside(run.batcher.set_aside)
        prepared = run.train_step.prepare(batch, run.step)
        found = run.progressive.score(batch, prepared)
        losses = run.train_step.train(prepared, run.step)
        said.append({**losses, "sample": found[0], "popularity_hits": found[2]})
        run.ledger.add_batch(batch)
        run.events_trained += prepared.global_targets.events
        run.step += 1
    return said


def gradients(run: TrainingRun) -> dict[str, torch.Tensor]:
    """Gradients of the towers' parameters that have one, after a step, on the CPU."""
    return {n: p.grad.cpu() for n, p in run.model.named_parameters() if p.grad is not None}


def table_of(table: Any) -> dict[str, torch.Tensor]:
    """Values, optimizer state and counts of every row, in order of their keys, on the CPU."""
    tables, ids = table.keys_of(table.rows())
    local = table.rows()[np.lexsort((ids, tables))]
    where = torch.from_numpy(local).to(table.device)
    tensors = {"values": table.values_CD, **table.state}
    found = {name: tensor.detach().index_select(0, where).cpu() for name, tensor in tensors.items()}
    ordered = torch.from_numpy(np.stack([*table.keys_of(local)]).astype(np.int64))
    seen = torch.from_numpy(table.last_seen_ms_C[local])
    return {**found, "keys": ordered, "frequency": torch.from_numpy(table.frequency_C[local]), "seen": seen}


def state_of(run: TrainingRun) -> dict[str, torch.Tensor]:
    """Copies of everything that training changes, on the CPU."""
    state: dict[str, torch.Tensor] = {}
    for name, parameter in run.model.named_parameters():
        state[name] = parameter.detach().cpu().clone()
        for moment, value in run.train_step.optimizer.state.get(parameter, {}).items():
            state[f"{name} {moment}"] = value.detach().cpu().clone()
    return state | {f"table {name}": value for name, value in table_of(run.table).items()}


def differing(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> list[str]:
    """Names of tensors that are not bit-identical."""
    assert one.keys() == two.keys()
    return [name for name in one if not torch.equal(one[name].cpu(), two[name].cpu())]


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """‖found − wanted‖ / ‖wanted‖ in float64; NaN if any number is."""
    found, wanted = found.double().cpu(), wanted.double().cpu()
    return float((found - wanted).norm() / wanted.norm().clamp_min(1e-30))


def trained_table(
    device: torch.device, kind: str, limits: Any = None, *, dim: int = 6, keys: int = 700, steps: int = 6
) -> ShardedEmbedding:
    """A table after steps on skewed keys of items and users, some of them drawn only; it grows several times over."""
    table = ShardedEmbedding(
        dim, Collectives(), row_optimizer(kind), seed=4, device=device, init_std=0.2, limits=limits
    )
    for step in range(steps):
        rng = np.random.default_rng(step)
        ids = np.unique((rng.pareto(0.5, keys) * 40).astype(np.int64) % 100_000)
        tables = np.where(ids % 3 == 0, USER, ITEM).astype(np.int16)
        drawn = (tables == ITEM) & (rng.random(ids.shape[0]) < 0.4)
        lookup = table.lookup(tables, ids, drawn_U=drawn, time_ms=step * 1000)
        gradient = rng.normal(size=(ids.shape[0] + 1, dim)).astype(np.float32)
        lookup.rows_UD.grad = torch.from_numpy(gradient).to(device)
        table.apply_gradients(lookup, 0.05)
        counted = (tables == ITEM) & ~drawn
        table.count(tables[counted], ids[counted], rng.random(int(counted.sum())) + 0.5, step * 1000)
        if table.limits.removes_rows and step % 2:
            table.sweep(step * 1000)
    table.forget(np.full(5, ITEM, np.int16), np.arange(1, 6))
    return table


def steps_of_a_rank(rank: int, device: torch.device, config: Any) -> dict[str, Any]:
    """Two steps on the partitions of this rank: losses, towers, and the rows that it owns by key."""
    comm = Collectives()
    run = TrainingRun.create(config, partitions_of_rank(PARTITIONS, comm.rank, comm.world), comm, device)
    run.catalogue.apply(POPULATION.catalogue())
    source = MemorySource(LOG_WITH_ACTIONS, run.partitions)
    batcher = Batcher(config.stream, source, run.users, run.catalogue, NoDeadLetters(), run.stream.admission)
    losses = []
    for step in range(2):
        batch = batcher.next_batch(QUOTA)
        prepared = run.train_step.prepare(batch, step)
        run.progressive.score(batch, prepared)
        losses.append(run.train_step.train(prepared, step))
    towers = {name: p.detach().cpu().numpy() for name, p in run.model.named_parameters()}
    rows = {name: tensor.numpy() for name, tensor in table_of(run.table).items()}
    return {"losses": losses, "towers": towers, "rows": rows}


def assert_ranks_train_what_one_trains(alone: dict[str, Any], ranks: list[dict[str, Any]]) -> None:
    """Losses and towers on every rank; rows of all ranks together. To rounding, scaled up by Adam's first steps."""
    for rank in ranks:
        for mine, wanted in zip(rank["losses"], alone["losses"], strict=True):
            np.testing.assert_allclose(list(mine.values()), list(wanted.values()), rtol=1e-4)
        for name, wanted in alone["towers"].items():
            np.testing.assert_allclose(rank["towers"][name], wanted, atol=2e-3, err_msg=name)
    keys = np.concatenate([rank["rows"]["keys"] for rank in ranks], axis=1)
    order = np.lexsort(keys[::-1])
    np.testing.assert_array_equal(keys[:, order], alone["rows"]["keys"])
    for name in ("values", "first_moment", "frequency"):
        together = np.concatenate([rank["rows"][name] for rank in ranks])[order]
        np.testing.assert_allclose(together, alone["rows"][name], atol=2e-3, err_msg=name)


def data_set_of(folder: Path, count: int) -> StreamConfig:
    """A data set of so many events with items and users, as settings of a stream that no broker serves."""
    folder.mkdir()
    pq.write_table(
        pa.Table.from_batches([events(count)]), folder / "interactions.parquet", row_group_size=count // 10
    )
    items = np.arange(1, 61)
    titles, categories = [f"item {n}" for n in items], [[f"kind {n % 7}"] for n in items]
    pq.write_table(
        pa.table({"item_id": items, "title": titles, "categories": categories}), folder / "items.parquet"
    )
    users = np.arange(1, 41)
    gender = ["f" if n % 2 else "m" for n in users]
    pq.write_table(pa.table({"user_id": users, "gender": gender}), folder / "users.parquet")
    return StreamConfig(
        bootstrap_servers="127.0.0.1:1", parquet=str(folder), parquet_partitions=2, user_attributes=["gender"]
    )
