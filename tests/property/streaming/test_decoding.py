"""For any input, decoding does not raise, and usable rows and dead letters together are all rows."""

from types import SimpleNamespace

import numpy as np
import orjson
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from streaming.catalogue.records import parse_items, parse_users
from streaming.codecs.codec import ARROW, ENCODING_HEADER, JSON, decode_messages, encode_events
from streaming.config import StreamConfig
from streaming.events.schema import EVENT_SCHEMA
from streaming.events.signals import judge_signals
from streaming.events.validation import LATEST_MS, Decoded, Place

CONFIG = StreamConfig(action_weights=["click=3", "buy=1e30"], negative_below_value=2.0)
ARROW_HEADER = [(ENCODING_HEADER, ARROW)]

texts = st.one_of(st.text(max_size=5), st.sampled_from(["", "1001", "007", "-1", "click", "buy", "9" * 19]))
numbers = st.one_of(
    st.integers(-(2**70), 2**70),
    st.integers(-3, 10),
    st.floats(),
    st.sampled_from([0, 1e30, -1, 2**63, 1e39]),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)
)
names = st.sampled_from(EVENT_SCHEMA.names)
times = st.one_of(st.integers(1_699_999_000_000, 1_700_000_001_000), trees)
objects = st.fixed_dictionaries(
    {
        "user_id": st.one_of(st.integers(1, 5), trees),
        "item_id": st.one_of(texts, trees),
        "timestamp_ms": times,
    },
    optional={"action": trees, "weight": trees, "value": trees, "event_id": trees, "other": trees},
)
deep = st.builds(
    lambda name, depth: b'{"%s":%s%s}' % (name.encode(), b"[" * depth, b"]" * depth),
    names,
    st.integers(1, 1500),
)


def _dumped(tree: object) -> bytes:
    try:
        return orjson.dumps(tree)
    except TypeError:  # integers beyond 64 bits, lone surrogates
        return repr(tree).encode("utf-8", "surrogatepass")


payloads = st.one_of(st.binary(max_size=60), st.builds(_dumped, objects), st.builds(_dumped, trees), deep)
kinds = st.sampled_from(
    [
        *(
            pa.int8(),
            pa.int64(),
            pa.uint64(),
            pa.float16(),
            pa.float32(),
            pa.float64(),
            pa.bool_(),
            pa.null(),
        ),
        *(pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view()),
        *(
            pa.binary(3),
            pa.decimal128(20, 3),
            pa.decimal256(50, 0),
            pa.decimal64(12, 2),
            pa.decimal128(5, -2),
        ),
        *(pa.timestamp("s"), pa.timestamp("ns"), pa.timestamp("us", "Mars/Base"), pa.date32(), pa.date64()),
        *(pa.time64("us"), pa.duration("s"), pa.list_(pa.int64()), pa.map_(pa.int8(), pa.int8()), pa.uuid()),
        pa.struct([("a", pa.timestamp("s"))]),
    ]
)


def _column(kind: pa.DataType, bits: list[int], rows: int, form: str) -> pa.Array:
    """A column of this type of whatever the bits make; plain, as a dictionary or run-end encoded."""
    numbers = pa.array(np.resize(np.array(bits, np.int64), rows))
    column = _of_type(kind, numbers)
    holes = pa.array(np.resize([b % 5 != 0 for b in bits], rows))
    try:
        column = pa.compute.if_else(holes, column, pa.scalar(None, kind))
        return {
            "dictionary": column.dictionary_encode,
            "runs": lambda: pa.compute.run_end_encode(column),
        }.get(form, lambda: column)()
    except pa.ArrowException:
        return column


def _of_type(kind: pa.DataType, numbers: pa.Array) -> pa.Array:
    rows = len(numbers)
    if kind.id == pa.uuid().id:
        return pa.ExtensionArray.from_storage(kind, pa.array([b"x" * 16] * rows, pa.binary(16)))
    for source in (numbers, numbers.view(pa.uint64()), numbers.view(pa.float64()), numbers.cast(pa.string())):
        try:
            return source.view(kind) if kind.bit_width == 64 else source.cast(kind, safe=False)
        except (pa.ArrowException, ValueError):
            continue
    nested = {
        pa.list_(pa.int64()): [[1], None],
        pa.map_(pa.int8(), pa.int8()): [[(1, 2)]],
        pa.struct([("a", pa.timestamp("s"))]): [None],
        pa.binary(3): [b"1\xff2", b"abc"],
    }
    values = nested.get(kind, [None])
    return pa.array([values[n % len(values)] for n in range(rows)], kind)


@st.composite
def batches(draw):
    rows = draw(st.integers(0, 6))
    fields = draw(st.lists(st.tuples(st.one_of(names, texts), kinds), max_size=8))
    required = [(name, draw(kinds)) for name in EVENT_SCHEMA.names[: draw(st.sampled_from([3, 3, 3, 2]))]]
    bits = st.lists(st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2000)), min_size=1, max_size=6)
    forms = st.sampled_from(["plain", "plain", "dictionary", "runs"])
    chosen = required + fields
    columns = [_column(kind, draw(bits), rows, draw(forms)) for _, kind in chosen]
    return pa.RecordBatch.from_arrays(columns, names=[name for name, _ in chosen])


def _message(offset, value, headers):
    return SimpleNamespace(offset=offset, timestamp=1_700_000_000_000, value=value, headers=headers)


def _check(messages, rows_of_M) -> Decoded:
    place = Place.of(CONFIG, "t", 0, 2)
    decoded = decode_messages(messages, place)
    seen = [*zip(decoded.rows["offset"].to_pylist(), decoded.rows["row"].to_pylist(), strict=True)]
    seen += [(letter.offset, letter.row) for letter in decoded.dead]
    whole = [(n, row) for n, rows in enumerate(rows_of_M) for row in range(rows)]
    as_one = {n for n, _ in seen if [row for m, row in seen if m == n] == [0]}
    expected = [(n, row) for n, row in whole if n not in as_one or row == 0]
    assert sorted(seen) == sorted(expected + [(n, 0) for n in as_one if not rows_of_M[n]])
    for letter in decoded.dead:
        assert sum(len(name) + len(value) for name, value in letter.headers) < 2000
        assert letter.key
        assert isinstance(letter.value, bytes)
    weight_N = judge_signals(decoded.rows, CONFIG)[1]
    assert ((weight_N > 0) & (weight_N <= CONFIG.max_weight)).all()
    assert not decoded.rows["action"].to_pylist().count("") + decoded.rows["event_id"].to_pylist().count("")
    assert all(0 < t <= LATEST_MS for t in decoded.rows["timestamp_ms"].to_pylist())
    decoded.rows.validate(full=True)
    return decoded


@given(st.lists(st.tuples(payloads, st.sampled_from([None, JSON, ARROW, b"\xff"])), max_size=6))
def test_any_bytes_under_any_header(found):
    messages = [
        _message(n, value, None if encoding is None else [("x", None), (ENCODING_HEADER, encoding)])
        for n, (value, encoding) in enumerate(found)
    ]
    _check(messages, [1] * len(messages))


@given(st.lists(batches(), min_size=1, max_size=3))
def test_columns_of_any_arrow_type_beside_good_messages(found):
    good = pa.RecordBatch.from_pydict({"user_id": [1, 2], "item_id": [3, 4], "timestamp_ms": [1000, 2000]})
    all_batches = [good, *found, good]
    messages = [_message(n, encode_events(batch), ARROW_HEADER) for n, batch in enumerate(all_batches)]
    decoded = _check(messages, [batch.num_rows for batch in all_batches])
    good_offsets = [n for n in decoded.rows["offset"].to_pylist() if n in (0, len(all_batches) - 1)]
    assert len(good_offsets) == 2 * decode_messages([messages[0]], Place("t", 0, 2)).rows.num_rows > 0
    for letter in decoded.dead:
        # The last resort: what is known to come is judged, not caught.
        assert not letter.reason.startswith("cannot be decoded")
        if letter.value[:1] == b"{":
            assert type(orjson.loads(letter.value)) is dict


@given(st.binary(max_size=40), st.integers(0, 400), st.binary(min_size=1, max_size=8))
def test_arrow_messages_with_broken_bytes(tail, at, noise):
    events = pa.RecordBatch.from_pydict(
        {"user_id": ["a", "b"], "item_id": [3, 4], "timestamp_ms": [1000, 2000]}
    )
    value = bytearray(encode_events(events))
    value[at : at + len(noise)] = noise
    decoded = decode_messages([_message(0, bytes(value) + tail, ARROW_HEADER)], Place("t", 0, 1))
    assert decoded.row_count >= 0
    assert all(isinstance(letter.value, bytes) for letter in decoded.dead)


@given(
    st.lists(
        st.tuples(st.one_of(st.none(), st.binary(max_size=4)), st.one_of(st.none(), payloads)), max_size=5
    )
)
def test_catalogue_records_of_any_bytes(found):
    records = [
        SimpleNamespace(topic="items", partition=0, offset=n, key=key, value=value)
        for n, (key, value) in enumerate(found)
    ]
    items, dead_items = parse_items(records)
    users, dead_users = parse_users(records, ["gender", "age"])
    assert items.num_rows + len(dead_items) == users.num_rows + len(dead_users) == len(records)
    items.validate(full=True)
    users.validate(full=True)
