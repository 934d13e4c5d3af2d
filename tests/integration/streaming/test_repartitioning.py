"""A topic of any key and partitioner is copied by user exactly once, also across crashes, and trained from."""

import zlib
from collections import Counter
from dataclasses import replace

import orjson
import pyarrow as pa
import pytest
from kafka import KafkaProducer

from cluster.audit.exactly_once import used_per_user, verify_exactly_once
from streaming.codecs.codec import ARROW, ENCODING_HEADER, encode_events
from streaming.config import client_arguments
from streaming.events.partitioner import partition_of_texts
from streaming.repartitioning.repartitioner import AnotherRepartitioner, Repartitioner, create_own_topic
from tests.support.worker_runs import START_MS, config_of, reasons_of, records_of, train

USERS, EVENTS = 9, 120


@pytest.fixture
def stream(stream_factory, topic_factory):
    """Reads a topic of three partitions; its own one does not exist yet."""
    made = stream_factory(1)
    own = f"{made.interactions_topic}.by-user"
    names = {"interactions_topic": own, "repartition_from": topic_factory(3, {"retention.ms": "-1"})}
    return replace(made, partition_by="repartition", **names)


def _event(n):
    return {
        "user_id": f"u{n % USERS}",
        "item_id": n % 20,
        "timestamp_ms": START_MS + n * 1000,
        "event_id": f"e{n}",
    }


def _send(stream, first=0, count=EVENTS):
    """Without a key, by CRC32 of the order, and some in Arrow messages of all users."""
    with KafkaProducer(**client_arguments(stream)) as producer:
        for n in range(first, first + count):
            key = f"order-{n}".encode()
            partition = zlib.crc32(key) % 3 if n % 2 else n % 3
            value = orjson.dumps(_event(n))
            producer.send(
                stream.repartition_from,
                value,
                key=key if n % 2 else None,
                partition=partition,
                timestamp_ms=START_MS + n,
            )
        rows = pa.RecordBatch.from_pylist([_event(first + count + n) for n in range(30)])
        headers = [(ENCODING_HEADER, ARROW)]
        producer.send(stream.repartition_from, encode_events(rows), headers=headers, partition=1)
        producer.send(stream.repartition_from, b"{broken", partition=2)


def _ids(stream):
    """Event ids in the own topic, each with the partition that it is in and the one that it belongs to."""
    found = []
    for record in records_of(stream, stream.interactions_topic):
        if dict(record.headers or ()).get(ENCODING_HEADER) == ARROW:
            rows = pa.ipc.open_stream(record.value).read_all().to_pylist()
        else:
            rows = [orjson.loads(record.value)] if record.value != b"{broken" else []
        for row in rows:
            home = int(partition_of_texts(pa.array([row["user_id"]]), 3)[0])
            found.append((row["event_id"], record.partition, home))
    return found


def test_each_event_is_copied_once_to_its_users_partition_across_crashes(stream, monkeypatch):
    _send(stream)
    assert create_own_topic(stream) == 3
    monkeypatch.setattr("streaming.repartitioning.repartitioner._RECORDS_AT_ONCE", 20)
    commit, calls = KafkaProducer.commit_transaction, []

    def crash(self):
        """Before the third commit, and after the fifth one is done."""
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("killed before the commit")
        commit(self)
        if len(calls) == 5:
            raise RuntimeError("killed after the commit")

    monkeypatch.setattr(KafkaProducer, "commit_transaction", crash)
    for _ in range(2):
        copying = Repartitioner(stream)
        with pytest.raises(RuntimeError, match="killed"):
            copying.run_to_end()
        copying.close()
    copying = Repartitioner(stream)
    copying.run_to_end()
    copying.close()
    found = _ids(stream)
    assert Counter(event for event, _, _ in found) == Counter(f"e{n}" for n in range(EVENTS + 30))
    assert all(partition == home for _, partition, home in found)
    (first,) = (r for r in records_of(stream, stream.interactions_topic) if b'"e0"' in r.value)
    assert (first.key, first.timestamp) == (b"u0", START_MS)


def test_a_run_trains_from_any_key_and_continues_where_copying_stopped(stream, tmp_path):
    config = config_of(replace(stream, max_future_s=0), tmp_path)
    _send(stream)
    train(0, config)
    assert sorted(used_per_user(config)["user_id"].to_pylist()) == [f"u{n}" for n in range(USERS)]
    _send(stream, first=1000)
    train(0, config)
    accounting = verify_exactly_once(config)
    assert accounting.exactly_once, accounting
    assert accounting.events_in_topic == 2 * (EVENTS + 30)
    assert accounting.events_trained == 2 * (EVENTS + 30)
    assert [reason[:8] for reason in reasons_of(stream)] == ["not JSON"] * 2


def test_a_second_repartitioner_fences_the_first(stream):
    create_own_topic(stream)
    _send(stream)
    first, second = Repartitioner(stream), Repartitioner(stream)
    first.run_to_end()
    second.run_to_end()
    _send(stream, first=500, count=10)
    with pytest.raises(AnotherRepartitioner, match="another run copies"):
        first.run_to_end()
    second.run_to_end()
    counts = Counter(event for event, _, _ in _ids(stream))
    assert set(counts.values()) == {1}
    assert len(counts) == EVENTS + 30 + 10 + 30
    first.close()
    second.close()
