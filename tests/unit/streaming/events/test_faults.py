"""The code of a fault is set where the fault is found, travels with its dead letter, and has a remedy."""

from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import orjson
import pyarrow as pa
import pytest

from streaming.catalogue.records import parse_items, parse_users
from streaming.codecs.codec import ARROW, ENCODING_HEADER, decode_messages, encode_events
from streaming.codecs.schemas.reader import UnfitMessage
from streaming.config import StreamConfig
from streaming.events.faults import FAULTS, LETTERS, Reason, code_of
from streaming.events.unreadable import Unreadable
from streaming.events.validation import Place
from streaming.histories.id_texts import KnownTexts
from tests.support.hash_clash import two_texts_with_one_hash

EVENT = {"user_id": 1, "item_id": 2, "timestamp_ms": 1_769_839_200_000}
FIRST, SECOND = two_texts_with_one_hash("item")
CONFIG = StreamConfig(max_late_s=10, fields=["item_id=sku"])


def _arrow(**columns):
    return encode_events(pa.RecordBatch.from_pydict({k: [v] for k, v in columns.items()}))


def _json(**changes):
    event = {**EVENT, "sku": EVENT["item_id"], **changes}
    return orjson.dumps({name: value for name, value in event.items() if value is not None})


EVENTS = {
    "too_large": (b" " * (CONFIG.max_message_bytes + 1), None),
    "undecodable": (Unreadable(b"", Reason("undecodable", "the message cannot be parsed"), 9), None),
    "not_json": (b"{", None),
    "empty": (b"", None),
    "not_an_object": (b"[]", None),
    "missing_field": (_json(sku=None), None),
    "unknown_encoding": (b"", b"csv"),
    "not_arrow": (b"{}", ARROW),
    "wrong_type": (_json(user_id=[]), None),
    "bad_time": (_json(timestamp_ms="soon"), None),
    "bad_weight": (_json(weight=-1), None),
    "bad_value": (_json(value=1e10), None),
    "future": (_json(timestamp_ms=EVENT["timestamp_ms"] + 10**9), None),
    "late": (_json(timestamp_ms=EVENT["timestamp_ms"] - 20_000), None),
    "id_clash": (_json(sku=SECOND), None),
    "wrong_partition": (_json(user_id=1), None),
}
MORE = {
    "missing column": ("missing_field", _arrow(user_id=1, timestamp_ms=5)),
    "too many rows": ("too_large", _arrow(user_id=1, sku=2, timestamp_ms=5)),
    "a text as time": ("bad_time", _arrow(user_id=1, sku=2, timestamp_ms=b"x")),
    "a list as user": ("wrong_type", _arrow(user_id=[1], sku=2, timestamp_ms=5)),
    "no value": ("missing_field", _arrow(user_id=1, sku=None, timestamp_ms=5)),
    "an empty text": ("missing_field", _arrow(user_id=1, sku="", timestamp_ms=5)),
}


def _message(value, offset=0, encoding=None):
    headers = [(ENCODING_HEADER, encoding)] if encoding is not None else None
    return SimpleNamespace(offset=offset, timestamp=EVENT["timestamp_ms"], value=value, headers=headers)


def _place(**changes):
    return replace(Place.of(CONFIG, "t", 0, 1), texts=KnownTexts(), **changes)


@pytest.mark.parametrize("code", EVENTS)
def test_an_event_that_cannot_be_used_has_the_code_of_its_fault(code):
    value, encoding = EVENTS[code]
    partitions = {"partitions": 1000, "partition": 3} if code == "wrong_partition" else {}
    place = _place(**partitions)
    decode_messages([_message(_json(sku=FIRST))], place)
    watermark_ms = EVENT["timestamp_ms"] if code == "late" else 0
    (letter,) = decode_messages([_message(value, 1, encoding)], place, watermark_ms).dead
    assert letter.code == code, letter.reason
    assert dict(letter.headers)["code"] == code.encode()


@pytest.mark.parametrize("name", MORE)
def test_rows_of_arrow_have_the_same_codes(name):
    code, value = MORE[name]
    place = _place(max_message_rows=1) if code != "too_large" else _place(max_message_bytes=100)
    (letter,) = decode_messages([_message(value, 0, ARROW)], place).dead
    assert letter.code == code, letter.reason


def _record(value, key=None):
    return SimpleNamespace(topic="c", partition=0, offset=0, key=key, value=value)


@pytest.mark.parametrize(
    ("code", "record"),
    [
        ("bad_key", _record(None)),
        ("bad_key", _record(None, b"\xff")),
        ("bad_key", _record(b'{"item_id": 1}', b"2")),
        ("not_json", _record(b"{")),
        ("not_an_object", _record(b"[]")),
        ("missing_field", _record(b"{}")),
        ("wrong_type", _record(b'{"item_id": 1, "title": 5}')),
        ("wrong_type", _record(b'{"item_id": 1, "categories": 5}')),
    ],
)
def test_an_item_that_cannot_be_used_has_the_code_of_its_fault(code, record):
    _, (letter,) = parse_items([record])
    assert letter.code == code, letter.reason


def test_users_and_records_that_do_not_fit_a_schema_have_theirs():
    for value in (b'{"user_id": 1, "attributes": 5}', b'{"user_id": 1, "attributes": {"age": []}}'):
        _, (letter,) = parse_users([_record(value)], ["age"])
        assert letter.code == "wrong_type"

    def unfit(_):
        raise UnfitMessage("does not fit the schema 7")

    _, (letter,) = parse_items([_record(b"x")], read=unfit)
    assert letter.code == "schema"
    (letter,) = decode_messages([_message(b"x")], _place(read=unfit)).dead
    assert letter.code == "schema"


def test_every_code_has_a_meaning_and_a_remedy_and_a_plain_reason_is_another_fault():
    assert all(fault.remedy and fault.meaning for fault in FAULTS.values())
    assert set(EVENTS) | {"schema", "bad_key", "quarantined", "other"} == set(LETTERS)
    assert code_of("something") == "other"
    assert code_of(deepcopy(Reason("late", "x"))) == "late"
