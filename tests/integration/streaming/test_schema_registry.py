"""Topics with schemas of a real schema registry (Apicurio) on a real broker, over TLS and with a password."""

import io

import fastavro
import orjson
import pytest
from google.protobuf import descriptor_pool, message_factory
from kafka import KafkaProducer

from streaming.catalogue.reader import CatalogueReader
from streaming.checking.check import check_topics
from streaming.codecs.schemas.protobuf import compiled
from streaming.codecs.schemas.registry import RegistryUnavailable
from streaming.config import client_arguments
from streaming.sources.kafka_source import KafkaSource, end_offsets
from tests.support.certificates import make_certificates
from tests.support.local_registry import LocalRegistry

USER, PASSWORD, VARIABLE = "reader", "correct horse", "TEST_REGISTRY_PASSWORD"
AT_MS = 1_769_832_000_123
AT_TEXT = "2026-01-31T04:00:00.123Z"
FIELDS = ["user_id=visitor.id", "item_id=sku", "timestamp_ms=at", "action=kind"]
VISITOR = {
    "type": "record",
    "name": "Visitor",
    "namespace": "shop",
    "fields": [{"name": "id", "type": "string"}],
}
TIME = {"type": "long", "logicalType": "timestamp-millis"}
CLICK_1 = {
    "type": "record",
    "name": "Click",
    "namespace": "shop",
    "fields": [
        {"name": "visitor", "type": "shop.Visitor"},
        {"name": "sku", "type": "string"},
        {"name": "at", "type": TIME},
    ],
}
CLICK_2 = {**CLICK_1, "fields": [*CLICK_1["fields"], {"name": "kind", "type": "string", "default": "view"}]}
VISITOR_PROTO = 'syntax = "proto3";\npackage shop;\nmessage Visitor { string id = 1; }\n'
CLICK_PROTO = """syntax = "proto3";
package shop;
import "google/protobuf/timestamp.proto";
import "visitor.proto";
message Other { int32 x = 1; }
message Click { Visitor visitor = 1; string sku = 2; google.protobuf.Timestamp at = 3; string kind = 4; }
"""
VISITOR_JSON = {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]}
CLICK_JSON = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "properties": {"visitor": {"$ref": "visitor.json"}, "sku": {"type": "string"}, "at": {"type": "string"}},
    "required": ["visitor", "sku", "at"],
}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def registry(tmp_path_factory, certificates):
    _, pem = certificates
    with LocalRegistry(tmp_path_factory.mktemp("registry"), pem, pem, USER, PASSWORD) as made:
        yield made


@pytest.fixture(scope="module")
def ids(registry):
    """The ids of the schemas, by format; Avro has two versions."""
    avro, proto, schema = "avro", "proto", "json"
    registry.register(f"{avro}-visitor", VISITOR)
    registry.register(f"{proto}-visitor", VISITOR_PROTO, "PROTOBUF")
    registry.register(f"{schema}-visitor", VISITOR_JSON, "JSON")
    refers = [("shop.Visitor", f"{avro}-visitor", 1)]
    return {
        "avro 1": registry.register(avro, CLICK_1, "AVRO", refers),
        "avro 2": registry.register(avro, CLICK_2, "AVRO", refers),
        "protobuf": registry.register(
            proto, CLICK_PROTO, "PROTOBUF", [("visitor.proto", f"{proto}-visitor", 1)]
        ),
        "json": registry.register(schema, CLICK_JSON, "JSON", [("visitor.json", f"{schema}-visitor", 1)]),
        "item": registry.register("item", _record("Item", sku="string", name="string")),
    }


@pytest.fixture
def secured(registry, certificates, monkeypatch):
    """Settings of a stream that reads schemas over TLS, with a password."""
    monkeypatch.setenv(VARIABLE, PASSWORD)
    return {
        "message_format": "registry",
        "schema_registry": registry.https,
        "schema_registry_user": USER,
        "schema_registry_password_env": VARIABLE,
        "schema_registry_cafile": str(certificates[0]),
        "fields": FIELDS,
        "item_fields": ["item_id=sku", "title=name"],
        "default_action": "view",
    }


def _record(_name, **fields):
    return {"type": "record", "name": _name, "fields": [{"name": n, "type": t} for n, t in fields.items()]}


def _avro(schema, value):
    named: dict = {}
    fastavro.parse_schema(VISITOR, named_schemas=named)
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema, named_schemas=named), value)
    return out.getvalue()


def _proto(user, sku, kind):
    pool = descriptor_pool.DescriptorPool()
    for file in compiled(CLICK_PROTO, {"visitor.proto": VISITOR_PROTO}).file:
        pool.AddSerializedFile(file.SerializeToString())
    click = message_factory.GetMessageClass(pool.FindMessageTypeByName("shop.Click"))(sku=sku, kind=kind)
    click.visitor.id = user
    click.at.FromMilliseconds(AT_MS)
    return b"\x02\x02" + click.SerializeToString()  # the second message type of the file


def _framed(number, data):
    return b"\0" + number.to_bytes(4, "big") + data


def _messages(ids, user):
    """One event in each format, and one of each that does not fit its schema."""
    event = {"visitor": {"id": user}, "sku": "boots", "at": AT_MS}
    plain = {**event, "at": AT_TEXT}
    good = [
        _framed(ids["avro 1"], _avro(CLICK_1, event)),
        _framed(ids["avro 2"], _avro(CLICK_2, {**event, "kind": "buy"})),
        _framed(ids["protobuf"], _proto(user, "boots", "buy")),
        _framed(ids["json"], orjson.dumps(plain)),
    ]
    bad = [
        _framed(ids["avro 2"], _avro(CLICK_1, event)),
        _framed(ids["protobuf"], b"\x02\x02\xff"),
        _framed(ids["json"], orjson.dumps({**plain, "visitor": {"id": 5}})),
        _framed(987_654, b""),
    ]
    return good, bad


def _send(stream, ids):
    good, bad = _messages(ids, "ann")
    others = [_framed(ids["avro 1"], _avro(CLICK_1, {"visitor": {"id": "bob"}, "sku": "hat", "at": AT_MS}))]
    with KafkaProducer(**client_arguments(stream)) as producer:
        for key, values in ((b"ann", good + bad), (b"bob", 50 * others)):
            for value in values:
                producer.send(stream.interactions_topic, value, key=key)
        item = _framed(
            ids["item"], _avro(_record("Item", sku="string", name="string"), {"sku": "boots", "name": "B"})
        )
        producer.send(stream.items_topic, item, key=b"boots")


def _read(stream):
    ends = end_offsets(stream, stream.interactions_topic)
    with KafkaSource(stream, [0, 1], {}, ends) as source:
        while not source.ended() >= {0, 1}:
            source.wait_full(1000, 30)
        return source.take({0: 1000, 1: 1000})


def test_all_formats_of_a_real_registry_are_read_over_tls_with_references_and_evolution(
    stream_factory, secured, ids
):
    stream = stream_factory(2, **secured)
    _send(stream, ids)
    taken = _read(stream)
    rows = [row for row in taken.rows.to_pylist() if row["partition"] == taken.dead[0].partition]
    assert [row["action"] for row in rows[:4]] == ["view", "buy", "buy", "view"]
    assert {row["timestamp_ms"] for row in rows[:4]} == {AT_MS}
    assert len({(row["user_id"], row["item_id"]) for row in rows[:4]}) == 1
    assert taken.rows.num_rows == 54

    assert [letter.code for letter in taken.dead] == ["schema"] * 4
    numbers = (ids["avro 2"], ids["protobuf"], ids["json"])
    for letter, number in zip(taken.dead, numbers, strict=False):
        assert letter.reason.startswith(f"does not fit the schema {number}: ")
    assert '5 is not of type "string" (at visitor.id)' in taken.dead[2].reason
    assert taken.dead[3].reason.startswith("schema 987654 is not in the registry https://127.0.0.1")

    with CatalogueReader(stream) as reader:
        assert reader.read_to_end().items["title"].to_pylist() == ["B"]
    events, items, _ = check_topics(stream, 200).profiles
    assert (events.usable, events.faults) == (54, {"schema": 4})
    assert [line["read_as"] for line in events.fields if line["field"] == "visitor.id"] == ["user_id"]
    assert items.usable == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"schema_registry_cafile": ""},
            r"CERTIFICATE_VERIFY_FAILED.*\(settings: stream\.schema_registry_cafile\)",
        ),
        ({"schema_registry_user": "stranger"}, r"401.*stream\.schema_registry_password_env\)"),
        ({"schema_registry_user": ""}, r"401.*stream\.schema_registry_user"),
    ],
)
def test_a_wrong_authority_or_login_ends_at_once_with_the_setting(stream_factory, secured, ids, change, said):
    stream = stream_factory(2, **(secured | change))
    _send(stream, ids)
    with pytest.raises(RegistryUnavailable, match=said):
        _read(stream)


def test_a_login_over_http_works_too(stream_factory, secured, registry, ids):
    stream = stream_factory(2, **(secured | {"schema_registry": registry.http, "schema_registry_cafile": ""}))
    _send(stream, ids)
    assert _read(stream).rows.num_rows == 54
