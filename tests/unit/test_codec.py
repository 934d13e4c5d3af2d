"""Both wire forms into columns, and what cannot be used into dead letters."""

from types import SimpleNamespace

import numpy as np
import orjson
import pyarrow as pa
import pytest
import xxhash

from streaming.codec import ARROW, ENCODING_HEADER, decode_messages, encode_events
from streaming.partitioner import partition_of_texts, partition_of_users
from streaming.schema import DECODED_SCHEMA, EVENT_SCHEMA
from streaming.validation import Place

WHOLE = Place("interactions", 0, 1)


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
        (_events(item_id=[1.0, 2.0]), "column item_id must be int64, not double"),
        (_events(user_id=pa.array([1, 2**64 - 1], pa.uint64())), "Integer value 18446744073709551615"),
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
        ({"user_id": 1, "item_id": 1, "timestamp_ms": 1, "weight": 1e300}, "weight must be finite"),
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
