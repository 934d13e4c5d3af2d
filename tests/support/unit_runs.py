"""A whole run of one rank in memory: the worker's complete state, without Kafka and the loop."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch

from cluster.collectives import Collectives
from cluster.config import FreshetConfig, ProgressiveConfig, TrainConfig
from cluster.queries.query_batch import query_batch
from cluster.queries.query_side import QuerySide
from cluster.training.state.run import TrainingRun
from cluster.training.state.starting_point import start_from
from cluster.training.state.worker_state import restore_checkpoint
from model.config import ModelConfig
from streaming.batches.batcher import Batcher
from streaming.config import StreamConfig
from tests.benchmarks.support.synthetic import Population
from tests.support.memory_source import MemorySource, NoDeadLetters, partitioned_log

CPU = torch.device("cpu")
PARTITIONS, QUOTA = 2, 16
POPULATION = Population(users=30, items=50, burst=3.0, attributes=1)
LOG = partitioned_log(POPULATION.events(500), PARTITIONS)


def _log_with_actions():
    """The same log, where one event in five is a skip and one a look."""
    actions = np.array(["like", "skip", "look", "like", "like"])
    return {
        p: rows.set_column(
            rows.schema.get_field_index("action"),
            rows.schema.field("action"),
            pa.array(actions[np.arange(rows.num_rows) * 7 % 5]),
        )
        for p, rows in LOG.items()
    }


LOG_WITH_ACTIONS = _log_with_actions()
SIGNALS = {"positive_actions": ["like"], "negative_actions": ["skip"], "action_weights": ["like=2"]}


def small_config(signals=None, **model):
    sizes = {
        "dim": 8,
        "heads": 2,
        "layers": 1,
        "history_length": 6,
        "augmented_dim": 4,
        "uniform_negatives": 9,
    }
    return FreshetConfig(
        stream=StreamConfig(history_length=6, seen_length=20, user_attributes=["gender"], **(signals or {})),
        model=ModelConfig(**{**sizes, **model}),
        train=TrainConfig(warmup_steps=5),
        progressive=ProgressiveConfig(sample_fraction=0.5, bin_events=50),
        device="cpu",
    )


def open_run(config, checkpoint=None, start=None, device=CPU):
    """A new run, a run resumed from a checkpoint, or a new run with a checkpoint's learned state (`start`)."""
    run = TrainingRun.create(config, list(range(PARTITIONS)), Collectives(), device)
    if checkpoint is None:
        attributes = len(config.stream.user_attributes)
        run.catalogue.apply(replace(POPULATION, attributes=attributes).catalogue())
    else:
        restore_checkpoint(run, checkpoint, Collectives())
    if start is not None:
        start_from(run, start, Collectives())
    log = LOG_WITH_ACTIONS if config.stream.negative_actions else LOG
    source = MemorySource(log, run.partitions, run.positions)
    batcher = Batcher(config.stream, source, run.users, run.catalogue, NoDeadLetters(), run.stream.admission)
    run._opened = (source, batcher, None)
    return run


def small_run(checkpoint=None, with_actions=False, table=None, **model):
    """`open_run` of `small_config`."""
    config = small_config(SIGNALS if with_actions else None, **model)
    config.table = table or config.table
    return open_run(config, checkpoint)


def encode_users(run, users):
    """The query vectors of users after all their events, float32 (Q, D)."""
    queries = QuerySide(run.model, run.table, run.catalogue, run.config.model)
    return queries.encode(query_batch(users, run.users, run.catalogue, run.config.stream.history_length))


def train_steps(run, steps):
    """Train like the worker's loop."""
    for _ in range(steps):
        batch = run.batcher.next_batch(QUOTA)
        run.ledger.add_set_aside(run.batcher.set_aside)
        prepared = run.train_step.prepare(batch, run.step)
        run.curve.add(run.events_trained, run.progressive.score(batch, prepared))
        run.train_step.train(prepared, run.step)
        run.ledger.add_batch(batch)
        run.events_trained += prepared.global_targets.events
        run.step += 1
