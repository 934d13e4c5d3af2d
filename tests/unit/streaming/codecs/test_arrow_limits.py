"""An Arrow message's declared size is read from its headers; a message above the limits is one letter."""

import time
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from streaming.codecs.arrow_limits import ArrowLimitError, Extent, declared, require_declared
from streaming.codecs.codec import decode_messages, encode_events, extent_of
from streaming.events.validation import Place
from tests.support.bombs import ARROW_HEADERS, START_MS, arrow_bombs, ipc

LIMITS = {"max_message_bytes": 4 << 20, "max_decoded_bytes": 64 << 20, "max_message_rows": 65_536}
PLACE = Place("t", 0, 1, **LIMITS)
BOMBS = arrow_bombs()


def _message(value, offset=0):
    return SimpleNamespace(offset=offset, timestamp=START_MS, value=value, headers=ARROW_HEADERS)


def _events(rows, **more):
    columns = {
        "user_id": np.arange(rows),
        "item_id": np.arange(rows),
        "timestamp_ms": START_MS + np.arange(rows),
    }
    return pa.RecordBatch.from_pydict(columns | more)


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_one_letter_in_a_moment_and_its_neighbours_are_read(name):
    fine = encode_events(_events(3))
    before = pa.total_allocated_bytes()
    started = time.process_time()
    decoded = decode_messages([_message(fine), _message(BOMBS[name], 1), _message(fine, 2)], PLACE)
    assert time.process_time() - started < 2.0
    assert pa.total_allocated_bytes() - before < 8 << 20
    assert decoded.rows["offset"].to_pylist() == [0, 0, 0, 2, 2, 2]
    (letter,) = decoded.dead
    assert (letter.offset, letter.row, letter.value) == (1, 0, BOMBS[name])
    assert letter.reason.startswith("not a usable Arrow message: ")


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize("rows", [0, 1, 5000])
def test_rows_and_bytes_are_those_that_decoding_gives(compression, rows):
    batch = _events(rows, action=[f"action {n}" for n in range(rows)])
    extent = declared(ipc(batch, compression))
    assert extent.rows == rows
    assert batch.nbytes <= extent.size <= batch.nbytes * 1.2 + 8192


def test_several_batches_and_the_form_of_before_arrow_0_15_are_read_too():
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(use_legacy_format=True)
    with pa.ipc.new_stream(sink, _events(1).schema, options=options) as writer:
        writer.write_batch(_events(3))
        writer.write_batch(_events(4))
    value = bytes(sink.getvalue())
    assert declared(value).rows == 7
    assert decode_messages([_message(value)], PLACE).rows.num_rows == 7


def test_limits_are_kept_to_the_row_and_the_byte_and_0_is_none():
    value = ipc(_events(100))
    size = declared(value).size
    assert require_declared(value, 100, size) == Extent(100, size)
    with pytest.raises(ArrowLimitError, match=r"100 rows, more than stream\.max_message_rows=99"):
        require_declared(value, 99, size)
    with pytest.raises(ArrowLimitError, match=rf"stream\.max_decoded_bytes={size - 1}"):
        require_declared(value, 100, size - 1)
    assert require_declared(value, 0, 0).rows == 100


def test_a_cut_or_changed_header_is_an_error_of_ours_and_never_another_one():
    value = ipc(_events(5, action=["a"] * 5), "lz4")
    rng = np.random.default_rng(0)
    for cut in range(0, len(value), 7):
        _never_raises(value[:cut])
    for _ in range(300):
        changed = bytearray(value)
        for at in rng.integers(0, len(value), 3):
            changed[at] = rng.integers(0, 256)
        _never_raises(bytes(changed))


def _never_raises(value):
    extent_of(_message(value), PLACE)
    decoded = decode_messages([_message(value)], PLACE)
    assert decoded.rows.num_rows <= 65_536


def _outcome(value):
    try:
        return declared(value)
    except ArrowLimitError:
        return "refused"


def test_a_schema_that_was_seen_before_changes_nothing_of_what_a_message_declares(monkeypatch):
    rng = np.random.default_rng(1)
    values = [*BOMBS.values(), *(encode_events(_events(rows)) for rows in (0, 1, 500))]
    values += [ipc(_events(7), "zstd"), ipc(pa.RecordBatch.from_pydict({}))]
    for value in list(values):
        for _ in range(20):
            changed = bytearray(value[:4096]) + value[4096:]
            for at in rng.integers(0, min(len(value), 2048), 2):
                changed[at] = rng.integers(0, 256)
            values.append(bytes(changed))
    for value in values:
        monkeypatch.setattr("streaming.codecs.arrow_limits._last_schema", [b""])
        assert _outcome(value) == _outcome(value) == _outcome(value)


def test_a_schema_with_a_body_behind_it_is_read_anew_each_time(monkeypatch):
    """What reads the body as the next message would be told of a small batch where a large one follows."""
    remembered = [b""]
    monkeypatch.setattr("streaming.codecs.arrow_limits._last_schema", remembered)
    value = bytearray(encode_events(_events(1)))
    assert _outcome(bytes(value)) != "refused"
    assert remembered[0]
    assert bytes(value).startswith(remembered[0])
    header = (
        int.from_bytes(value[8:12], "little") + 8
    )  # of the message: its table, whose fields come by way of a list
    places = header - int.from_bytes(value[header : header + 4], "little", signed=True)
    field = int.from_bytes(value[places + 4 + 6 : places + 12], "little")
    assert field, "pyarrow writes the length of a schema's body, which is 0"
    value[header + field] = 8
    remembered[:] = [b""]
    _outcome(bytes(value))
    assert remembered == [b""]


def test_texts_that_rows_share_are_decoded_where_they_come_to_little():
    shared = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 0], pa.int32()), pa.array(["view", "buy"]))
    views = pa.array(["a", None, "a long text that does not fit into a view", "b"], pa.string_view())
    decoded = decode_messages([_message(ipc(_events(4, action=shared, event_id=views)))], PLACE)
    assert decoded.dead == []
    assert decoded.rows["action"].to_pylist() == ["view", "buy", None, "view"]
    assert decoded.rows["event_id"].to_pylist() == views.to_pylist()


def test_originals_of_bad_rows_are_kept_up_to_the_bound_and_every_row_still_has_its_letter():
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(500, np.int32)), pa.array(["x" * 100_000]))
    batch = _events(500, item_id=pa.nulls(500, pa.int64()), more=text)
    place = Place("t", 0, 1, **(LIMITS | {"max_decoded_bytes": 1_000_000}))
    decoded = decode_messages([_message(ipc(batch))], place)
    assert [letter.row for letter in decoded.dead] == list(range(500))
    assert {letter.reason for letter in decoded.dead} == {"item_id is missing"}
    assert 1_000_000 <= sum(letter.length for letter in decoded.dead) <= 1_200_000
    assert sum(letter.size for letter in decoded.dead) < 3_000_000
