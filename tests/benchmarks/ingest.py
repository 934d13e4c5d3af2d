"""Kafka to training batches with histories joined, against bare kafka-python decoding the same messages.

    python tests/benchmarks/ingest.py [--json FILE] [--rows N] [--runs N] [--encoding json]

Both read the same topic of a broker of their own, in alternating runs in one process: the baseline polls and decodes
every message (Arrow to a RecordBatch, or a JSON object with orjson), ours goes all the way to packed batches
(validation, partition check, positions, history and attribute joins). CPU seconds are of all threads of this process;
the broker is another. The ratio is rows per CPU second, ours over the baseline's.
"""

import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from kafka import KafkaProducer, TopicPartition

sys.path.insert(0, str(Path(__file__).parents[2]))

from streaming.batches.batcher import Batcher
from streaming.catalogue.catalogue import Catalogue, CatalogueUpdate
from streaming.codecs.codec import ARROW, ENCODING_HEADER, encode_events
from streaming.config import StreamConfig
from streaming.dead_letters.writer import DeadLetterWriter
from streaming.events.partitioner import partition_of_users
from streaming.events.schema import EVENT_SCHEMA, ITEM_SCHEMA, USER_SCHEMA
from streaming.histories.history import UserStore
from streaming.kafka.consumer import open_consumer, seek
from streaming.kafka.topics import create_topics
from streaming.local_broker.broker import LocalBroker
from streaming.sources.kafka_source import KafkaSource, end_offsets
from tests.benchmarks.support.command import benchmark_parser, finish

REQUIRED_RATIO = {"arrow": 0.05, "json": 0.05}
REQUIRED_ROWS_PER_CPU_S = {"arrow": 200_000, "json": 0}


@dataclass
class Settings:
    """What was measured."""

    rows: int = 400_000
    encoding: str = "arrow"
    rows_per_message: int = 1000
    users: int = 20_000
    items: int = 50_000
    partitions: int = 4
    quota_per_partition: int = 4096
    runs: int = 5
    seed: int = 0


@dataclass
class Run:
    """One pass over the topic."""

    rows: int
    cpu_s: float
    wall_s: float

    @property
    def rows_per_cpu_s(self) -> float:
        return self.rows / self.cpu_s


def main() -> int:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--rows", type=int, default=Settings.rows)
    parser.add_argument("--runs", type=int, default=Settings.runs)
    parser.add_argument("--encoding", choices=("arrow", "json"), default=Settings.encoding)
    arguments = parser.parse_args()
    settings = Settings(rows=arguments.rows, encoding=arguments.encoding, runs=arguments.runs)
    with tempfile.TemporaryDirectory() as folder, LocalBroker(Path(folder) / "kafka") as broker:
        result = measure(StreamConfig(bootstrap_servers=broker.bootstrap_servers), settings)
    return finish(result, arguments.json)


def measure(config: StreamConfig, settings: Settings) -> dict[str, Any]:
    """Both sides on topics that do not exist yet."""
    create_topics(config, partitions=settings.partitions)
    produce(config, settings)
    return compare(config, settings)


def produce(config: StreamConfig, settings: Settings) -> None:
    """Fills the topic: Arrow messages of many rows or JSON of one, lz4, users by popularity."""
    rng = np.random.default_rng(settings.seed)
    users = (rng.pareto(1.2, settings.rows) * settings.users / 20).astype(np.int64) % settings.users
    home = partition_of_users(users, settings.partitions)
    limits = {"batch_size": 1 << 20, "max_request_size": config.max_message_bytes, "linger_ms": 5}
    producer = KafkaProducer(bootstrap_servers=config.bootstrap_servers, compression_type="lz4", **limits)
    for partition in range(settings.partitions):
        mine = users[home == partition]
        for start in range(0, len(mine), settings.rows_per_message):
            events = event_batch(mine[start : start + settings.rows_per_message], rng, settings)
            headers = [(ENCODING_HEADER, ARROW)] if settings.encoding == "arrow" else []
            values = [encode_events(events)] if settings.encoding == "arrow" else json_events(events)
            for value in values:
                producer.send(config.interactions_topic, value, partition=partition, headers=headers)
    producer.flush()
    producer.close()


def event_batch(users: np.ndarray, rng: np.random.Generator, settings: Settings) -> pa.RecordBatch:
    n = len(users)
    columns = {
        "user_id": users,
        "item_id": rng.integers(1, settings.items, n),
        "timestamp_ms": 1_700_000_000_000 + np.sort(rng.integers(0, 86_400_000, n)),
        "action": pa.array(["click"] * n),
        "weight": pa.nulls(n, pa.float32()),
        "value": rng.integers(1, 6, n).astype(np.float32),
        "event_id": pa.nulls(n, pa.string()),
    }
    return pa.RecordBatch.from_pydict(columns, schema=EVENT_SCHEMA)


def json_events(events: pa.RecordBatch) -> list[bytes]:
    """A JSON object for each event, without the fields that it lacks."""
    return [
        orjson.dumps({name: value for name, value in event.items() if value is not None})
        for event in events.to_pylist()
    ]


def compare(config: StreamConfig, settings: Settings) -> dict[str, Any]:
    """Alternating runs, after one of each that compiles and warms up."""
    ends = end_offsets(config, config.interactions_topic)
    users = attributes_of(settings)
    sides: dict[str, Callable[[], int]] = {
        "baseline": lambda: bare_kafka_python(config, ends, settings.encoding),
        "ours": lambda: to_training_batches(config, ends, users, settings),
    }
    for side in sides.values():
        side()
    runs = {name: [] for name in sides}
    for _ in range(settings.runs):
        for name, side in sides.items():
            runs[name].append(timed(side))
    assert {run.rows for found in runs.values() for run in found} == {settings.rows}, "rows were lost"
    ratios = [
        o.rows_per_cpu_s / b.rows_per_cpu_s for o, b in zip(runs["ours"], runs["baseline"], strict=True)
    ]
    per_cpu_s = {name: statistics.median(r.rows_per_cpu_s for r in found) for name, found in runs.items()}
    ratio = statistics.median(ratios)
    return {
        "name": "ingest",
        "baseline": f"bare kafka-python 3: poll and decode each message ({settings.encoding})",
        "ratio": round(ratio, 4),
        "ratios": [round(r, 4) for r in ratios],
        "required_ratio": REQUIRED_RATIO[settings.encoding],
        "rows_per_cpu_s": round(per_cpu_s["ours"]),
        "rows_per_cpu_s_baseline": round(per_cpu_s["baseline"]),
        "required_rows_per_cpu_s": REQUIRED_ROWS_PER_CPU_S[settings.encoding],
        "passed": ratio >= REQUIRED_RATIO[settings.encoding]
        and per_cpu_s["ours"] >= REQUIRED_ROWS_PER_CPU_S[settings.encoding],
        "wall_s": {name: [round(r.wall_s, 3) for r in found] for name, found in runs.items()},
        "cpu_s": {name: [round(r.cpu_s, 3) for r in found] for name, found in runs.items()},
        "settings": asdict(settings)
        | {"compression": "lz4", "check_crcs": config.check_crcs, "history_length": config.history_length}
        | {"seen_length": config.seen_length, "python": platform.python_version()},
    }


def timed(side: Callable[[], int]) -> Run:
    wall, cpu = time.perf_counter(), time.process_time()
    rows = side()
    return Run(rows, time.process_time() - cpu, time.perf_counter() - wall)


def bare_kafka_python(config: StreamConfig, ends: dict[int, int], encoding: str) -> int:
    """Polls and decodes; the consumer has the same settings as ours."""
    consumer = open_consumer(config)
    consumer.assign([TopicPartition(config.interactions_topic, p) for p in ends])
    seek(consumer, {TopicPartition(config.interactions_topic, p): None for p in ends})
    rows, missing = 0, sum(ends.values())
    while missing:
        for records in consumer.poll(timeout_ms=100).values():
            missing -= len(records)
            if encoding == "json":
                rows += sum(bool(orjson.loads(record.value)) for record in records)
                continue
            for record in records:
                with pa.ipc.open_stream(record.value) as reader:
                    rows += sum(batch.num_rows for batch in reader)
    consumer.close()
    return rows


def to_training_batches(
    config: StreamConfig, ends: dict[int, int], users: CatalogueUpdate, settings: Settings
) -> int:
    """The whole way, into batches that nobody trains on."""
    catalogue = Catalogue(config)
    catalogue.apply(users)
    store = UserStore(config.history_length, config.seen_length)
    targets = 0
    with KafkaSource(config, sorted(ends), {}, ends) as source:
        batcher = Batcher(config, source, store, catalogue, DeadLetterWriter(config))
        while not source.finished:
            batcher.wait_full(settings.quota_per_partition, 10.0)
            batch = batcher.next_batch(settings.quota_per_partition)
            targets += len(batch["offset"].flatten())
    return targets


def attributes_of(settings: Settings) -> CatalogueUpdate:
    """Three attributes for every user."""
    ids = np.arange(settings.users)
    attributes = pa.FixedSizeListArray.from_arrays(pa.array(np.repeat(ids % 20 + 1, 3)), 3)
    columns = [pa.array(ids), attributes.cast(USER_SCHEMA.field(1).type), pa.array(np.zeros(len(ids), bool))]
    return CatalogueUpdate(ITEM_SCHEMA.empty_table(), pa.table(columns, schema=USER_SCHEMA))


if __name__ == "__main__":
    sys.exit(main())
