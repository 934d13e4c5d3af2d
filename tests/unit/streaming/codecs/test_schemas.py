"""Avro, Protobuf, and JSON messages in Confluent's wire format, plain Avro, and what does not fit its schema."""

import io
import json
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from types import SimpleNamespace

import fastavro
import orjson
import pyarrow as pa
import pytest
from google.protobuf import descriptor_pool, message_factory

from streaming.catalogue.records import parse_items
from streaming.codecs.codec import ARROW, ENCODING_HEADER, decode_messages, encode_events
from streaming.codecs.schemas.protobuf import compiled
from streaming.codecs.schemas.reader import reader_of
from streaming.codecs.schemas.registry import RegistryUnavailable
from streaming.config import StreamConfig, StreamSettingError
from streaming.events.mapping import FieldMapping
from streaming.events.validation import Place
from tests.support.fake_registry import FakeRegistry

AT_MS = 1_769_839_200_123
FIELDS = ["user_id=visitor.id", "item_id=sku", "timestamp_ms=at", "action=kind"]
FIRST = {
    "type": "record",
    "name": "Click",
    "fields": [
        {
            "name": "visitor",
            "type": {"type": "record", "name": "V", "fields": [{"name": "id", "type": "string"}]},
        },
        {"name": "sku", "type": "long"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    ],
}
"""The later schema has one more field, and the earlier ones in another order."""
LATER = {**FIRST, "fields": [{"name": "kind", "type": ["null", "string"]}, *FIRST["fields"][::-1]]}
EVENT = {"visitor": {"id": "ann"}, "sku": 7, "at": datetime.fromtimestamp(AT_MS / 1000, UTC)}


PROTO = """syntax = "proto3";
package shop;
import "google/protobuf/timestamp.proto";
message Other { int32 x = 1; }
message Click {
  message Visitor { string id = 1; }
  Visitor visitor = 1;
  int64 sku = 2;
  google.protobuf.Timestamp at = 3;
  repeated string tags = 4;
}
"""
VISITOR = {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]}
JSON_SCHEMA = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "properties": {"visitor": {"$ref": "visitor.json"}, "sku": {"type": "integer"}},
    "required": ["sku"],
}


@cache
def _proto_files():
    return compiled(PROTO)


def _proto_message(*, framed=True):
    pool = descriptor_pool.DescriptorPool()
    for file in _proto_files().file:
        pool.AddSerializedFile(file.SerializeToString())
    click = message_factory.GetMessageClass(pool.FindMessageTypeByName("shop.Click"))(sku=7, tags=["a", "b"])
    click.visitor.id = "ann"
    click.at.FromMilliseconds(AT_MS)
    path = b"\x02\x02" if framed else b""  # of the second message type of the file
    return path + click.SerializeToString()


SCHEMAS = {
    1: {"schema": json.dumps(FIRST)},
    2: {"schema": json.dumps(LATER), "schemaType": "AVRO"},
    3: {
        "schema": json.dumps(JSON_SCHEMA),
        "schemaType": "JSON",
        "references": [{"name": "visitor.json", "subject": "visitor", "version": 1}],
    },
    4: {"schema": PROTO, "schemaType": "PROTOBUF"},
    5: {"schema": json.dumps({"type": "array", "items": "null"})},
    6: {"schema": "x", "schemaType": "CUSTOM"},
}


@pytest.fixture
def registry():
    with FakeRegistry(SCHEMAS) as made:
        made.subjects["visitor", 1] = {"schema": json.dumps(VISITOR), "schemaType": "JSON"}
        yield made


def _config(registry, **more):
    settings = {"message_format": "registry", "schema_registry": registry.address, "fields": FIELDS}
    return StreamConfig(**(settings | {"max_future_s": 0, "broker_patience_s": 0.0} | more))


def _place(config):
    return replace(Place.of(config, "t", 0, 1), read=reader_of(config))


def _avro(schema, event):
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), event)
    return out.getvalue()


def _framed(number, data):
    return b"\0" + number.to_bytes(4, "big") + data


def _message(value, offset=0, headers=None):
    return SimpleNamespace(offset=offset, timestamp=5, value=value, headers=headers)


def _rows(decoded):
    columns = ("user_id", "item_id", "timestamp_ms", "action")
    return [tuple(row[name] for name in columns) for row in decoded.rows.to_pylist()]


def test_every_format_and_every_version_of_a_schema_gives_the_same_event(registry):
    json_event = orjson.dumps({**EVENT, "at": "2026-01-31T06:00:00.123Z"})
    values = [
        _framed(1, _avro(FIRST, EVENT)),
        _framed(2, _avro(LATER, {**EVENT, "kind": None})),
        _framed(3, json_event),
        _framed(4, _proto_message()),
        _framed(2, _avro(LATER, {**EVENT, "kind": "buy"})),
    ]
    place = _place(_config(registry))
    decoded = decode_messages([_message(value, n) for n, value in enumerate(values)], place)
    assert decoded.dead == []
    rows = _rows(decoded)
    assert len(set(rows[:4])) == 1
    assert rows[0][1:] == (7, AT_MS, None)
    assert rows[4] == (*rows[0][:3], "buy")
    assert len(registry.asked) == len(set(registry.asked)) == 5


def test_what_does_not_fit_is_a_dead_letter_with_the_schemas_id(registry):
    good = _avro(FIRST, EVENT)
    values = [
        b"",
        b"{}",
        b"\x01\0\0\0\x01",
        _framed(1, good[:3]),
        _framed(1, good + b"x"),
        _framed(3, b"{broken"),
        _framed(3, b'{"visitor": {"id": 5}, "sku": 7, "at": 1}'),
        _framed(4, b"\x02\x02\xff"),
        _framed(5, b"\x80" * 9 + b"\x01"),
        _framed(6, b""),
        _framed(77, b""),
        _framed(77, b""),
    ]
    place = _place(_config(registry))
    decoded = decode_messages([_message(value, n) for n, value in enumerate(values)], place)
    assert decoded.rows.num_rows == 0
    reasons = [letter.reason for letter in decoded.dead]
    assert [letter.code for letter in decoded.dead] == ["schema"] * len(values)
    assert all(reason.startswith("no schema id") for reason in reasons[:3])
    assert all(
        f"does not fit the schema {n}: " in reason
        for n, reason in zip((1, 1, 3, 3, 4), reasons[3:8], strict=True)
    )
    assert '5 is not of type "string" (at visitor.id)' in reasons[6]
    assert "schema 5 has an array of values without bytes" in reasons[8]
    assert "schema 6 is of the kind 'CUSTOM'" in reasons[9]
    assert reasons[10].startswith("schema 77 is not in the registry http://127.0.0.1")
    assert sum("/77" in path for path in registry.asked) == 1


def test_messages_with_a_header_are_decoded_by_it(registry):
    batch = pa.RecordBatch.from_pydict(
        {"visitor": [{"id": "ann"}], "sku": [7], "at": ["2026-01-31T06:00:00.123Z"]}
    )
    own = orjson.dumps({"visitor": {"id": "ann"}, "sku": 7, "at": AT_MS})
    messages = [
        _message(encode_events(batch), 0, [(ENCODING_HEADER, ARROW)]),
        _message(own, 1, [(ENCODING_HEADER, b"json")]),
        _message(_framed(1, _avro(FIRST, EVENT)), 2),
        _message(own, 3, [(ENCODING_HEADER, b"of a schema")]),
    ]
    decoded = decode_messages(messages, _place(_config(registry)))
    assert len(set(_rows(decoded))) == 1
    assert decoded.rows["offset"].to_pylist() == [0, 1, 2]


def test_plain_avro_needs_a_file_and_no_registry(tmp_path):
    file = tmp_path / "click.avsc"
    file.write_text(json.dumps(FIRST))
    config = StreamConfig(message_format="avro", schema_file=str(file), fields=FIELDS, max_future_s=0)
    decoded = decode_messages([_message(_avro(FIRST, EVENT)), _message(b"\0", 1)], _place(config))
    assert _rows(decoded)[0][1:] == (7, AT_MS, None)
    assert decoded.dead[0].reason.startswith("does not fit the schema of stream.schema_file")
    assert reader_of(config, "items") is None
    file.write_text("{")
    with pytest.raises(StreamSettingError, match=r"stream\.schema_file="):
        reader_of(config)


def test_plain_protobuf_needs_a_proto_file_or_descriptors(tmp_path):
    (tmp_path / "click.proto").write_text(PROTO)
    (tmp_path / "click.bin").write_bytes(_proto_files().SerializeToString())
    for name in ("click.proto", "click.bin"):
        settings = {"message_format": "protobuf", "fields": FIELDS, "max_future_s": 0}
        config = StreamConfig(schema_file=f"{tmp_path / name}#shop.Click", **settings)
        messages = [_message(_proto_message(framed=False)), _message(b"\xff", 1)]
        decoded = decode_messages(messages, _place(config))
        assert _rows(decoded)[0][1:] == (7, AT_MS, None)
        assert decoded.dead[0].reason.startswith("does not fit the schema of stream.schema_file: DecodeError")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "a.proto#shop.Clack",
            PROTO,
            r"no message type 'shop.Clack', only .*shop.Other, shop.Click: append #NAME",
        ),
        ("a.proto", "message", "schema.proto:1:"),
        ("a.proto", 'import "other.proto";', r"other\.proto: File not found"),
        ("a.bin", "no descriptors", "it is not a FileDescriptorSet"),
        ("a.bin", "", "it is a FileDescriptorSet without files"),
    ],
)
def test_a_schema_file_that_cannot_be_used_says_why(tmp_path, name, text, said):
    (tmp_path / name.partition("#")[0]).write_text(text)
    with pytest.raises(StreamSettingError, match=rf"stream\.schema_file=.* cannot be used: .*{said}"):
        reader_of(StreamConfig(message_format="protobuf", schema_file=str(tmp_path / name)))


def test_an_array_of_a_named_record_without_bytes_is_refused(registry):
    empty = {"type": "record", "name": "Empty", "fields": [{"name": "x", "type": "null"}]}
    many = {"type": "array", "items": "Empty"}
    fields = [{"name": "one", "type": empty}, {"name": "many", "type": many}]
    registry.schemas[10] = {"schema": json.dumps({"type": "record", "name": "Outer", "fields": fields})}
    decoded = decode_messages([_message(_framed(10, b"\xfe\xff\xff\xff\x0f"))], _place(_config(registry)))
    assert "schema 10 has an array of values without bytes" in decoded.dead[0].reason


@pytest.mark.parametrize(
    ("references", "said"),
    [
        (
            [{"name": "gone.json", "subject": "gone", "version": 2}],
            "version 2 of 'gone', which is not in the registry",
        ),
        ([{"name": "loop.json", "subject": "loop", "version": 1}], "refers to itself"),
        ([], "Resource 'gone.json' is not present"),
    ],
)
def test_a_schema_whose_references_are_not_there_is_a_dead_letter(registry, references, said):
    loop = [{"name": "loop.json", "subject": "loop", "version": 1}]
    registry.subjects["loop", 1] = {"schema": "{}", "schemaType": "JSON", "references": loop}
    refers = json.dumps({"$ref": "gone.json"})
    registry.schemas[11] = {"schema": refers, "schemaType": "JSON", "references": references}
    decoded = decode_messages([_message(_framed(11, b"{}"))], _place(_config(registry)))
    assert said in decoded.dead[0].reason
    assert decoded.dead[0].code == "schema"


def test_a_reference_outside_its_folder_is_refused(registry):
    registry.subjects["evil", 1] = {"schema": "", "schemaType": "PROTOBUF"}
    refers = [{"name": "../evil.proto", "subject": "evil", "version": 1}]
    registry.schemas[12] = {"schema": PROTO, "schemaType": "PROTOBUF", "references": refers}
    decoded = decode_messages([_message(_framed(12, b"\0"))], _place(_config(registry)))
    assert "it imports a file outside its folder: '../evil.proto'" in decoded.dead[0].reason


def test_items_are_decoded_with_keys_of_a_schema_too(registry):
    names = [{"name": name, "type": "string"} for name in ("sku", "name")]
    item = {"type": "record", "name": "Item", "fields": names}
    registry.schemas[8], registry.schemas[9] = {"schema": json.dumps(item)}, {"schema": '"string"'}
    config = _config(registry, item_fields=["item_id=sku", "title=name"])
    key = _framed(9, _avro("string", "boots"))
    value = _framed(8, _avro(item, {"sku": "boots", "name": "Boots"}))
    records = [
        SimpleNamespace(topic="c", partition=0, offset=0, key=key, value=value),
        SimpleNamespace(topic="c", partition=0, offset=1, key=key, value=None),
        SimpleNamespace(topic="c", partition=0, offset=2, key=None, value=_framed(8, b"")),
    ]
    items, (dead,) = parse_items(records, FieldMapping.of_items(config), read=reader_of(config))
    assert items["title"].to_pylist() == ["Boots", None]
    assert items["deleted"].to_pylist() == [False, True]
    assert "does not fit the schema 8" in dead.reason


def test_a_registry_is_asked_with_the_password_and_its_failures_stop_no_message(registry, monkeypatch):
    monkeypatch.setenv("REGISTRY_PASSWORD", "geheim")
    secured = {"schema_registry_user": "me", "schema_registry_password_env": "REGISTRY_PASSWORD"}
    with FakeRegistry(SCHEMAS, "me", "geheim") as locked:
        message = _message(_framed(1, _avro(FIRST, EVENT)))
        assert decode_messages([message], _place(_config(locked, **secured))).rows.num_rows == 1
        with pytest.raises(RegistryUnavailable, match=r"401.*stream\.schema_registry_user"):
            decode_messages([message], _place(_config(locked)))
        monkeypatch.delenv("REGISTRY_PASSWORD")
        with pytest.raises(StreamSettingError, match="'REGISTRY_PASSWORD', which is not set"):
            decode_messages([message], _place(_config(locked, **secured)))
    registry.failures = 1
    patient = _config(registry, broker_patience_s=30.0)
    assert decode_messages([message], _place(patient)).rows.num_rows == 1
    registry.failures = 100
    with pytest.raises(RegistryUnavailable, match="503"):
        decode_messages([message], _place(_config(registry)))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"message_format": "registry"}, "stream.schema_registry goes together with message_format=registry"),
        ({"schema_registry": "http://r"}, "stream.schema_registry goes together with"),
        ({"message_format": "avro"}, "stream.schema_file goes together with message_format=avro or protobuf"),
        ({"item_schema_file": "a.avsc"}, "stream.item_schema_file goes together with message_format=avro"),
        ({"message_format": "registry", "schema_registry": "r:8081"}, "must be an http or https address"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, said):
    with pytest.raises(StreamSettingError) as raised:
        StreamConfig(**settings)
    assert said in str(raised.value)
