"""Kafka to packed batches: accounting, determinism and restarts."""

import numpy as np
import orjson
import pyarrow as pa
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from streaming.batches.batcher import Batcher
from streaming.catalogue.catalogue import Catalogue
from streaming.codecs.codec import ARROW, ENCODING_HEADER, encode_events
from streaming.dead_letters.writer import DeadLetterWriter
from streaming.events.partitioner import partition_of_users
from streaming.histories.history import UserStore
from streaming.sources.kafka_source import KafkaSource, end_offsets

QUOTA = 23


def _fill(config, rng, events):
    """Both wire forms, with some rows that cannot be used; returns how many of those."""
    bad = 0
    with KafkaProducer(bootstrap_servers=config.bootstrap_servers) as producer:
        users = rng.integers(0, 40, events)
        home = partition_of_users(users, 2)
        for p in (0, 1):
            mine = users[home == p]
            for start in range(0, len(mine), 31):
                stretch = mine[start : start + 31]
                items = [None if rng.random() < 0.1 else int(i) for i in rng.integers(0, 99, len(stretch))]
                bad += items.count(None)
                columns = {"user_id": stretch, "item_id": items, "timestamp_ms": np.arange(len(stretch)) + 1}
                value = encode_events(pa.RecordBatch.from_pydict(columns))
                headers = [(ENCODING_HEADER, ARROW)]
                producer.send(config.interactions_topic, value, partition=p, headers=headers)
        for n in range(20):
            event = {"user_id": n, "item_id": n, "timestamp_ms": 5} if n % 4 else {"user_id": n}
            bad += n % 4 == 0
            producer.send(config.interactions_topic, orjson.dumps(event), key=str(n).encode())
    return bad


class _Run:
    """A reader from given positions and histories to given ends."""

    def __init__(self, config, ends, positions=None, tables=()):
        self.source = KafkaSource(config, [0, 1], positions or {}, ends)
        self.users = UserStore(config.history_length, config.seen_length, partitions=2)
        for table in tables:
            self.users.load(table)
        self.dead_letters = DeadLetterWriter(config)
        self.batcher = Batcher(config, self.source, self.users, Catalogue(config), self.dead_letters)

    def batches(self, most=10_000):
        found = []
        while not self.source.finished and len(found) < most:
            assert self.batcher.wait_full(QUOTA, timeout_s=20)
            found.append(self.batcher.next_batch(QUOTA).to_pylist())
        self.dead_letters.flush()
        return found

    def stop(self):
        self.source.close()
        self.dead_letters.close()


def test_batches_are_the_same_however_it_reads_ahead_and_wherever_it_restarts(stream_factory):
    config = stream_factory(partitions=2, history_length=5, seen_length=9)
    bad = _fill(config, np.random.default_rng(0), 1500)
    ends = end_offsets(config, config.interactions_topic)
    whole = _Run(config, ends)
    expected = whole.batches()
    tables = [whole.users.to_table(p) for p in (0, 1)]
    whole.stop()
    assert whole.batcher.rows_dead == bad
    assert whole.batcher.rows_read == 1520
    assert sum(len(row["offset"]) for batch in expected for row in batch) == 1520 - bad

    config.buffered_rows_per_partition = 40
    first = _Run(config, ends)
    batches = first.batches(most=11)
    first.stop()
    positions = first.source.positions()
    assert any(position.row for position in positions.values())
    second = _Run(config, ends, positions, [first.users.to_table(p) for p in (0, 1)])
    batches += second.batches()
    second.stop()
    assert batches == expected
    assert [second.users.to_table(p) for p in (0, 1)] == tables
    assert first.batcher.rows_read + second.batcher.rows_read == 1520


def test_every_unusable_row_is_in_the_dead_letter_topic_under_its_position(stream_factory):
    config = stream_factory(partitions=2)
    bad = _fill(config, np.random.default_rng(1), 400)
    run = _Run(config, end_offsets(config, config.interactions_topic))
    run.batches()
    run.stop()
    with KafkaConsumer(bootstrap_servers=config.bootstrap_servers, auto_offset_reset="earliest") as consumer:
        consumer.assign([TopicPartition(config.dead_letters, 0)])
        keys = set()
        while found := consumer.poll(timeout_ms=1000, max_records=5000):
            keys |= {record.key for records in found.values() for record in records}
    assert len(keys) == bad == run.batcher.rows_dead
