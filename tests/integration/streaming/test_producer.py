import time
from dataclasses import dataclass

import numpy as np
import orjson
import pyarrow as pa
import pytest
from kafka import KafkaConsumer, TopicPartition

from streaming.codecs.codec import decode_messages
from streaming.config import StreamConfig
from streaming.events.partitioner import partition_of_users
from streaming.events.validation import Place
from streaming.kafka.consumer import TopicMissing
from streaming.kafka.delivery import DeliveryError
from streaming.kafka.topics import create_topics
from streaming.local_broker.broker import LocalBroker
from streaming.producing.catalogue import publish_catalogue
from streaming.producing.producer import EventProducer
from streaming.producing.replay import replay


@dataclass(frozen=True)
class Events:
    interactions: pa.Table

    def batch(self) -> pa.RecordBatch:
        return self.interactions.combine_chunks().to_batches()[0]


def some_events(count: int, seed: int = 0) -> Events:
    random = np.random.default_rng(seed)
    table = pa.table(
        {
            "user_id": random.integers(1, 50, count),
            "item_id": np.arange(count),
            "timestamp_ms": 1000 * random.integers(1, 40, count),
            "value": random.random(count).astype(np.float32),
        }
    )
    return Events(table)


def messages_of(config: StreamConfig, topic: str) -> dict[int, list]:
    consumer = KafkaConsumer(bootstrap_servers=config.bootstrap_servers, auto_offset_reset="earliest")
    places = [TopicPartition(topic, p) for p in sorted(consumer.partitions_for_topic(topic))]
    consumer.assign(places)
    ends = consumer.end_offsets(places)
    messages = {place.partition: [] for place in places}
    while any(consumer.position(place) < ends[place] for place in places):
        for place, records in consumer.poll(timeout_ms=1000).items():
            messages[place.partition] += records
    consumer.close()
    return messages


def events_of(config: StreamConfig) -> dict[int, pa.RecordBatch]:
    topic = config.interactions_topic
    messages = messages_of(config, topic)
    decoded = {p: decode_messages(m, Place(topic, p, len(messages))) for p, m in messages.items() if m}
    assert not any(part.dead for part in decoded.values())
    return {p: part.rows for p, part in decoded.items()}


def items_of(config: StreamConfig) -> list[int]:
    return sorted(item for rows in events_of(config).values() for item in rows["item_id"].to_pylist())


@pytest.mark.parametrize("wire", ["arrow", "json"])
def test_replay_sends_every_event_once_to_its_users_partition(stream_factory, wire):
    config = stream_factory(partitions=3)
    result = replay(config, some_events(500), wire=wire)
    assert (result.events, result.partitions, result.reopened) == (500, 3, 0)
    assert items_of(config) == list(range(500))
    for partition, rows in events_of(config).items():
        assert set(partition_of_users(rows["user_id"].to_numpy(), 3)) == {partition}


def test_replay_keeps_time_order_within_each_partition(stream_factory):
    config = stream_factory(partitions=2)
    replay(config, some_events(1000))
    for rows in events_of(config).values():
        assert (np.diff(rows["timestamp_ms"].to_numpy()) >= 0).all()


def test_an_arrow_message_per_partition_and_flush_and_a_json_message_per_event(stream_factory):
    events = some_events(400)
    assert replay(stream_factory(partitions=2), events, wire="arrow").messages == 2
    assert replay(stream_factory(partitions=2), events, wire="json").messages == 400


def test_replay_takes_as_long_as_the_rate_says_and_tells_its_progress(stream_factory):
    seen: list[int] = []
    started = time.monotonic()
    replay(stream_factory(), some_events(300), duration_s=1.5, linger_ms=50, progress=seen.append)
    assert 1.4 < time.monotonic() - started < 6
    assert seen == sorted(seen)
    assert len(seen) > 5
    assert seen[-1] == 300


def test_large_batches_are_cut_into_messages_below_the_limit(stream_factory):
    config = stream_factory(partitions=1, max_message_bytes=20_000, fetch_max_bytes=20_000)
    assert replay(config, some_events(5000)).messages > 10
    assert items_of(config) == list(range(5000))


def test_the_catalogue_is_json_keyed_by_id(stream_config):
    items = pa.table({"item_id": [7], "title": ["Toy Story (1995)"], "categories": [["Animation", "Comedy"]]})
    users = pa.table({"user_id": [3, 4], "gender": ["M", None], "age_group": ["18-24", None]})
    assert publish_catalogue(stream_config, items, users) == (1, 2)
    [item] = messages_of(stream_config, stream_config.items_topic)[0]
    assert item.key == b"7"
    assert orjson.loads(item.value) == items.to_pylist()[0]
    found = messages_of(stream_config, stream_config.users_topic)[0]
    assert [orjson.loads(user.value) for user in found] == [
        {"user_id": 3, "attributes": {"gender": "M", "age_group": "18-24"}},
        {"user_id": 4, "attributes": {}},
    ]


def test_a_missing_topic_is_named_before_anything_is_sent(stream_factory):
    config = stream_factory(partitions=0)
    with pytest.raises(TopicMissing, match=config.interactions_topic):
        replay(config, some_events(10))


def test_nothing_is_lost_or_doubled_when_the_broker_is_killed_for_longer_than_the_delivery_timeout(tmp_path):
    events = some_events(600).batch()
    with LocalBroker(tmp_path) as broker:
        config = StreamConfig(bootstrap_servers=broker.bootstrap_servers, connect_timeout_s=2.0)
        create_topics(config, partitions=2)
        with EventProducer(config, delivery_timeout_s=1.5) as producer:
            producer.send(events.slice(0, 200))
            producer.flush()
            producer.send(events.slice(200, 200))  # may or may not reach the log before the kill
            broker.kill()
            producer.send(events.slice(400, 200))
            time.sleep(2.0)
            broker.start()
            assert producer.flush() == 600
            assert producer.reopened >= 1
        assert items_of(config) == list(range(600))


def test_messages_that_never_reach_a_broker_are_an_error_that_names_the_topic(tmp_path):
    events = some_events(10).batch()
    with LocalBroker(tmp_path) as broker:
        config = StreamConfig(bootstrap_servers=broker.bootstrap_servers, connect_timeout_s=0.5)
        create_topics(config, partitions=2)
        with pytest.raises(
            DeliveryError, match=r"[12] messages to the topic interactions .*bootstrap_servers"
        ):
            lose(broker, EventProducer(config, delivery_timeout_s=0.5, reopen_timeout_s=1.0), events)


def lose(broker: LocalBroker, producer: EventProducer, events: pa.RecordBatch) -> None:
    with producer:
        broker.kill()
        producer.send(events)
        producer.flush()
