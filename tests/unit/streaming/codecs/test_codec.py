"""Both wire forms into columns, and what cannot be used into dead letters."""

import time
import zlib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import orjson
import pyarrow as pa
import pytest
import xxhash

from streaming.codecs import json_events
from streaming.codecs.codec import ARROW, ENCODING_HEADER, decode_messages, encode_events
from streaming.events.faults import FAULTS
from streaming.events.partitioner import key_hashes_of_users, partition_of_texts, partition_of_users
from streaming.events.schema import DECODED_SCHEMA, EVENT_SCHEMA
from streaming.events.validation import Place
from tests.support.bombs import wide_json

WHOLE = Place("interactions", 0, 1)
BOUNDED = Place(
    "interactions", 0, 1, max_weight=10, max_value=5, weight_of_action={"buy": 4.0, "skim": 1e-38}
)


def _arrow(offset, batch, timestamp=7):
    value = batch if isinstance(batch, bytes) else encode_events(batch)
    headers = [(ENCODING_HEADER, ARROW)]
    return SimpleNamespace(offset=offset, timestamp=timestamp, value=value, headers=headers)


def _json(offset, event, headers=None):
    value = event if isinstance(event, bytes | None) else orjson.dumps(event)
    return SimpleNamespace(offset=offset, timestamp=offset + 1000, value=value, headers=headers)


def _events(**columns):
    full = {"user_id": [1, 2], "item_id": [3, 4], "timestamp_ms": [10, 20]} | columns
    return pa.RecordBatch.from_pydict(full)


def _signed(text):
    return int(np.uint64(xxhash.xxh64_intdigest(text.encode())).astype(np.int64))


def test_arrow_messages_keep_order_positions_and_broker_time():
    first = _events(weight=pa.array([None, 2.5], pa.float32()), action=["click", None])
    decoded = decode_messages([_arrow(5, first, 70), _arrow(9, _events(), 90)], WHOLE)
    assert decoded.dead == []
    assert decoded.rows.schema == DECODED_SCHEMA
    rows = decoded.rows.to_pydict()
    assert rows["offset"] == [5, 5, 9, 9]
    assert rows["row"] == [0, 1, 0, 1]
    assert rows["append_ms"] == [70, 70, 90, 90]
    assert rows["weight"] == [1.0, 2.5, 1.0, 1.0]
    assert rows["action"] == ["click", None, None, None]
    assert rows["user_id"] == [1, 2, 1, 2]


def test_unusable_rows_of_an_arrow_message_are_dead_letters_and_the_rest_survives():
    batch = pa.RecordBatch.from_pydict(
        {
            "user_id": [1, None, 1, 1, 1, 1],
            "item_id": pa.array([1, 1, None, 1, 1, 1], pa.int32()),
            "timestamp_ms": [5, 5, 5, None, 0, 5],
            "weight": [1.0, 1.0, 1.0, 1.0, 1.0, float("inf")],
        }
    )
    decoded = decode_messages([_arrow(3, batch)], WHOLE)
    assert decoded.rows["row"].to_pylist() == [0]
    assert decoded.row_count == 6
    assert [(letter.offset, letter.row, letter.reason) for letter in decoded.dead] == [
        (3, 1, "user_id is missing"),
        (3, 2, "item_id is missing"),
        (3, 3, "timestamp_ms is missing"),
        (3, 4, "timestamp_ms must be positive, got 0"),
        (3, 5, "weight must be finite, got inf"),
    ]
    assert orjson.loads(decoded.dead[0].value) == {
        "user_id": None,
        "item_id": 1,
        "timestamp_ms": 5,
        "weight": 1.0,
    }


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        (b"no arrow", "not a usable Arrow message"),
        (b"", "not a usable Arrow message"),
        (encode_events(_events())[:-60], "not a usable Arrow message"),
        (pa.RecordBatch.from_pydict({"user_id": [1], "item_id": [1]}), "column timestamp_ms is missing"),
        (
            pa.RecordBatch.from_arrays(
                [pa.array([1])] * 4, ["user_id", "item_id", "timestamp_ms", "item_id"]
            ),
            "column item_id occurs twice",
        ),
    ],
)
def test_an_arrow_message_that_cannot_be_read_is_one_dead_letter_with_its_bytes(batch, reason):
    message = _arrow(4, batch)
    decoded = decode_messages([_arrow(3, _events()), message, _arrow(5, _events())], WHOLE)
    assert decoded.rows["offset"].to_pylist() == [3, 3, 5, 5]
    (letter,) = decoded.dead
    assert (letter.offset, letter.row, letter.value) == (4, 0, message.value)
    assert reason in letter.reason


def test_rows_of_another_partitions_users_are_dead_letters():
    users = np.arange(40)
    home = partition_of_users(users, 4)
    batch = _events(user_id=users, item_id=users, timestamp_ms=users + 1)
    decoded = decode_messages([_arrow(0, batch)], Place("interactions", 2, 4))
    assert decoded.rows["user_id"].to_pylist() == users[home == 2].tolist()
    assert [letter.row for letter in decoded.dead] == np.flatnonzero(home != 2).tolist()
    assert decoded.dead[0].reason.startswith(f"the user belongs to partition {home[home != 2][0]} of 4")


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_text_ids_are_hashed_and_partitioned_by_their_text(kind):
    users = pa.array(["ann", "bob", "zoë"])
    home = partition_of_texts(users, 4)
    batch = _events(
        user_id=users.cast(kind), item_id=pa.array(["a", "b", ""]).cast(kind), timestamp_ms=[1, 2, 3]
    )
    decoded = [decode_messages([_arrow(0, batch)], Place("t", p, 4)) for p in range(4)]
    kept = {user for d in decoded for user in d.rows["user_id"].to_pylist()}
    assert kept == {_signed("ann"), _signed("bob")}
    assert decoded[home[0]].rows["user_id"].to_pylist()[0] == _signed("ann")
    assert [letter.reason for letter in decoded[home[2]].dead if letter.row == 2] == ["item_id is missing"]


def test_json_messages_become_the_same_columns():
    messages = [
        _json(0, {"user_id": 1, "item_id": "x", "timestamp_ms": 5, "value": 4, "extra": [1]}),
        _json(2, {"user_id": "u", "item_id": -3, "timestamp_ms": 6, "weight": 0.5, "event_id": "e"}),
    ]
    decoded = decode_messages(messages, WHOLE)
    assert decoded.dead == []
    assert decoded.rows.schema == DECODED_SCHEMA
    rows = decoded.rows.to_pydict()
    assert rows["user_id"] == [1, _signed("u")]
    assert rows["item_id"] == [_signed("x"), -3]
    assert rows["weight"] == [1.0, 0.5]
    assert rows["value"] == [4.0, None]
    assert rows["event_id"] == [None, "e"]
    assert rows["append_ms"] == [1000, 1002]
    assert rows["row"] == [0, 0]


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (b"{", "not JSON"),
        (b'{"user_id":1,"item_id":1,"timestamp_ms":1},{"user_id":1}', "not JSON"),
        (None, "the message is empty"),
        (b"[1]", "an event must be a JSON object, not list"),
        (b'{"user_id":NaN,"item_id":1,"timestamp_ms":1}', "not JSON"),
        ({"item_id": 1, "timestamp_ms": 1}, "user_id is missing"),
        ({"user_id": 1, "item_id": "", "timestamp_ms": 1}, "item_id is missing"),
        ({"user_id": True, "item_id": 1, "timestamp_ms": 1}, "must be an integer or a string, got True"),
        ({"user_id": 1, "item_id": 2**63, "timestamp_ms": 1}, "item_id must fit in 64 bits"),
        (b'{"user_id":99999999999999999999,"item_id":1,"timestamp_ms":1}', "user_id must be an integer"),
        ({"user_id": 1, "item_id": 1}, "timestamp_ms is missing"),
        ({"user_id": 1, "item_id": 1, "timestamp_ms": 1.5}, "timestamp_ms must be a 64-bit integer, got 1.5"),
        ({"user_id": 1, "item_id": 1, "timestamp_ms": -4}, "timestamp_ms must be positive, got -4"),
        ({"user_id": 1, "item_id": 1, "timestamp_ms": 1, "weight": "1"}, "weight must be a number"),
        ({"user_id": 1, "item_id": 1, "timestamp_ms": 253_402_300_800_000}, "must be before the year 10000"),
        ({"user_id": 1, "item_id": 1.5, "timestamp_ms": 1}, "must be an integer or a string, got 1.5"),
        ({"user_id": 2.0**60, "item_id": 1, "timestamp_ms": 1}, "must be an integer or a string, got 1.15"),
        ({"user_id": 1, "item_id": 1, "timestamp_ms": 1, "weight": 1e300}, "weight must be finite"),
        ({"user_id": 1, "item_id": 1, "timestamp_ms": 1, "weight": 1e39}, "weight must be finite"),
        ({"user_id": 1, "item_id": 1, "timestamp_ms": 1, "weight": 0}, "weight must be above 0"),
        ({"user_id": 1, "item_id": 1, "timestamp_ms": 1, "weight": -1}, "weight must be above 0"),
        ({"user_id": 1, "item_id": 1, "timestamp_ms": 1, "weight": 1e-50}, "weight must be above 0"),
        ({"user_id": 1, "item_id": 1, "timestamp_ms": 1, "value": 1e300}, "value must be finite"),
        (b'{"user_id":' + b"[" * 1000 + b"]" * 1000 + b"}", "must be an integer or a string, got [["),
        (
            b'{"user_id":1,"item_id":1,"timestamp_ms":1,"action":' + b'{"a":' * 900 + b"1" + b"}" * 901,
            "action must",
        ),
        (b"[" * 2000, "not JSON"),
        (b'{"user_id":"\\ud800","item_id":1,"timestamp_ms":1}', "not JSON"),
        (b'{"user_id":"\xff","item_id":1,"timestamp_ms":1}', "not JSON"),
        ({"user_id": 1, "item_id": 1, "timestamp_ms": 1, "action": 3}, "action must be a string"),
    ],
)
def test_an_unusable_json_message_is_a_dead_letter_that_says_why(event, reason):
    fine = {"user_id": 1, "item_id": 1, "timestamp_ms": 1}
    decoded = decode_messages([_json(0, fine), _json(1, event), _json(2, fine)], WHOLE)
    assert decoded.rows["offset"].to_pylist() == [0, 2]
    (letter,) = decoded.dead
    assert reason in letter.reason
    assert (letter.topic, letter.partition, letter.offset, letter.row) == ("interactions", 0, 1, 0)
    assert letter.value == (orjson.dumps(event) if isinstance(event, dict) else event or b"")


def test_fields_that_nobody_asked_for_cost_a_long_message_neither_time_nor_memory():
    started = time.process_time()
    decoded = decode_messages([_json(n, wide_json(1, 3)) for n in range(3)], WHOLE)
    assert time.process_time() - started < 3.0  # 5 s and more while the collector looked at every list
    assert decoded.rows["offset"].to_pylist() == [0, 1, 2]
    not_an_object = wide_json(1, 1).partition(b'"more":')[2][:-1]
    assert decode_messages([_json(0, not_an_object)], WHOLE).dead[0].reason.endswith("object, not list")


def test_both_forms_may_alternate_and_an_unknown_one_is_refused():
    odd = _json(4, {"user_id": 1}, headers=[(ENCODING_HEADER, b"avro")])
    fine = {"user_id": 1, "item_id": 1, "timestamp_ms": 1}
    decoded = decode_messages([_json(0, fine), _arrow(2, _events()), odd, _json(5, fine)], WHOLE)
    assert decoded.rows["offset"].to_pylist() == [0, 2, 2, 5]
    assert decoded.dead[0].reason == "freshet-encoding must be json or arrow, got b'avro'"


def test_messages_without_rows_decode_to_nothing():
    empty = EVENT_SCHEMA.empty_table().combine_chunks()
    message = _arrow(
        0, pa.RecordBatch.from_arrays([pa.array([], f.type) for f in empty.schema], schema=empty.schema)
    )
    assert decode_messages([message], WHOLE).row_count == 0
    assert decode_messages([], WHOLE).row_count == 0


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"weight": 10}, None),
        ({"weight": 10.5}, "weight must be above 0 and at most 10 (stream.max_weight), got 10.5"),
        ({"weight": 2.5, "action": "buy"}, None),
        ({"action": "buy"}, None),
        (
            {"weight": 3, "action": "buy"},
            "weight times the 4 of its action (stream.action_weights) must be above 0 and at most 10 "
            "(stream.max_weight), got 3",
        ),
        ({"weight": 1e-20, "action": "skim"}, "weight times the 1e-38 of its action"),
        ({"value": -5}, None),
        ({"value": 5.5}, "value must be from -5 to 5 (stream.max_value), got 5.5"),
        ({"value": -5.5}, "value must be from -5 to 5 (stream.max_value), got -5.5"),
    ],
)
def test_weights_and_values_are_judged_by_their_bounds_in_both_forms(fields, reason):
    event = {"user_id": 1, "item_id": 1, "timestamp_ms": 1, **fields}
    for message in (_json(0, event), _arrow(0, pa.RecordBatch.from_pylist([event]))):
        decoded = decode_messages([message], BOUNDED)
        assert [letter.reason[: len(reason or "")] for letter in decoded.dead] == ([reason] if reason else [])


@pytest.mark.parametrize("weight", [float("nan"), float("-inf"), -0.0, 3e38])
def test_no_weight_that_training_could_not_bear_comes_through_an_arrow_message(weight):
    decoded = decode_messages([_arrow(0, _events(weight=[weight, 1.0]))], BOUNDED)
    assert decoded.rows["row"].to_pylist() == [1]
    assert "weight must be" in decoded.dead[0].reason


def test_empty_texts_are_missing_ones_in_both_forms():
    fields = {"action": ["", "click"], "event_id": ["", "e"]}
    said = [{"action": "", "event_id": ""}, {"action": "click", "event_id": "e"}]
    as_json = [_json(n, {"user_id": 1, "item_id": 1, "timestamp_ms": 1, **one}) for n, one in enumerate(said)]
    whole = _events(**fields).cast(pa.schema([EVENT_SCHEMA.field(n) for n in (0, 1, 2, 3, 6)]))
    for messages in (as_json, [_arrow(0, _events(**fields))], [_arrow(0, whole)]):
        rows = decode_messages(messages, WHOLE).rows
        assert rows["action"].to_pylist() == [None, "click"]
        assert rows["event_id"].to_pylist() == [None, "e"]


def test_a_text_of_digits_is_the_integer_in_both_forms():
    as_json = [_json(0, {"user_id": "1001", "item_id": 7.0, "timestamp_ms": 1e3})]
    as_text = [_arrow(0, _events(user_id=["1001", "007"], item_id=[7, 7], timestamp_ms=[1000, 1]))]
    for messages in (as_json, as_text):
        rows = decode_messages(messages, WHOLE).rows
        assert [rows[name][0].as_py() for name in ("user_id", "item_id", "timestamp_ms")] == [1001, 7, 1000]
        assert rows["key_hash"][0].as_py() == key_hashes_of_users(np.array([1001]))[0]
    assert rows["user_id"][1].as_py() == _signed("007")


def test_what_does_not_fit_costs_its_row_alone_and_the_letter_can_be_edited_and_sent_again():
    batch = pa.RecordBatch.from_pydict(
        {
            "user_id": pa.array([1, 2**64 - 1, 3, 4], pa.uint64()),
            "item_id": pa.array(["a", "b", None, "d"], pa.string_view()),
            "timestamp_ms": pa.array([1000, 2000, 3000, 4000], pa.timestamp("us")),
            "weight": pa.array(["2.5", "1", "1", "1"]).cast(pa.decimal128(5, 2)),
            "action": pa.array([b"click", b"x", b"y", b"\xff\xfe"], pa.binary()),
        }
    )
    decoded = decode_messages([_arrow(3, _events()), _arrow(4, batch), _arrow(5, _events())], WHOLE)
    assert decoded.rows["offset"].to_pylist() == [3, 3, 4, 5, 5]
    kept = decoded.rows.slice(2, 1).to_pylist()[0]
    assert (kept["user_id"], kept["item_id"], kept["timestamp_ms"]) == (1, _signed("a"), 1)
    assert (kept["weight"], kept["action"]) == (2.5, "click")
    assert [(letter.row, letter.reason) for letter in decoded.dead] == [
        (1, "user_id must be an int64 or a text, got 18446744073709551615 (uint64)"),
        (2, "item_id is missing"),
        (3, "action must be a text, got b'\\xff\\xfe' (binary)"),
    ]
    original = orjson.loads(decoded.dead[0].value)
    assert original == {"user_id": 2**64 - 1, "item_id": "b", "timestamp_ms": 2, "weight": 1, "action": "x"}
    assert decode_messages([_json(0, original | {"user_id": 2})], WHOLE).rows["timestamp_ms"].to_pylist() == [
        2
    ]
    assert orjson.loads(decoded.dead[2].value)["action"] == "//4="


def test_a_letter_forms_whatever_stands_in_columns_that_nobody_reads():
    year_10000 = pa.array([253_402_300_800] * 2, pa.timestamp("s"))
    columns = {
        "when": year_10000,
        "zone": pa.array([1, 1], pa.timestamp("s", "Mars/Olympus")),
        "long": pa.array([2**62] * 2, pa.duration("s")),
        "nan": pa.array([float("nan"), 1.0]),
        "pair": pa.array([[(1, 2)]] * 2, pa.map_(pa.int8(), pa.int8())),
        "twice": pa.StructArray.from_arrays([year_10000, year_10000], names=["a", "a"]),
    }
    decoded = decode_messages([_arrow(0, _events(user_id=[None, 2], **columns))], WHOLE)
    assert decoded.rows["row"].to_pylist() == [1]
    original = orjson.loads(decoded.dead[0].value)
    assert original["when"] == "10000-01-01 00:00:00"
    assert original["nan"] == "NaN"
    assert original["item_id"] == 3
    assert set(original) == {"user_id", "item_id", "timestamp_ms", *columns}


def test_a_text_column_that_is_no_utf8_costs_only_its_bad_rows():
    broken = pa.array([b"ok", b"\xff"], pa.binary()).view(pa.string())
    decoded = decode_messages([_arrow(0, _events(user_id=broken))], WHOLE)
    assert decoded.rows["user_id"].to_pylist() == [_signed("ok")]
    assert [letter.row for letter in decoded.dead] == [1]


def test_whatever_one_message_raises_costs_that_message_alone(monkeypatch):
    def parse(value):
        if b"poison" in value:
            raise RecursionError("x" * 10_000)
        return loads(value)

    loads = json_events.orjson.loads  # type: ignore[attr-defined]
    monkeypatch.setattr(
        json_events, "orjson", SimpleNamespace(loads=parse, JSONDecodeError=orjson.JSONDecodeError)
    )
    event = {"user_id": 1, "item_id": 1, "timestamp_ms": 10}
    messages = [_json(n, event | {"timestamp_ms": 10 - n}) for n in range(3)]
    messages[1] = _json(1, event | {"action": "poison\n"})  # with an escape, so that it is decoded alone
    late = replace(WHOLE, max_late_ms=1)
    decoded = decode_messages(messages, late)
    assert decoded.rows["offset"].to_pylist() == [0]
    assert [letter.offset for letter in decoded.dead] == [1, 2]
    assert decoded.dead[0].reason.startswith("cannot be decoded: RecursionError: xxx")
    assert len(decoded.dead[0].reason) < 300
    assert "max_late_s" in decoded.dead[1].reason


def test_events_of_a_producer_of_librdkafka_say_which_partitioner_it_needs():
    by_partition = {p: [] for p in range(4)}
    for user in range(200):
        value = b'{"user_id": %d, "item_id": 50, "timestamp_ms": 1767225600000}' % user  # as in README
        by_partition[zlib.crc32(b"%d" % user) % 2**31 % 4].append(value)
    letters = []
    for partition, values in by_partition.items():
        messages = [
            SimpleNamespace(offset=n, timestamp=5, value=v, headers=None) for n, v in enumerate(values)
        ]
        letters += decode_messages(messages, Place("interactions", partition, 4)).dead
    assert 100 < len(letters) < 200
    assert {letter.code for letter in letters} == {"wrong_partition"}
    assert all("with partitioner=murmur2_random in producers of librdkafka" in one.reason for one in letters)
    assert "stream.partition_by=repartition" in FAULTS["wrong_partition"].remedy
