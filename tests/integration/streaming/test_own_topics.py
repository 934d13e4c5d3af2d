"""Topics of another producer on a real broker: its names, nested objects, and ISO times, with no producer of ours."""

import io
import json

import fastavro
import orjson
import pytest
from kafka import KafkaProducer

from streaming.catalogue.reader import CatalogueReader
from streaming.checking.check import check_topics
from streaming.config import client_arguments
from streaming.dead_letters.replay import replay_letters
from streaming.dead_letters.writer import DeadLetterWriter
from streaming.events.dead_letter import DeadLetter
from streaming.sources.kafka_source import KafkaSource, end_offsets
from tests.support.fake_registry import FakeRegistry

OWN_TOPICS = {
    "fields": ["user_id=visitor.id", "item_id=product.sku", "timestamp_ms=occurred_at"],
    "timestamp_unit": "iso8601",
    "default_action": "view",
    "item_fields": ["item_id=sku", "title=name", "categories=tags"],
    "user_attributes": ["gender"],
    "user_fields": ["user_id=id", "gender=profile.sex"],
}


@pytest.fixture
def stream(stream_factory):
    return stream_factory(2, **OWN_TOPICS)


def _send(stream):
    with KafkaProducer(**client_arguments(stream)) as producer:
        for n in range(40):
            event = {
                "visitor": {"id": n % 5, "session": "s"},
                "product": {"sku": f"sku-{n % 7}"},
                "occurred_at": f"2026-01-31T06:00:{n:02d}.500+02:00",
            }
            producer.send(stream.interactions_topic, orjson.dumps(event), key=str(n % 5).encode())
        bad = {"visitor": {"id": 1}, "occurred_at": "2026-01-31T06:00:00Z"}
        producer.send(stream.interactions_topic, orjson.dumps(bad), key=b"1")
        item = {"sku": "sku-3", "name": "Boots", "tags": "shoes"}
        producer.send(stream.items_topic, orjson.dumps(item), key=b"sku-3")
        producer.send(stream.users_topic, orjson.dumps({"id": 1, "profile": {"sex": "F"}}), key=b"1")


def _read(stream):
    ends = end_offsets(stream, stream.interactions_topic)
    with KafkaSource(stream, [0, 1], {}, ends) as source:
        while not source.ended() >= {0, 1}:
            source.wait_full(1000, 30)
        return source.take({0: 1000, 1: 1000})


def test_mapped_topics_are_read_whole_and_their_letters_are_replayed(stream):
    _send(stream)
    taken = _read(stream)
    assert taken.rows.num_rows == 40
    assert set(taken.rows["action"].to_pylist()) == {"view"}
    assert min(taken.rows["timestamp_ms"].to_pylist()) == 1_769_832_000_500
    (letter,) = taken.dead
    assert letter.reason == "item_id is missing (stream.fields reads it from product.sku)"
    with CatalogueReader(stream) as reader:
        update = reader.read_to_end()
        assert reader.dead_letters == []
    assert update.items["title"].to_pylist() == ["Boots"]
    assert update.users["attributes"].to_pylist()[0][0] != 0

    _write(stream, letter)
    report = replay_letters(stream, lambda one: {**one.event, "product": {"sku": "sku-1"}})
    assert (report.replayed, report.unusable) == (1, {})
    again = _read(stream)
    assert again.rows.num_rows == 41
    assert [text for text in again.rows["event_id"].to_pylist() if text] == [
        f"dead-letter:{letter.key.decode()}"
    ]


def _write(stream, letter: DeadLetter):
    writer = DeadLetterWriter(stream)
    writer.send([letter])
    writer.flush()
    writer.close()


def test_avro_of_a_registry_is_read_from_all_topics_checked_and_its_letters_replayed_as_json(stream_factory):
    click = _record(
        "Click", visitor="string", sku="string", at={"type": "long", "logicalType": "timestamp-millis"}
    )
    item = _record("Item", sku="string", name="string")
    with FakeRegistry({1: {"schema": json.dumps(click)}, 2: {"schema": json.dumps(item)}}) as registry:
        stream = stream_factory(
            2,
            message_format="registry",
            schema_registry=registry.address,
            fields=["user_id=visitor", "item_id=sku", "timestamp_ms=at"],
            item_fields=["item_id=sku", "title=name"],
        )
        with KafkaProducer(**client_arguments(stream)) as producer:
            for n in range(30):
                event = {"visitor": f"u{n % 3}", "sku": f"sku-{n % 4}", "at": 1_769_832_000_000 + n}
                value, key = _framed(1, click, event), str(event["visitor"]).encode()
                producer.send(stream.interactions_topic, value, key=key)
            producer.send(stream.interactions_topic, b"\0\0\0\0\1\xff", key=b"u1")
            value = _framed(2, item, {"sku": "sku-3", "name": "Boots"})
            producer.send(stream.items_topic, value, key=b"sku-3")
        taken = _read(stream)
        assert taken.rows.num_rows == 30
        assert sorted(set(taken.rows["timestamp_ms"].to_pylist()))[0] == 1_769_832_000_000
        (letter,) = taken.dead
        assert letter.reason.startswith("does not fit the schema 1: ")
        with CatalogueReader(stream) as reader:
            assert reader.read_to_end().items["title"].to_pylist() == ["Boots"]
        checked = check_topics(stream, 100)
        assert checked.trains, checked.problems
        assert checked.profiles[0].formats == {"of a schema": 31}
        _write(stream, letter)
        again = {"visitor": "u1", "sku": "sku-1", "at": "2026-01-31T06:00:00Z"}
        report = replay_letters(stream, lambda one: again)
        assert (report.replayed, report.unusable) == (1, {})
        assert _read(stream).rows.num_rows == 31


def _record(_name, **fields):
    described = [{"name": field, "type": kind} for field, kind in fields.items()]
    return {"type": "record", "name": _name, "fields": described}


def _framed(number, schema, value):
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), value)
    return b"\0" + number.to_bytes(4, "big") + out.getvalue()
