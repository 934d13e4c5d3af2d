"""Dead letters on a real broker."""

import random
import socket
import time

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from streaming.config import StreamConfig
from streaming.dead_letters.writer import DeadLettersDelayed, DeadLettersLost, DeadLetterWriter
from streaming.events.dead_letter import DeadLetter
from streaming.events.faults import Reason


def _read(config, count):
    consumer = KafkaConsumer(bootstrap_servers=config.bootstrap_servers, auto_offset_reset="earliest")
    consumer.assign([TopicPartition(config.dead_letters, 0)])
    records = []
    deadline = time.monotonic() + 20
    while len(records) < count and time.monotonic() < deadline:
        records += [record for found in consumer.poll(timeout_ms=200).values() for record in found]
    consumer.close()
    return records


def test_a_letter_carries_its_reason_position_and_original_and_creates_its_topic(stream_factory):
    config = stream_factory(partitions=0)
    writer = DeadLetterWriter(config)
    writer.send(
        [DeadLetter(Reason("missing_field", "user_id is missing"), "interactions", 2, 17, 4, b'{"x":1}')]
    )
    writer.flush()
    writer.flush()
    writer.close()
    (record,) = _read(config, 1)
    assert record.key == b"interactions/2/17/4"
    assert record.value == b'{"x":1}'
    assert dict(record.headers) == {
        "reason": b"user_id is missing",
        "code": b"missing_field",
        "topic": b"interactions",
        "partition": b"2",
        "offset": b"17",
        "row": b"4",
    }


def test_many_letters_arrive_in_order_and_one_too_long_for_a_message_is_cut(stream_factory):
    config = stream_factory(max_message_bytes=10_000)
    writer = DeadLetterWriter(config)
    letters = [DeadLetter("bad", "t", 0, n, 0, b"v" * 10) for n in range(300)]
    writer.send([*letters, DeadLetter("long " * 1000, "t", 0, 999, 0, b"v" * 9_999)])
    writer.flush()
    writer.close()
    records = _read(config, 301)
    assert [record.key.decode() for record in records[:300]] == [f"t/0/{n}/0" for n in range(300)]
    assert dict(records[300].headers)["truncated"] == b"9999"
    assert len(records[300].value) == 10_000 - 4096


def test_nothing_is_connected_to_before_the_first_letter_is_flushed_and_brokers_that_are_away_lose_none():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        writer = DeadLetterWriter(StreamConfig(bootstrap_servers=address, connect_timeout_s=0.5))
        writer.send([])
        writer.flush()
        writer.close()
        writer.send([DeadLetter("bad", "t", 0, 0, 0, b"")])
        for _ in range(2):
            with pytest.raises(DeadLettersDelayed, match=f"1 dead letters.*{address}"):
                writer.flush()


def test_a_letter_that_the_topic_finds_too_long_is_cut_and_those_beside_it_are_not(
    stream_factory, topic_factory
):
    config = stream_factory(
        partitions=0, dead_letter_topic=topic_factory(configs={"max.message.bytes": "50000"})
    )
    writer = DeadLetterWriter(config)
    noise = random.Random(0).randbytes(200_000)  # not compressible
    writer.send(DeadLetter("bad", "t", 0, n, 0, noise[: 200_000 if n == 1 else 9_000]) for n in range(8))
    writer.flush()
    writer.close()
    found = {record.key: record for record in _read(config, 8)}
    assert len(found) == 8
    cut = found.pop(b"t/0/1/0")
    assert 10_000 < len(cut.value) < 50_000
    assert cut.value == noise[: len(cut.value)]
    assert dict(cut.headers)["truncated"] == b"200000"
    assert {len(record.value) for record in found.values()} == {9_000}


def test_a_letter_fits_into_the_shortest_message_that_the_settings_allow(stream_factory):
    config = stream_factory(partitions=0, max_message_bytes=1024)
    writer = DeadLetterWriter(config)
    writer.send([DeadLetter("\ud800" * 5000, "t" * 249, 10**9, 2**62, 2**31, b"x" * 5000)])
    writer.flush()
    writer.close()
    assert len(_read(config, 1)) == 1


def test_a_letter_that_is_refused_is_an_error(stream_factory, topic_factory, monkeypatch):
    flush = KafkaProducer.flush

    def late(producer, timeout=None):
        time.sleep(
            0.1
        )  # the client waits 20 ms for further letters before it sends, so this one is older than that
        return flush(producer, timeout)

    monkeypatch.setattr(KafkaProducer, "flush", late)
    # A topic that takes no message that is older than a millisecond.
    topic = topic_factory(configs={"message.timestamp.before.max.ms": "1"})
    config = stream_factory(partitions=0, dead_letter_topic=topic)
    writer = DeadLetterWriter(config)
    writer.send([DeadLetter("bad", "t", 0, 0, 0, b"")])
    with pytest.raises(
        DeadLettersLost, match=f"1 dead letters did not reach the topic '{config.dead_letters}'"
    ):
        writer.flush()
    writer.close()
