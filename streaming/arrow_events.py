"""Events in Arrow messages: one IPC stream with many events per message.

A message that cannot be read as a whole (not an IPC stream, a required column missing or of a wrong type)
counts as one row, at row 0. Shapes: N rows, M messages.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from streaming.dead_letter import DeadLetter
from streaming.hashing import hash_texts
from streaming.partitioner import Int32s, key_hashes_of_texts, key_hashes_of_users
from streaming.schema import EVENT_SCHEMA, ITEM_ID, REQUIRED_COLUMNS, USER_ID, empty_batch
from streaming.validation import Message, ParsedEvents, Place


def encode(events: pa.RecordBatch) -> bytes:
    """One Arrow IPC stream, uncompressed: Kafka compresses."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, events.schema) as writer:
        writer.write_batch(events)
    return bytes(sink.getvalue())


def parse(messages: Sequence[Message], place: Place) -> tuple[ParsedEvents, list[DeadLetter]]:
    """Concatenates the messages' events; messages that cannot be read become dead letters."""
    good: list[Message] = []
    originals: list[pa.RecordBatch] = []
    events: list[pa.RecordBatch] = []
    dead: list[DeadLetter] = []
    for message in messages:
        value = message.value or b""
        try:
            original = _read(value)
            events.append(_normalise(original))
        except (pa.ArrowException, _UnreadableError, UnicodeDecodeError, OSError) as error:
            dead.append(place.dead(f"not a usable Arrow message: {error}", message.offset, 0, value))
            continue
        good.append(message)
        originals.append(original)
    return _concatenate(good, originals, events), dead


def parse_rows(batch: pa.RecordBatch, message: Message) -> ParsedEvents:
    """The rows of one batch that was read elsewhere, as those of a message.

    Raises:
        ValueError: a column that is required is missing, or one has a wrong type.
    """
    return _concatenate([message], [batch], [_normalise(batch)])


def rows_json(value: bytes) -> list[bytes]:
    """Each row of a readable message as a dead letter carries it."""
    return [orjson.dumps(row, default=str) for row in _read(value).to_pylist()]


def rows_in(value: bytes) -> int:
    """Rows of a message; 1 for one that cannot be read, which counts as one row."""
    try:
        with pa.ipc.open_stream(value) as reader:
            return sum(batch.num_rows for batch in reader)
    except (pa.ArrowException, OSError):
        return 1


class _UnreadableError(ValueError):
    """The message as a whole cannot be used."""


def _read(value: bytes) -> pa.RecordBatch:
    with pa.ipc.open_stream(value) as reader:
        batches = list(reader)
    if len(batches) == 1:
        batch = batches[0]
    elif batches:
        batch = pa.concat_batches(batches)
    else:
        batch = empty_batch(reader.schema)
    # Lengths and offsets come from the network: nothing may read beyond a buffer later.
    batch.validate(full=True)
    return batch


def _normalise(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch's columns as EVENT_SCHEMA has them, but text ids still as text."""
    if batch.schema.equals(EVENT_SCHEMA):
        return batch
    for name in REQUIRED_COLUMNS:
        if name not in batch.schema.names:
            raise _UnreadableError(f"column {name} is missing (it has {', '.join(batch.schema.names)})")
    columns = [_column(batch, field) for field in EVENT_SCHEMA]
    return pa.RecordBatch.from_arrays(columns, names=EVENT_SCHEMA.names)


def _column(batch: pa.RecordBatch, field: pa.Field) -> pa.Array:
    if field.name not in batch.schema.names:
        return pa.nulls(batch.num_rows, field.type)
    if batch.schema.names.count(field.name) > 1:
        raise _UnreadableError(f"column {field.name} is there twice")
    column = batch.column(field.name)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    if field.name in (USER_ID, ITEM_ID) and is_text:
        texts = column.cast(pa.string())
        return pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)
    fits = (
        pa.types.is_null(column.type)
        or (pa.types.is_integer(field.type) and pa.types.is_integer(column.type))
        or (pa.types.is_string(field.type) and is_text)
        or (pa.types.is_floating(field.type) and _is_number(column.type))
    )
    if not fits:
        raise _UnreadableError(f"column {field.name} must be {field.type}, not {column.type}")
    # Unsafe for floats only in precision; an integer that does not fit raises.
    return column.cast(field.type, safe=not pa.types.is_floating(field.type))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _concatenate(
    messages: list[Message], originals: list[pa.RecordBatch], events: list[pa.RecordBatch]
) -> ParsedEvents:
    count_M = np.array([batch.num_rows for batch in events], np.int64)
    start_M = np.cumsum(count_M) - count_M
    keys = [_text_keys(batch) for batch in events]
    numeric = [_numeric(batch) for batch in events]
    whole = pa.concat_batches(numeric) if numeric else empty_batch(EVENT_SCHEMA)
    user_N = pc.fill_null(whole[USER_ID], 0).to_numpy(zero_copy_only=False)
    key_N = key_hashes_of_users(user_N)
    for start, key in zip(start_M, keys, strict=True):
        if key is not None:
            key_N[start : start + len(key)] = key

    def original(n: int) -> bytes:
        m = int(np.searchsorted(start_M, n, side="right")) - 1
        while count_M[m] == 0:
            m -= 1
        return _row_json(originals[m], n - int(start_M[m]))

    return ParsedEvents(
        whole,
        np.repeat(np.array([message.offset for message in messages], np.int64), count_M),
        (np.arange(whole.num_rows) - np.repeat(start_M, count_M)).astype(np.int32),
        np.repeat(np.array([message.timestamp for message in messages], np.int64), count_M),
        key_N,
        original,
    )


def _text_keys(batch: pa.RecordBatch) -> Int32s | None:
    users = batch.column(USER_ID)
    if not pa.types.is_string(users.type):
        return None
    return key_hashes_of_texts(pc.fill_null(users, ""))


def _numeric(batch: pa.RecordBatch) -> pa.RecordBatch:
    columns = [_hashed(column) if name in (USER_ID, ITEM_ID) else column for name, column in _named(batch)]
    return pa.RecordBatch.from_arrays(columns, schema=EVENT_SCHEMA)


def _named(batch: pa.RecordBatch) -> "zip[tuple[str, pa.Array]]":
    return zip(batch.schema.names, batch.columns, strict=True)


def _hashed(ids: pa.Array) -> pa.Array:
    if not pa.types.is_string(ids.type):
        return ids
    return pa.array(hash_texts(pc.fill_null(ids, "")), mask=ids.is_null().to_numpy(zero_copy_only=False))


def _row_json(batch: pa.RecordBatch, row: int) -> bytes:
    original: dict[str, Any] = batch.slice(row, 1).to_pylist()[0]
    return orjson.dumps(original, default=str)
