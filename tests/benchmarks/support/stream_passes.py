"""The training events of a split as a topic, and the streaming trainer over it, once per pass.

What `fit` does to a data set at rest, the real worker does to a log: the same events in time order, the same size of
a step, the same learning rates, each pass started from what the one before has learned (`train.init_from`).
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from cluster.checkpoints.checkpoint import Checkpoint, CheckpointStore
from cluster.collectives import Collectives
from cluster.config import ProgressiveConfig
from cluster.device import resolve_device
from cluster.evaluation.config import OfflineConfig
from cluster.evaluation.protocol.data import Tables
from cluster.evaluation.protocol.interactions import Interactions
from cluster.evaluation.protocol.protocols import Split
from cluster.evaluation.systems.fitting import decay
from cluster.training.worker import Worker
from streaming.arrays import Int64Array
from streaming.config import StreamConfig
from streaming.kafka.topics import create_topics
from streaming.producing.catalogue import publish_catalogue
from streaming.producing.producer import EventProducer
from tests.support.ranks import run_on_ranks

_NEVER_S = 1e9
_PASS_TIMEOUT_S = 3600.0


def training_events(split: Split) -> pa.RecordBatch:
    """What is trained on, in time order; a user's events keep the order that the split gave to ties."""
    return log_of(split.interactions, split.train_U)


def log_of(events: Interactions, count_U: Int64Array | None = None) -> pa.RecordBatch:
    """The first `count_U` events of each user (default: all), in time order."""
    if events.negative_item_X.shape[0]:
        raise ValueError("explicit negatives of a split are not sent: leave stream.negative_* unset")
    length_U = events.length_U
    user_T = np.repeat(events.user_U, length_U)
    within_T = np.arange(user_T.shape[0]) - np.repeat(events.offset_U1[:-1], length_U)
    trained = np.flatnonzero(within_T < np.repeat(length_U if count_U is None else count_U, length_U))
    # Stable, and a user's events are already in order.
    ordered = trained[np.argsort(events.time_T[trained], kind="stable")]
    columns = {
        "user_id": user_T[ordered],
        "item_id": events.item_T[ordered],
        "timestamp_ms": events.time_T[ordered],
        "weight": events.weight_T[ordered],
    }
    return pa.RecordBatch.from_pydict(columns)


def fill_topics(stream: StreamConfig, tables: Tables, events: pa.RecordBatch, partitions: int) -> None:
    """Makes the topics; publishes the catalogue, then the events."""
    create_topics(stream, partitions=partitions)
    publish_catalogue(stream, tables.items, tables.users)
    with EventProducer(stream) as producer:
        producer.send(events)


def stream_passes(config: OfflineConfig, folder: Path, passes: int, ranks: int = 1) -> Iterator[Checkpoint]:
    """Reads the topic `passes` times, to its end as of then; yields the last checkpoint of each pass.

    Args:
        config: stream and model; rates, batch size and optimizer are those of `fit`.
        folder: each pass is a run of its own in it.
        passes: how often.
        ranks: one trains in this process, more in processes of their own.
    """
    start = ""
    for number in range(1, passes + 1):
        storage = folder / f"pass-{number}"
        one_pass = pass_config(config, storage, start, number, passes)
        if ranks == 1:
            train_rank(0, one_pass)
        else:
            run_on_ranks(train_rank, ranks, one_pass, timeout_s=_PASS_TIMEOUT_S)
        checkpoint = CheckpointStore(storage / "checkpoints").newest()
        assert checkpoint is not None, f"pass {number} left no checkpoint in {storage}"
        yield checkpoint
        start = str(storage)


def pass_config(config: OfflineConfig, storage: Path, start: str, number: int, passes: int) -> OfflineConfig:
    """The settings of one pass.

    The rates of a pass are constant: what `fit`'s schedule has in the middle of it. The step counts on from pass to
    pass, so that the warm-up happens once.
    """
    fit = config.fit
    share = decay(fit, 2 * number - 1, 2 * passes)
    train = replace(
        config.train,
        init_from=start,
        bounded=True,
        batch_events=fit.batch_targets,
        learning_rate=fit.learning_rate * share,
        row_learning_rate=fit.row_learning_rate * share,
        row_optimizer=fit.row_optimizer,
        warmup_steps=fit.warmup_steps,
        weight_decay=fit.weight_decay,
        gradient_clip=fit.gradient_clip,
        threads_per_worker=fit.threads,
        checkpoint_every_s=_NEVER_S,
        publish_every_s=0,
    )
    validation = ProgressiveConfig(sample_fraction=0.0, baselines=False)
    return replace(config, train=train, progressive=validation, storage_path=str(storage))


def train_rank(rank: int, config: OfflineConfig) -> None:
    """One rank of one pass."""
    device: torch.device = resolve_device(config.device, rank)
    Worker(config, Collectives(), device).train()
