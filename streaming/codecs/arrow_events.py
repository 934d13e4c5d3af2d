"""Events in Arrow messages: one IPC stream with many events per message.

A message that cannot be read at all (not an IPC stream, a required column missing) counts as one row, at row 0; an
unusable value costs only its row. Shapes: N rows, M messages.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import pyarrow as pa

from streaming.arrays import Int8Array, Int32Array
from streaming.codecs.arrow_limits import (
    ArrowTooLargeError,
    ColumnMissingError,
    require_declared,
    require_decodable,
)
from streaming.events.columns import EXPECTED, cast
from streaming.events.dead_letter import DeadLetter
from streaming.events.faults import Reason
from streaming.events.mapping import FieldMapping
from streaming.events.partitioner import key_hashes_of_users
from streaming.events.quoting import described
from streaming.events.row_json import row_json, shown
from streaming.events.schema import EVENT_SCHEMA, REQUIRED_COLUMNS, TIMESTAMP_MS, USER_ID, empty_batch
from streaming.events.validation import Message, ParsedEvents, Place, with_texts


def encode(events: pa.RecordBatch) -> bytes:
    """One Arrow IPC stream, uncompressed, because Kafka compresses."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, events.schema) as writer:
        writer.write_batch(events)
    return bytes(sink.getvalue())


def parse(messages: Sequence[Message], place: Place) -> tuple[ParsedEvents, list[DeadLetter]]:
    """Concatenates the messages' events; messages that cannot be read become dead letters."""
    good: list[Message] = []
    originals: list[pa.RecordBatch] = []
    named: list[pa.RecordBatch] = []
    dead: list[DeadLetter] = []
    for message in messages:
        value = message.value or b""
        try:
            batch = _read(value, place)
            columns = _named(batch, place)
            _require_columns(columns.schema.names)
        except (pa.ArrowException, ValueError, OSError) as error:
            reason = Reason(_code_of(error), f"not a usable Arrow message: {described(error)}")
            dead.append(place.dead(reason, message.offset, 0, value))
            continue
        good.append(message)
        originals.append(batch)
        named.append(columns)
    return _parsed(good, originals, named, place.mapping), dead


def _named(batch: pa.RecordBatch, place: Place) -> pa.RecordBatch:
    """The batch with Freshet's names; texts that rows share in nested columns are checked as `_read` checks others."""
    if place.mapping is None:
        return batch
    columns = place.mapping.columns(batch)
    require_decodable(columns, place.max_decoded_bytes)
    return columns


def _code_of(error: Exception) -> str:
    if isinstance(error, ArrowTooLargeError):
        return "too_large"
    return "missing_field" if isinstance(error, ColumnMissingError) else "not_arrow"


def parse_rows(batch: pa.RecordBatch, message: Message, mapping: FieldMapping | None = None) -> ParsedEvents:
    """The rows of a batch that was not read from a message, in the same form.

    Raises:
        ValueError: a column that is required is missing, or one occurs twice.
    """
    batch = _checked(batch)
    columns = batch if mapping is None else mapping.columns(batch)
    _require_columns(columns.schema.names)
    return _parsed([message], [batch], [columns], mapping)


def rows_json(value: bytes, rows: Iterable[int]) -> Mapping[int, bytes]:
    """Rows of a message in the form in which dead letters hold them; rows that do not exist are left out."""
    batch = _read(value)
    return {row: row_json(batch, row) for row in rows if row < batch.num_rows}


def original_rows(value: bytes, place: Place) -> pa.RecordBatch:
    """All rows of a message that `parse` accepts, with all their columns."""
    return _read(value, place)


class _UnreadableError(ValueError):
    """The whole message cannot be used."""


def _read(value: bytes, place: Place | None = None) -> pa.RecordBatch:
    if place is not None and not place.extents_known:
        require_declared(value, place.max_message_rows, place.max_decoded_bytes)
    with pa.ipc.open_stream(value) as reader:
        batches = list(reader)
    if len(batches) == 1:
        batch = batches[0]
    elif batches:
        batch = pa.concat_batches(batches)
    else:
        batch = empty_batch(reader.schema)
    if place is not None:
        # The buffers are long enough, but may hold anything.
        batch.validate()
        require_decodable(batch, place.max_decoded_bytes)
    return _checked(batch)


def _checked(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch after validation: lengths and offsets are not trusted, and nothing may read beyond a buffer later.

    A text column that is not valid UTF-8 becomes a column of bytes, so that only its bad rows are lost.
    """
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid:
        columns = [_checked_column(column) for column in batch.columns]
        batch = pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
        batch.validate(full=True)
    return batch


def _checked_column(column: pa.Array) -> pa.Array:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        if pa.types.is_string(column.type):
            return column.view(pa.binary())
        if pa.types.is_large_string(column.type):
            return column.view(pa.large_binary())
        raise
    return column


def _require_columns(names: Sequence[str]) -> None:
    for name in REQUIRED_COLUMNS:
        if name not in names:
            raise ColumnMissingError(f"column {name} is missing (it has {', '.join(names)})")
    for name in EVENT_SCHEMA.names:
        if names.count(name) > 1:
            raise _UnreadableError(f"column {name} occurs twice")


@dataclass
class _Events:
    """Events in the columns of EVENT_SCHEMA.

    Attributes:
        events: EVENT_SCHEMA (n,); null where a value is missing or unusable.
        unfit_N: int8 (n,), 1 + the index in EVENT_SCHEMA of a column with an unusable value, else 0; None if there are
            no such rows.
        key_N: int32 (n,), Kafka's hash of each user.
        texts: of text ids, by column.
    """

    events: pa.RecordBatch
    unfit_N: Int8Array | None
    key_N: Int32Array
    texts: Mapping[str, pa.Array] = field(default_factory=dict)


def _cast(batch: pa.RecordBatch) -> _Events:
    """Rows with the columns of an event, of any types."""
    if batch.schema.equals(EVENT_SCHEMA):
        return _Events(batch, None, _key_hashes(batch[USER_ID]))
    columns, unfit_N, key_N = [], None, None
    texts: dict[str, pa.Array | None] = {}
    for place, of_event in enumerate(EVENT_SCHEMA, start=1):
        if of_event.name not in batch.schema.names:
            columns.append(pa.nulls(batch.num_rows, of_event.type))
            continue
        made = cast(of_event.name, batch.column(of_event.name))
        texts[of_event.name] = made.texts
        columns.append(made.values)
        if made.unfit_N is not None:
            unfit_N = np.zeros(batch.num_rows, np.int8) if unfit_N is None else unfit_N
            unfit_N[made.unfit_N & (unfit_N == 0)] = place
        if of_event.name == USER_ID:
            key_N = made.key_N
    events = pa.RecordBatch.from_arrays(columns, schema=EVENT_SCHEMA)
    key_N = key_N if key_N is not None else _key_hashes(events[USER_ID])
    return _Events(events, unfit_N, key_N, with_texts(texts))


def _key_hashes(users: pa.Array) -> Int32Array:
    return key_hashes_of_users(users.fill_null(0).to_numpy(zero_copy_only=False))


def _cast_together(originals: Iterable[pa.RecordBatch]) -> Iterator[_Events]:
    """Consecutive batches whose events have the same types are cast as one; ignored columns are not copied."""
    for _, alike in groupby(map(_event_columns, originals), lambda batch: batch.schema):
        batches = list(alike)
        yield _cast(batches[0] if len(batches) == 1 else pa.concat_batches(batches))


def _event_columns(batch: pa.RecordBatch) -> pa.RecordBatch:
    if batch.schema.equals(EVENT_SCHEMA, check_metadata=True):
        return batch
    names = batch.schema.names
    return batch.select([n for n in EVENT_SCHEMA.names if n in names]).replace_schema_metadata(None)


def _parsed(
    messages: list[Message],
    originals: list[pa.RecordBatch],
    named: list[pa.RecordBatch],
    mapping: FieldMapping | None,
) -> ParsedEvents:
    count_M = np.array([batch.num_rows for batch in originals], np.int64)
    start_M = np.cumsum(count_M) - count_M
    read = list(_cast_together(named))
    whole = pa.concat_batches([one.events for one in read]) if read else empty_batch(EVENT_SCHEMA)
    unfit_N = None
    if any(one.unfit_N is not None for one in read):
        fits = [
            np.zeros(one.events.num_rows, np.int8) if one.unfit_N is None else one.unfit_N for one in read
        ]
        unfit_N = np.concatenate(fits)

    def place_of(n: int) -> tuple[pa.RecordBatch, int]:
        m = int(np.searchsorted(start_M, n, side="right")) - 1
        while count_M[m] == 0:
            m -= 1
        return originals[m], n - int(start_M[m])

    def why_unfit(n: int) -> str:
        assert unfit_N is not None
        name = EVENT_SCHEMA.names[unfit_N[n] - 1]
        batch, row = place_of(n)
        column = batch.column(name) if mapping is None else mapping.column(batch, name)
        code = "bad_time" if name == TIMESTAMP_MS else "wrong_type"
        return Reason(code, f"{name} must be {EXPECTED[name]}, got {shown(column, row)}")

    return ParsedEvents(
        whole,
        np.repeat(np.array([message.offset for message in messages], np.int64), count_M),
        (np.arange(whole.num_rows) - np.repeat(start_M, count_M)).astype(np.int32),
        np.repeat(np.array([message.timestamp for message in messages], np.int64), count_M),
        np.concatenate([np.zeros(0, np.int32), *(one.key_N for one in read)]),
        lambda n: row_json(*place_of(n)),
        unfit_N,
        why_unfit,
        _joined_texts(read),
    )


def _joined_texts(read: Sequence[_Events]) -> Mapping[str, pa.Array]:
    names = dict.fromkeys(name for one in read for name in one.texts)
    return {
        name: pa.concat_arrays(
            [one.texts.get(name, pa.nulls(one.events.num_rows, pa.string())) for one in read]
        )
        for name in names
    }
