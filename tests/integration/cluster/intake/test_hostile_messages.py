"""Single messages that once ended a run or lost other messages, on a real broker: each is one letter, or is used."""

from dataclasses import replace

import numpy as np
import orjson
import pyarrow as pa
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from cluster.audit.exactly_once import verify_exactly_once
from cluster.serving.recommender import Recommender
from streaming.codecs.codec import ARROW, ENCODING_HEADER, encode_events
from streaming.config import client_arguments
from streaming.dead_letters.replay import read_letters, replay_letters
from streaming.events.partitioner import partition_of_texts
from streaming.events.validation import LATEST_MS
from streaming.kafka.record_headers import accept_any_header_key
from tests.support.worker_runs import (
    START_MS,
    config_of,
    events,
    newest,
    produce,
    reasons_of,
    send_raw,
    train,
)

HEADERS = [(ENCODING_HEADER, ARROW)]


class _NoUtf8(str):
    """A header key that goes over the wire as bytes that are no UTF-8."""

    def encode(self, *_: object) -> bytes:
        return b"\xff\xfe" + super().encode()


def _event(user: object, n: int, **fields: object) -> dict[str, object]:
    return {"user_id": user, "item_id": 7, "timestamp_ms": START_MS + n * 1000, **fields}


def _home(user: str, partitions: int) -> int:
    return int(partition_of_texts(pa.array([user]), partitions)[0])


def test_what_one_message_holds_costs_that_message_or_row_and_never_the_run(stream_factory, tmp_path):
    stream = stream_factory(1)
    user, count = 3, 20
    rows = [_event(user, 300 + n, item_id=f"item {n}") for n in range(count)]
    views = pa.RecordBatch.from_pylist(rows).set_column(
        1, "item_id", pa.array([row["item_id"] for row in rows], pa.string_view())
    )
    too_large = views.set_column(0, "user_id", pa.array([user] * (count - 1) + [2**64 - 1], pa.uint64()))
    year_10000 = pa.array([253_402_300_800] * 2, pa.timestamp("s"))
    ignored = pa.RecordBatch.from_pylist([_event(user, 330), _event(None, 331)]).append_column(
        "seen", year_10000
    )
    deep = b'{"user_id":%s%s}' % (b"[" * 1000, b"]" * 1000)
    produce(stream, events(200))
    send_raw(
        stream,
        [
            {"value": _event(user, 210, item_id=900_001, weight=-1)},
            {"value": _event(user, 211, weight=0)},
            {"value": _event(user, 212, weight=1e30)},
            *({"value": _event(user, 213, weight=3e38)} for _ in range(4)),
            {"value": _event(user, 214, value=1e30)},
            {"value": _event(user, 215) | {"timestamp_ms": 2**62}},
            {"value": deep},
            {
                "value": _event(user, 216),
                "headers": [(_NoUtf8("trace"), b"1"), ("freshet-encoding", b"json")],
            },
            *({"value": _event(user, 217, event_id="", action="")} for _ in range(10)),
            {"value": encode_events(views), "headers": HEADERS},
            {"value": encode_events(too_large), "headers": HEADERS},
            {"value": encode_events(ignored), "headers": HEADERS},
        ],
    )
    produce(stream, events(100, first=400))
    config = config_of(stream, tmp_path)
    (progress,) = train(0, config)
    accounting = verify_exactly_once(config)
    assert accounting.exactly_once, accounting
    used = 200 + 100 + 1 + 10 + count + (count - 1) + 1
    assert (accounting.events_trained, accounting.events_duplicate, accounting.dead_letters) == (used, 0, 12)
    assert (progress["events_quarantined"], progress["dead_letters"]) == (0, 12)
    assert reasons_of(stream) == sorted(
        [
            "weight must be above 0 and at most 1000 (stream.max_weight), got -1",
            "weight must be above 0 and at most 1000 (stream.max_weight), got 0",
            "weight must be above 0 and at most 1000 (stream.max_weight), got 1e+30",
            *["weight must be above 0 and at most 1000 (stream.max_weight), got 3e+38"] * 4,
            "value must be from -1e+09 to 1e+09 (stream.max_value), got 1e+30",
            f"timestamp_ms must be before the year 10000, got {2**62}",
            "user_id must be an integer or a string, got [[[...]]]",
            "user_id must be an int64 or a text, got 18446744073709551615 (uint64)",
            "user_id is missing",
        ]
    )

    # The letter of a row can be mended and sent again.
    letters = {letter.reason: letter for letter in read_letters(stream)}
    broken = letters["user_id must be an int64 or a text, got 18446744073709551615 (uint64)"]
    assert broken.event == rows[-1] | {"user_id": 2**64 - 1}
    report = replay_letters(stream, lambda letter: letter.event, lambda letter: letter.key == broken.key)
    assert list(report.unusable.values()) == ["user_id must fit in 64 bits, got 18446744073709551615"]
    report = replay_letters(
        stream, lambda letter: letter.event | {"user_id": user}, lambda letter: letter.key == broken.key
    )
    assert report.replayed == 1
    heavy = replay_letters(stream, lambda letter: letter.event, lambda letter: "3e+38" in letter.reason)
    assert [next(iter(heavy.unusable.values())), heavy.replayed] == [
        "weight must be above 0 and at most 1000 (stream.max_weight), got 3e+38",
        0,
    ]
    train(0, config)
    assert verify_exactly_once(config).events_trained == used + 1


def test_a_header_key_that_is_no_utf8_costs_nobody_the_records_behind_it(stream_factory):
    stream = stream_factory(1)
    headers = [("plain", b"0"), (_NoUtf8("ü"), b""), (_NoUtf8(""), b"2"), ("näher", b"3")]
    sent = [{"value": _event(1, n), "headers": headers if n % 3 == 1 else [("n", b"1")]} for n in range(9)]
    for compression in (None, "gzip"):
        with KafkaProducer(
            **client_arguments(stream), compression_type=compression, linger_ms=200
        ) as producer:
            for message in sent:
                value = orjson.dumps(message["value"])
                producer.send(stream.interactions_topic, value, headers=message["headers"], partition=0)
    accept_any_header_key()
    at = TopicPartition(stream.interactions_topic, 0)
    with KafkaConsumer(**client_arguments(stream), auto_offset_reset="earliest") as consumer:
        consumer.assign([at])
        found: list[object] = []
        while len(found) < 18:
            found += consumer.poll(timeout_ms=500).get(at, [])
    assert [orjson.loads(record.value) for record in found] == [message["value"] for message in sent] * 2  # type: ignore[attr-defined]
    assert found[1].headers == [("plain", b"0"), ("????", b""), ("??", b"2"), ("näher", b"3")]  # type: ignore[attr-defined]


def test_a_user_of_digits_is_forgotten_however_the_id_was_written_and_a_stranger_is_said(
    stream_factory, tmp_path
):
    stream = stream_factory(2, user_attributes=["gender"])
    produce(stream, events(200, users=20))
    text = pa.RecordBatch.from_pylist([_event("1001", 210 + n, item_id=str(n)) for n in range(5)])
    produce(stream, text)
    home = _home("1001", 2)
    send_raw(
        stream,
        [{"value": _event(1001.0, 220), "partition": home}, {"value": _event(1001, 221), "key": b"1001"}],
    )
    config = config_of(stream, tmp_path, publish_every_s=1)
    with KafkaProducer(**client_arguments(stream)) as producer:
        tags = {"user_id": "1001", "attributes": {"gender": "F", "tags": ["a", ["b"]]}}
        producer.send(stream.users_topic, orjson.dumps(tags), key=b"1001")
        producer.send(stream.users_topic, None, key=b"nobody ever")
    (progress,) = train(0, config)
    # A run that reads the topics from their beginning knows nobody yet.
    assert progress["notice"] == ""
    assert progress["dead_letters"] == 0
    for written in (1001, "1001"):
        assert len(Recommender(config).history_titles(written, 20)) == 7
    with KafkaProducer(**client_arguments(stream)) as producer:
        for key in (b"1001", b"01001", b"424242"):
            producer.send(stream.users_topic, None, key=key)
        producer.send(stream.items_topic, None, key=b"no such item")
    produce(stream, events(50, first=300, users=20))
    (progress,) = train(0, config)
    assert Recommender(config).history_titles("1001", 20) == []
    notice = progress["notice"]
    assert notice.startswith("tombstones matched nothing: user '")
    assert {name for name in ("'01001'", "'424242'", "'no such item'", "'1001'") if name in notice} == {
        "'01001'",
        "'424242'",
        "'no such item'",
    }
    assert verify_exactly_once(config).exactly_once
    assert newest(config).step == progress["step"]


def test_what_validation_accepts_can_be_trained_at_the_very_edges(stream_factory, tmp_path):
    edges = [0, -1, 1, 2**63 - 1, -(2**63)]
    stream = stream_factory(
        1,
        max_future_s=0.0,
        action_weights=["tiny=1e-37", "huge=1000"],
        negative_below_value=1.0,
        duplicate_window=8,
    )
    odd = [
        {
            "user_id": user,
            "item_id": item,
            "timestamp_ms": time,
            "weight": weight,
            "action": action,
            "value": value,
        }
        for n, (user, item) in enumerate((user, item) for user in edges for item in edges)
        for time in (1, START_MS, LATEST_MS)
        for weight, action, value in (
            (1e-7, "tiny", 1e9),
            (1.0, "huge", None),
            (1000.0, "", 1.0),
            (0.5, "x", -1e9),
        )[n % 2 :: 2]
    ]
    # The same item alone, with weights whose sums round differently by item and in all.
    alone = [_event(5, n, item_id=77, weight=0.1 + n * 1e-3) for n in range(128)]
    send_raw(stream, [{"value": event} for event in alone])
    send_raw(stream, [{"value": event} for event in odd])
    produce(stream, events(100))
    config = config_of(stream, tmp_path, batch_events=32, publish_every_s=1)
    config = replace(
        config,
        progressive=replace(config.progressive, sample_fraction=1.0, served_cpu_share=0.0),
        table=replace(config.table, admit_after=2, expire_after_s=1e9, max_rows=50, sweep_every=2),
    )
    (progress,) = train(0, config)
    accounting = verify_exactly_once(config)
    assert accounting.exactly_once, accounting
    assert (progress["events_quarantined"], progress["dead_letters"]) == (0, 0)
    assert progress["rows_read"] == len(odd) + len(alone) + 100
    assert np.isfinite(list(progress["loss"].values())).all()
    assert len(Recommender(config).recommend(user_id=2**63 - 1, k=3)) == 3
