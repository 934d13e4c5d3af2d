"""KafkaSource on a real broker: order, cuts, positions, ends, errors."""

import pickle
import socket
import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition

from streaming.codecs.codec import ARROW, ENCODING_HEADER, encode_events
from streaming.config import StreamConfig
from streaming.events.partitioner import partition_of_users
from streaming.events.position import Gap
from streaming.sources.kafka_source import (
    BrokerUnavailable,
    KafkaSource,
    Position,
    PositionLost,
    TopicMissing,
    end_offsets,
    partitions_of,
)
from tests.support.source_buffers import buffered


def _wait(condition, timeout_s=20):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


def _send(config, partitions, messages, rows, first=0):
    """Arrow messages of `rows` events each for every partition; returns their item ids, which count up."""
    sent = {p: [] for p in range(partitions)}
    users = np.arange(1000)
    home = partition_of_users(users, partitions)
    item = first
    with KafkaProducer(bootstrap_servers=config.bootstrap_servers, compression_type="lz4") as producer:
        for _ in range(messages):
            for p in range(partitions):
                items = np.arange(item, item + rows)
                item += rows
                batch = pa.RecordBatch.from_pydict(
                    {
                        "user_id": np.resize(users[home == p], rows),
                        "item_id": items,
                        "timestamp_ms": items + 1,
                    }
                )
                headers = [(ENCODING_HEADER, ARROW)]
                topic = config.interactions_topic
                producer.send(topic, encode_events(batch), partition=p, headers=headers)
                sent[p] += items.tolist()
    return sent


def _drain(source, quota):
    """Takes until the source is finished; item ids by partition, and the positions after every take."""
    items, positions = {p: [] for p in source.partitions}, []
    deadline = time.monotonic() + 30
    while not source.finished:
        assert time.monotonic() < deadline, f"not finished: {source.positions()}, {source.lag()}"
        source.wait(0.1)
        rows = source.take(dict.fromkeys(source.partitions, quota)).rows
        for p, item in zip(rows["partition"].to_pylist(), rows["item_id"].to_pylist(), strict=True):
            items[p].append(item)
        positions.append(source.positions())
    return items, positions


def test_a_bounded_read_takes_every_row_once_in_order_with_broker_times(stream_config):
    sent = _send(stream_config, 4, messages=6, rows=50)
    ends = end_offsets(stream_config, stream_config.interactions_topic)
    assert ends == dict.fromkeys(range(4), 6)
    _send(stream_config, 4, messages=2, rows=5, first=10_000)
    with KafkaSource(stream_config, [0, 1, 2, 3], {}, ends) as source:
        items, positions = _drain(source, quota=37)
    assert items == sent
    assert positions[-1] == dict.fromkeys(range(4), (6, 0))


def test_append_times_are_the_brokers(stream_config):
    before = time.time() * 1000 - 1000
    _send(stream_config, 4, messages=1, rows=3)
    with KafkaSource(stream_config, [0], {}, {0: 1}) as source:
        _wait(lambda: source.ready_rows()[0] == 3)
        times = source.take({0: 3}).rows["append_ms"].to_pylist()
    assert before < min(times) <= max(times) < time.time() * 1000 + 1000


@pytest.mark.parametrize("cut", [1, 19, 20, 21, 55])
def test_a_restart_at_the_position_of_any_cut_loses_and_repeats_nothing(stream_factory, cut):
    config = stream_factory(partitions=2)
    sent = _send(config, 2, messages=3, rows=20)
    with KafkaSource(config, [0, 1], {}, {0: 3, 1: 3}) as source:
        _wait(lambda: min(source.ready_rows().values()) >= cut)
        first = source.take({0: cut, 1: 5}).rows
        saved = source.positions()
    assert saved[0] == Position(cut // 20, cut % 20)
    with KafkaSource(config, [0, 1], saved, {0: 3, 1: 3}) as source:
        rest, _ = _drain(source, quota=7)
    taken = {p: first.filter(pc.equal(first["partition"], p))["item_id"].to_pylist() for p in (0, 1)}
    assert {p: taken[p] + rest[p] for p in (0, 1)} == sent


def test_control_records_and_aborted_transactions_at_the_end_do_not_keep_it_from_finishing(stream_factory):
    config = stream_factory(partitions=1)
    sent = _send(config, 1, messages=1, rows=4)
    producer = KafkaProducer(
        bootstrap_servers=config.bootstrap_servers, transactional_id=config.interactions_topic
    )
    producer.init_transactions()
    producer.begin_transaction()
    producer.send(config.interactions_topic, b"aborted", partition=0)
    producer.flush()
    producer.abort_transaction()
    producer.close()
    ends = end_offsets(config, config.interactions_topic)
    assert ends == {0: 3}
    with KafkaSource(config, [0], {}, ends) as source:
        items, positions = _drain(source, quota=100)
        assert source.lag() == {0: 0}
    assert items == sent
    assert positions[-1] == {0: (3, 0)}


def test_reading_ahead_stops_at_the_bound_and_goes_on_when_rows_are_taken(stream_factory):
    config = stream_factory(partitions=2, buffered_rows_per_partition=100)
    _send(config, 2, messages=100, rows=10)
    with KafkaSource(config, [0, 1], {}) as source:
        _wait(lambda: min(source.ready_rows().values()) >= 100)
        time.sleep(0.5)
        assert max(source.ready_rows().values()) <= 100
        assert source.lag() == {0: 100, 1: 100}
        assert source.lag_events() == 2000  # of messages, most of them not decoded yet, with ten events each
        taken = 0
        while taken < 2000:
            source.wait(1)
            taken += source.take({0: 50, 1: 50}).row_count
        assert source.lag() == {0: 0, 1: 0}
        assert source.lag_events() == 0
        assert not source.finished


def test_a_quota_beyond_the_bound_of_reading_ahead_fills_all_the_same(stream_factory):
    config = stream_factory(partitions=2, buffered_rows_per_partition=10)
    _send(config, 2, messages=60, rows=10)
    with KafkaSource(config, [0, 1], {}, {0: 60, 1: 60}) as source:
        assert source.wait_full(500, timeout_s=20)
        assert min(source.ready_rows().values()) >= 500
        source.take({0: 500, 1: 500})
        assert source.wait_full(500, timeout_s=20)
        assert source.ready_rows() == {0: 100, 1: 100}


def test_a_live_source_wakes_its_reader_when_something_arrives(stream_config):
    with KafkaSource(stream_config, [0, 1, 2, 3], {}) as source:
        assert not source.wait(0.3)
        _send(stream_config, 4, messages=1, rows=2)
        start = time.monotonic()
        _wait(lambda: source.wait(5) and sum(source.ready_rows().values()) == 8)
        assert time.monotonic() - start < 4


def test_no_broker_is_an_error_that_names_the_setting_within_the_timeout():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    config = StreamConfig(bootstrap_servers=address, connect_timeout_s=1.0)
    start = time.monotonic()
    with pytest.raises(BrokerUnavailable, match=r"stream\.bootstrap_servers") as caught:
        partitions_of(config, "interactions")
    assert time.monotonic() - start < 5
    assert address in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_missing_topic_is_an_error_and_is_not_created(stream_factory):
    config = stream_factory(partitions=0)
    for ask in (partitions_of, end_offsets):
        with pytest.raises(TopicMissing, match=r"stream\.interactions_topic"):
            ask(config, config.interactions_topic)
    with pytest.raises(TopicMissing, match="does not exist"):
        KafkaSource(config, [0], {})
    with KafkaAdminClient(bootstrap_servers=config.bootstrap_servers) as admin:
        assert config.interactions_topic not in admin.list_topics()


def test_a_missing_partition_is_an_error(stream_config):
    assert partitions_of(stream_config, stream_config.interactions_topic) == [0, 1, 2, 3]
    with pytest.raises(TopicMissing, match=r"has 4 partitions, without 7"):
        KafkaSource(stream_config, [0, 7], {})


def test_a_position_that_the_log_no_longer_holds_is_an_error_not_a_silent_gap(stream_factory):
    config = stream_factory(partitions=1)
    _send(config, 1, messages=5, rows=1)
    with pytest.raises(PositionLost, match="holds offsets 0 to 5, but reading should resume at 9"):
        KafkaSource(config, [0], {0: Position(9, 0)})
    with KafkaAdminClient(bootstrap_servers=config.bootstrap_servers) as admin:
        admin.delete_records({TopicPartition(config.interactions_topic, 0): 3})
    with pytest.raises(PositionLost, match="holds offsets 3 to 5, but reading should resume at 2"):
        KafkaSource(config, [0], {0: Position(2, 0)})
    with KafkaSource(config, [0], {}, {0: 5}) as source:
        assert source.positions() == {0: (3, 0)}


def test_a_source_of_no_partitions_is_finished_and_gives_nothing(stream_config):
    with KafkaSource(stream_config, [], {}, {}) as source:
        assert source.finished
        assert source.take({}).row_count == 0
        assert source.positions() == {}


def test_an_error_of_the_reading_thread_reaches_the_caller(stream_factory, monkeypatch):
    config = stream_factory(partitions=1)
    _send(config, 1, messages=1, rows=1)

    def explode(*_):
        raise ArithmeticError("inside the thread")

    monkeypatch.setattr("streaming.sources.partition_reader.decode_messages", explode)
    with KafkaSource(config, [0], {}) as source:
        with pytest.raises(ArithmeticError, match="inside the thread"):
            _wait(lambda: source.wait(5) and False)
        with pytest.raises(ArithmeticError, match="inside the thread"):
            source.take({0: 1})


def test_a_big_topic_takes_no_more_memory_than_the_settings_say(stream_factory):
    config = stream_factory(
        partitions=2,
        buffered_rows_per_partition=5_000,
        buffered_bytes_per_partition=200_000,
        max_message_bytes=65_536,
    )
    _send(config, 2, messages=300, rows=400)
    message_bytes = 10_096 + 160  # what Arrow makes of 400 rows, and what a header counts for
    with KafkaSource(config, [0, 1], {}, {0: 300, 1: 300}) as source:
        taken, most_rows, most_bytes = 0, 0, 0
        while not source.finished:
            source.wait_full(600, 0.05)
            held = buffered(source).values()
            most_rows = max(most_rows, *(rows for rows, _ in held))
            most_bytes = max(most_bytes, *(size for _, size in held))
            if taken == 0:
                time.sleep(1.0)  # a trainer that is slow
            taken += source.take({0: 600, 1: 600}).row_count
    assert taken == 240_000
    assert 4_000 < most_rows <= 5_000
    # Beside decoded messages, those of one poll wait: a quarter of the rows, at least 16 messages.
    assert 100_000 < most_bytes <= 200_000 + 16 * message_bytes


@pytest.mark.parametrize(("choice", "goes_on"), [("earliest", 3), ("latest", 5)])
def test_what_retention_removed_is_passed_over_by_choice_and_counted(stream_factory, choice, goes_on):
    config = stream_factory(partitions=1, lost_position=choice)
    _send(config, 1, messages=5, rows=2)
    with KafkaAdminClient(bootstrap_servers=config.bootstrap_servers) as admin:
        admin.delete_records({TopicPartition(config.interactions_topic, 0): 3})
    with KafkaSource(config, [0], {0: Position(1, 1)}) as source:
        assert source.positions() == {0: (goes_on, 0)}
        assert source.gaps == {0: [Gap(1, goes_on, 0)]}
        _send(config, 1, messages=1, rows=2)
        _wait(lambda: source.ready_rows()[0] == 2 * (6 - goes_on))


def test_a_log_that_is_trimmed_ahead_of_the_reader_is_passed_over_by_choice_and_counted(stream_factory):
    config = stream_factory(
        partitions=1, lost_position="earliest", buffered_rows_per_partition=2, max_message_bytes=16_384
    )
    sent = _send(config, 1, messages=30, rows=500)[0]
    with KafkaSource(config, [0], {}, {0: 30}) as source:
        _wait(lambda: source.ready_rows()[0] >= 500)
        with KafkaAdminClient(bootstrap_servers=config.bootstrap_servers) as admin:
            admin.delete_records({TopicPartition(config.interactions_topic, 0): 25})
        items, _ = _drain(source, quota=500)
        (gap,) = source.gaps[0]
        skipped = gap.messages
    assert gap.watermark_ms == max(items[0][:-2500]) + 1
    assert 0 < skipped < 25
    assert len(items[0]) == (30 - skipped) * 500
    assert items[0][-2500:] == sent[12_500:]
