"""Events and catalogue records of another producer: names, nesting, time units, and what their dead letters say."""

from types import SimpleNamespace

import orjson
import pyarrow as pa
import pytest

from streaming.catalogue.records import parse_items, parse_users
from streaming.codecs.codec import ARROW, ENCODING_HEADER, decode_messages, encode_events
from streaming.config import EVENT_FIELDS, StreamConfig, StreamSettingError
from streaming.events.hashing import feature_ids
from streaming.events.mapping import FieldMapping
from streaming.events.schema import EVENT_SCHEMA
from streaming.events.time_units import milliseconds
from streaming.events.validation import Place

FIELDS = ["user_id=visitor.id", "item_id=product.sku", "timestamp_ms=occurred_at", "action=kind"]
AT_MS = 1_769_839_200_123
THEIRS = {"visitor": {"id": 7}, "product": {"sku": 8}, "kind": "buy"}


def _place(**settings):
    config = StreamConfig(**({"fields": FIELDS, "max_future_s": 0} | settings))
    return Place.of(config, "t", 0, 1)


def _message(value, headers=None):
    value = value if isinstance(value, bytes) else orjson.dumps(value)
    return SimpleNamespace(offset=0, timestamp=5, value=value, headers=headers)


def _arrow(columns):
    batch = pa.RecordBatch.from_pydict(columns)
    return _message(encode_events(batch), [(ENCODING_HEADER, ARROW)])


def _row(message, place):
    decoded = decode_messages([message], place)
    assert decoded.dead == []
    (row,) = decoded.rows.to_pylist()
    return row["user_id"], row["item_id"], row["timestamp_ms"], row["action"]


def _reason(message, place):
    (letter,) = decode_messages([message], place).dead
    return letter.reason


@pytest.mark.parametrize(
    ("unit", "value"),
    [
        ("ms", AT_MS),
        ("s", AT_MS / 1000),
        ("us", AT_MS * 1000 + 999),
        ("ns", AT_MS * 1_000_000),
        ("iso8601", "2026-01-31T06:00:00.123Z"),
        ("iso8601", "2026-01-31T08:00:00.123456+02:00"),
        ("iso8601", "2026-01-31 06:00:00.123"),
        ("s", "2026-01-31T06:00:00.123Z"),
    ],
)
def test_a_time_of_any_unit_is_the_same_in_json_and_arrow(unit, value):
    place = _place(timestamp_unit=unit)
    expected = (7, 8, AT_MS, "buy")
    assert _row(_message(THEIRS | {"occurred_at": value}), place) == expected
    columns = {"visitor": [{"id": 7}], "product": [{"sku": 8}], "kind": ["buy"], "occurred_at": [value]}
    assert _row(_arrow(columns), place) == expected


def test_whole_seconds_are_exact_and_huge_ones_cost_only_their_row():
    place = _place(timestamp_unit="s")
    assert _row(_message(THEIRS | {"occurred_at": 1_769_839_200}), place)[2] == 1_769_839_200_000
    for value in (2**62, 1e300):
        assert _reason(_message(THEIRS | {"occurred_at": value}), place).startswith("timestamp_ms must be")
    columns = {"visitor": [{"id": 7}] * 2, "product": [{"sku": 8}] * 2, "occurred_at": [2**62, 1_769_839_200]}
    decoded = decode_messages([_arrow(columns)], place)
    assert (len(decoded.dead), decoded.rows.num_rows) == (1, 1)


@pytest.mark.parametrize("value", [1_769_839_200, "yesterday", True, [1]])
def test_what_is_not_an_iso_time_is_refused_with_the_settings(value):
    reason = _reason(_message(THEIRS | {"occurred_at": value}), _place(timestamp_unit="iso8601"))
    assert reason.startswith("timestamp_ms must be a 64-bit integer, got ")
    assert "stream.fields reads it from occurred_at; stream.timestamp_unit=iso8601" in reason


def test_texts_with_and_without_zones_in_one_arrow_column_cost_only_the_wrong_one():
    columns = {
        "visitor": [{"id": 1}] * 4,
        "product": [{"sku": 2}] * 4,
        "occurred_at": ["2026-01-31T06:00:00.123Z", "2026-01-31T06:00:00.123", "soon", None],
    }
    decoded = decode_messages([_arrow(columns)], _place(timestamp_unit="iso8601"))
    assert decoded.rows["timestamp_ms"].to_pylist() == [AT_MS, AT_MS]
    assert [letter.row for letter in decoded.dead] == [2, 3]
    assert "got 'soon'" in decoded.dead[0].reason
    assert "is missing" in decoded.dead[1].reason


def test_a_missing_field_is_named_as_the_producer_names_it():
    at = {"occurred_at": AT_MS}
    assert _reason(_message({"visitor": {"id": 7}} | at), _place()) == (
        "item_id is missing (stream.fields reads it from product.sku)"
    )
    assert _reason(_message({"visitor": 7, "product": {"sku": 8}} | at), _place()) == (
        "user_id is missing (stream.fields reads it from visitor.id)"
    )
    reason = _reason(
        _arrow({"visitor": [{"name": "x"}], "product": [{"sku": 8}], **{"occurred_at": [AT_MS]}}), _place()
    )
    assert "column user_id is missing" in reason
    assert "stream.fields reads it from visitor.id" in reason


def test_a_null_object_has_null_members_in_arrow():
    kind = pa.struct([("id", pa.int64())])
    visitors = pa.StructArray.from_arrays([pa.array([5, 6])], ["id"], mask=pa.array([False, True]))
    columns = {"visitor": visitors.cast(kind), "product": [{"sku": 1}] * 2, "occurred_at": [AT_MS] * 2}
    decoded = decode_messages([_arrow(columns)], _place())
    assert decoded.rows["user_id"].to_pylist() == [5]
    assert [letter.reason for letter in decoded.dead] == [
        "user_id is missing (stream.fields reads it from visitor.id)"
    ]


def test_an_event_without_an_action_has_the_default_one():
    place = _place(default_action="view")
    event = {key: value for key, value in THEIRS.items() if key != "kind"} | {"occurred_at": AT_MS}
    assert _row(_message(event), place)[3] == "view"
    assert _row(_message(THEIRS | {"occurred_at": AT_MS}), place)[3] == "buy"
    columns = {
        "visitor": [{"id": 1}] * 3,
        "product": [{"sku": 2}] * 3,
        "occurred_at": [AT_MS] * 3,
        "kind": pa.array(["buy", None, ""]).dictionary_encode(),
    }
    assert decode_messages([_arrow(columns)], place).rows["action"].to_pylist() == ["buy", "view", "view"]


def test_a_name_with_a_dot_and_a_long_event_are_found():
    place = _place(fields=[r"user_id=visitor\.id", "item_id=item"])
    long = {"visitor.id": 3, "item": "sku", "timestamp_ms": AT_MS, "noise": ["x" * 100] * 100}
    assert _row(_message(long), place)[0] == 3


def test_without_a_setting_there_is_no_mapping():
    assert FieldMapping.of_events(StreamConfig()) is None
    assert FieldMapping.of_items(StreamConfig()) is None
    assert FieldMapping.of_users(StreamConfig()) is None
    assert tuple(EVENT_SCHEMA.names) == EVENT_FIELDS


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"fields": ["visitor.id"]}, "must be ours=theirs each"),
        ({"fields": ["user=visitor.id"]}, "with ours one of user_id, item_id"),
        ({"fields": ["user_id=a..b"]}, "must be ours=theirs each"),
        ({"fields": ["user_id=a", "user_id=b"]}, "must name no field twice"),
        ({"user_fields": ["height=tall"]}, "with ours one of user_id, attributes, gender"),
        ({"timestamp_unit": "minutes"}, "must be ms, s, us, ns or iso8601"),
    ],
)
def test_a_mapping_that_cannot_be_meant_is_refused(settings, said):
    with pytest.raises(StreamSettingError, match=r"stream\.") as raised:
        StreamConfig(**settings)
    assert said in str(raised.value)


def _record(value, key=None):
    return SimpleNamespace(topic="c", partition=0, offset=0, key=key, value=orjson.dumps(value))


def test_items_are_found_under_other_names():
    config = StreamConfig(item_fields=["item_id=sku", "title=name", "categories=tags.label"])
    mapping = FieldMapping.of_items(config)
    records = [
        _record({"sku": 1, "name": "Boots", "tags": [{"label": "shoes"}, {"label": "winter"}]}, b"1"),
        _record({"sku": 2, "tags": {"label": "hats"}}),
        _record({"name": "nothing"}),
    ]
    items, (dead,) = parse_items(records, mapping)
    names = pa.array(["shoes", "winter", "hats"])
    shoes, winter, hats = feature_ids(names).tolist()
    assert items["item_id"].to_pylist() == [1, 2]
    assert items["title"].to_pylist() == ["Boots", None]
    assert items["categories"].to_pylist() == [[shoes, winter], [hats]]
    assert dead.reason == "item_id is missing (stream.item_fields reads it from sku)"


@pytest.mark.parametrize(
    ("fields", "record"),
    [
        (["user_id=id", "attributes=."], {"id": 4, "gender": "F", "age": 30}),
        (
            ["user_id=id", "gender=profile.sex", "age=profile.years"],
            {"id": 4, "profile": {"sex": "F", "years": 30}},
        ),
        (
            ["user_id=id", "attributes=profile", "age=years"],
            {"id": 4, "profile": {"gender": "F"}, "years": 30},
        ),
        (["user_id=id", "attributes=."], {"id": 4, "gender": "F", "age": 30, "more": "x" * 5000}),
    ],
)
def test_user_attributes_are_found_flat_nested_or_one_by_one(fields, record):
    config = StreamConfig(user_attributes=["gender", "age"], user_fields=fields)
    expected, _ = parse_users(
        [_record({"user_id": 4, "attributes": {"gender": "F", "age": 30}})], ["gender", "age"]
    )
    found, dead = parse_users([_record(record)], ["gender", "age"], FieldMapping.of_users(config))
    assert dead == []
    assert found.equals(expected)


def test_floats_that_are_no_times_stay_unusable():
    assert milliseconds(1.5, "s") == 1500
    assert milliseconds(float("1e300"), "s") == 1e300
    assert milliseconds(None, "s") is None
