"""Small training runs without Ray: one worker loop in this process, or several through `tests.support.ranks`."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import torch
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from cluster.checkpoints.checkpoint import CheckpointStore
from cluster.collectives import Collectives
from cluster.config import FreshetConfig, ProgressiveConfig, TrainConfig
from cluster.training.worker import Worker
from model.config import ModelConfig
from streaming.config import StreamConfig, client_arguments
from streaming.events.partitioner import partition_of_users
from streaming.producing.producer import EventProducer

START_MS = 1_700_000_000_000


def config_of(stream: StreamConfig, storage: Path, **train: Any) -> FreshetConfig:
    """Settings of a model that trains in a moment, bounded, without versions during the run."""
    defaults = {"batch_events": 64, "bounded": True, "publish_every_s": 0, "checkpoint_every_s": 3600}
    return FreshetConfig(
        stream=stream,
        model=ModelConfig(dim=16, layers=1, heads=2, augmented_dim=8, uniform_negatives=20),
        train=TrainConfig(**(defaults | train)),
        progressive=ProgressiveConfig(sample_fraction=0.0),
        device="cpu",
        storage_path=str(storage),
    )


def train(rank: int, *configs: FreshetConfig) -> list[dict[str, Any]]:
    """Runs one after the other, each resuming from its storage; returns the summary of each."""
    return [Worker(config, Collectives(), torch.device("cpu")).train() for config in configs]


def events(count: int, first: int = 0, users: int = 40, items: int = 60, seed: int = 0) -> pa.RecordBatch:
    """Events of random users and items, a second apart; ids `e0`, `e1`, … count from `first`."""
    rng = np.random.default_rng([seed, first])
    at_N = np.arange(first, first + count)
    return pa.RecordBatch.from_pydict(
        {
            "user_id": rng.integers(1, users + 1, count),
            "item_id": rng.integers(1, items + 1, count),
            "timestamp_ms": START_MS + at_N * 1000,
            "event_id": [f"e{n}" for n in at_N],
        }
    )


def produce(stream: StreamConfig, batch: pa.RecordBatch, rows_per_message: int = 25) -> None:
    """Sends events, a given number per flush."""
    with EventProducer(stream) as producer:
        for start in range(0, batch.num_rows, rows_per_message):
            producer.send(batch.slice(start, rows_per_message))
            producer.flush()


def send_raw(stream: StreamConfig, messages: Iterable[Mapping[str, Any]]) -> None:
    """Sends messages as they are: `value` (bytes, or a dict as JSON), and `key`, `partition`, `headers`."""
    with KafkaProducer(**client_arguments(stream), max_request_size=1 << 24) as producer:
        for message in messages:
            value = message["value"]
            producer.send(
                stream.interactions_topic,
                value if isinstance(value, bytes) else orjson.dumps(value),
                key=message.get("key"),
                partition=message.get("partition"),
                headers=message.get("headers"),
            )
        producer.flush(timeout=20)


def records_of(stream: StreamConfig, topic: str) -> list[Any]:
    """Every readable record of a topic, in order."""
    with KafkaConsumer(**client_arguments(stream), isolation_level="read_committed") as consumer:
        places = [TopicPartition(topic, p) for p in sorted(consumer.partitions_for_topic(topic))]
        consumer.assign(places)
        ends = consumer.end_offsets(places)
        consumer.seek_to_beginning(*places)
        records: list[Any] = []
        while any(consumer.position(place) < ends[place] for place in places):
            records += [record for found in consumer.poll(timeout_ms=500).values() for record in found]
    return records


def reasons_of(stream: StreamConfig) -> list[str]:
    """Reasons of the dead letters, sorted."""
    return sorted(dict(r.headers)["reason"].decode() for r in records_of(stream, stream.dead_letters))


def users_of(partition: int, partitions: int, count: int = 1) -> list[int]:
    """The first user ids of a partition."""
    home_N = partition_of_users(np.arange(1, 1000), partitions)
    return (1 + np.flatnonzero(home_N == partition)[:count]).tolist()


def newest(config: FreshetConfig) -> Any:
    """The newest checkpoint of a run."""
    return CheckpointStore(Path(config.storage_path) / "checkpoints").newest()
