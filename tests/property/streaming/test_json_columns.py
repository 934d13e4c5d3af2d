"""JSON read by columns is what decoding each message gives: rows, dead letters, reasons, and order, bit for bit."""

from types import SimpleNamespace

import numpy as np
import orjson
from hypothesis import example, given
from hypothesis import strategies as st

from streaming.codecs.json_columns import plain_events
from streaming.codecs.json_events import parse
from streaming.config import StreamConfig
from streaming.events.validation import Place

texts = st.one_of(
    st.text(max_size=5), st.sampled_from(["", "7", "007", "sku-1", "é", "\ud800", 'a"b', "click"])
)
numbers = st.one_of(
    st.integers(-5, 10),
    st.integers(-(2**64), 2**64),
    st.floats(),
    st.sampled_from([0.1, -0.0, 1e22, 0.30000000000000004, 1e-7, 2.5, 9007199254740993, 10**18, 10**18 - 1]),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2)
)
ids = st.one_of(
    st.integers(1, 9), texts, numbers, st.fixed_dictionaries({"id": st.one_of(st.integers(1, 9), texts)})
)
times = st.one_of(st.integers(1_699_999_000_000, 1_700_000_001_000), numbers, st.just("2026-01-31T06:00:00Z"))
FIELDS = {
    "weight": numbers,
    "value": st.one_of(numbers, st.none()),
    "action": texts,
    "event_id": texts,
    "x": trees,
}
objects = st.fixed_dictionaries({"user_id": ids, "item_id": ids, "timestamp_ms": times}, optional=FIELDS)
raw_numbers = st.from_regex(rb"-?[0-9]{1,20}(\.[0-9]{0,20})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)
pieces = st.sampled_from(
    [b" ", b"\n", b",", b"{", b"}", b"[", b"]", b'"', b"\\", b"\xc3", b"\xa9", b"0", b"-", b"\x00"]
)


def _text(value: object) -> bytes:
    """As a careless producer writes it: also what is no JSON."""
    if isinstance(value, dict):
        return b"{ " + b" ,".join(_text(str(k)) + b" : " + _text(v) for k, v in value.items()) + b"\t}"
    if isinstance(value, list):
        return b"[" + b",\n".join(map(_text, value)) + b"]"
    if isinstance(value, str):
        return b'"' + value.encode("utf-8", "surrogatepass") + b'"'
    named = {None: b"null", True: b"true", False: b"false"}
    return named[value] if value is None or isinstance(value, bool) else repr(value).encode()


def _dumped(value: object) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:
        return _text(value)


@st.composite
def broken(draw):
    value = draw(st.builds(_text, objects))
    at = draw(st.integers(0, len(value)))
    return value[:at] + draw(pieces) + value[at + draw(st.integers(0, 2)) :]


values = st.one_of(
    st.builds(_dumped, objects),
    st.builds(_text, objects),
    broken(),
    st.builds(
        lambda n: b'{"user_id":1,"item_id":2,"timestamp_ms":3,"value":%s,"y":%s}' % (n, n), raw_numbers
    ),
    st.builds(lambda a, b: a[:-1] + b"," + b[1:], st.builds(_dumped, objects), st.builds(_dumped, objects)),
    st.sampled_from([None, b"", b"{}", b"[]", b'{"user_id":1,"item_id":2,"timestamp_ms":3}' + b" " * 5000]),
)
MAPPINGS = [
    {},
    {"fields": ["user_id=user_id.id", "timestamp_ms=timestamp_ms", "weight=value"]},
    {
        "fields": ["user_id=user_id.id", "item_id=item_id.id", "value=x"],
        "default_action": "view",
        "timestamp_unit": "s",
    },
    {"fields": ["item_id=user_id"], "timestamp_unit": "us"},
    {"default_action": "view", "timestamp_unit": "ns"},
]


def _same(messages, place):
    parsed, dead = parse(messages, place)
    expected, expected_dead = parse(messages, place, orjson.loads)
    assert dead == expected_dead
    assert parsed.events.validate(full=True) is None
    for name in parsed.events.schema.names:
        ours, theirs = parsed.events[name], expected.events[name]
        if "weight" in name or name == "value":  # NaN is not itself, and -0.0 is not 0.0
            ours, theirs = (a.to_numpy(zero_copy_only=False).view(np.int32) for a in (ours, theirs))
            assert (ours == theirs).all()
            assert parsed.events[name].is_null().equals(expected.events[name].is_null())
        else:
            assert ours.equals(theirs)
    for name in ("offset_N", "row_N", "append_N", "key_N"):
        ours, theirs = getattr(parsed, name), getattr(expected, name)
        assert ours.dtype == theirs.dtype
        assert (ours == theirs).all()
    assert set(parsed.texts) == set(expected.texts)
    assert all(parsed.texts[name].equals(expected.texts[name]) for name in parsed.texts)
    assert [parsed.original(n) for n in range(len(ours))] == [expected.original(n) for n in range(len(ours))]


def _message(n, value):
    return SimpleNamespace(offset=3 * n, timestamp=1_700_000_000_000 + n, value=value, headers=None)


@given(st.lists(values, max_size=8), st.sampled_from(MAPPINGS))
@example([b'{"user_id":1,"item_id":2', b'"timestamp_ms":3}'], {})
@example([b'{"user_id":1,"item_id":2,"timestamp_ms":3,"user_id":null}'], {})
@example(
    [
        b'{"user_id":"\xc3","item_id":"\xa9","timestamp_ms":3}',
        b'{"user_id":"\xc3\xa9","item_id":1,"timestamp_ms":3}',
    ],
    {},
)
@example(
    [b'{"user_id":1,"item_id":2,"timestamp_ms":3,"x":[{"a":[]},{},[1,{"b":{}}]],"y":{"z":true,"w":false}}'],
    {},
)
def test_columns_are_what_decoding_each_message_gives(found, settings):
    place = Place.of(StreamConfig(**settings), "t", 0, 2)
    _same([_message(n, value) for n, value in enumerate(found)], place)


def test_what_producers_usually_write_takes_the_compiled_pass():
    usual = [
        b'{"user_id":7,"item_id":"sku-1","timestamp_ms":1700000000000,"action":"click","value":4.0}',
        b'{"user_id": "u1", "item_id": 8, "timestamp_ms": 1700000000000, "weight": 0.30000000000000004, "x": [{}]}',
        '{"user_id":"é","item_id":-8,"timestamp_ms":1700000000000,"event_id":"0af","action":null}'.encode(),
    ]
    place_P, columns = plain_events([b"", *usual, b"{"], None)
    assert place_P.tolist() == [1, 2, 3]
    assert columns.events["value"].to_pylist() == [4.0, None, None]
    mapped = StreamConfig(
        fields=["user_id=visitor.id", "item_id=product.sku", "timestamp_ms=at"], timestamp_unit="s"
    )
    theirs = b'{"visitor":{"id":7,"name":"x"},"product":{"sku":"a"},"at":1700000000}'
    place_P, columns = plain_events([theirs], Place.of(mapped, "t", 0, 1).mapping)
    assert place_P.tolist() == [0]
    assert columns.events.to_pylist()[0]["timestamp_ms"] == 1_700_000_000_000
