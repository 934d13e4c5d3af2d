"""The size that an Arrow message declares, read from its headers before anything is decoded.

A few hundred bytes can declare any number of rows (columns of nulls have no buffers), compressed buffers of any length,
and texts that many rows share. `declared` reads the headers of the IPC stream, which show all of this except shared
texts; `require_decodable` checks those in the opened columns, before they are expanded.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streaming.events.schema import EVENT_SCHEMA, REQUIRED_COLUMNS

_CONTINUATION = 0xFFFFFFFF
_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3
# Parts of a header may be shared, so its size in memory may be the square of its length.
_MOST_HEADER_BYTES = 65_536
# Memory per byte of a batch's header.
_HEADER_COST = 8
# The cost of an element once it is used, even if no buffer holds it.
_ELEMENT_BYTES = 8
# What may follow a stream's last message: the end marker of writers, or nothing.
_ENDS = (b"\xff\xff\xff\xff\x00\x00\x00\x00", b"\x00\x00\x00\x00", b"")
# The last schema message that was read. Producers send the same one again and again.
_last_schema = [b""]
# The last schema, if any, without columns that can share texts or hold only nulls.
_last_plain_schema: list[pa.Schema] = []
_U16, _I32, _U32, _I64 = (struct.Struct(f"<{kind}") for kind in "HiIq")
_U32_PAIR = struct.Struct("<II")


class ArrowLimitError(ValueError):
    """An Arrow message declares more than it may hold, or its headers cannot be read."""


class ArrowTooLargeError(ArrowLimitError):
    """It has more rows or bytes than a setting allows; names the setting."""


class ColumnMissingError(ArrowLimitError):
    """A required column is missing or can only hold nulls."""


class Extent(NamedTuple):
    """What a message decodes to.

    Attributes:
        rows: of all its record batches.
        size: bytes of their buffers and of the dictionaries, decompressed, at least.
        is_refused: whether it must not be decoded; it then counts as one row of its own length.
    """

    rows: int
    size: int
    is_refused: bool = False


def declared(value: bytes) -> Extent:
    """The rows and bytes that an IPC stream declares; takes about 0.1 ms, whatever the size.

    Raises:
        ArrowLimitError: the headers cannot be read, or one is longer than 64 KiB.
    """
    rows = size = dictionaries = 0
    try:
        if (plain := _of_one_batch(value)) is not None:
            return plain
        for kind, header, start, cost in _messages(value):
            if kind == _SCHEMA:
                continue
            if kind not in (_DICTIONARY, _BATCH):
                raise ArrowLimitError(f"a part of kind {kind} in the stream")
            batch = header if kind == _BATCH else header.table(1)
            bytes_here = _decoded_bytes(value, batch, start) + cost
            size += bytes_here
            if kind == _DICTIONARY:
                dictionaries += bytes_here
            else:
                rows += batch.int64(0)
                # Arrow reassembles a dictionary that was sent in parts for each batch.
                size += dictionaries
    except (struct.error, IndexError, ValueError, OverflowError) as error:
        if isinstance(error, ArrowLimitError):
            raise
        raise ArrowLimitError(f"its headers cannot be read: {error}") from error
    return Extent(rows, size)


def require_declared(value: bytes, most_rows: int, most_bytes: int) -> Extent:
    """What a message declares, if it may be decoded; a limit of 0 means none.

    Raises:
        ArrowLimitError: it may not, or its headers cannot be read; names the setting.
    """
    extent = declared(value)
    if 0 < most_rows < extent.rows:
        raise ArrowTooLargeError(
            f"it declares {extent.rows} rows, more than stream.max_message_rows={most_rows}"
        )
    _require_bytes(extent.size, most_bytes)
    return extent


def require_decodable(columns: pa.RecordBatch, most_bytes: int) -> None:
    """Checks the expanded size of texts that rows share, in dictionaries and behind views.

    Args:
        columns: opened, with buffers of the right length (`validate`) but any content. Full validation comes
            afterwards, because it reads every text that a view points to, shared or not.
        most_bytes: limit of their sizes together; 0 means none.
    Raises:
        ArrowLimitError: they are larger (names the setting), or a required column can only hold nulls.
    """
    if _last_plain_schema and columns.schema.equals(_last_plain_schema[0]):
        return
    if not any(
        pa.types.is_null(kind)
        or pa.types.is_nested(kind)
        or pa.types.is_dictionary(kind)
        or _is_view(kind)
        or pa.types.is_run_end_encoded(kind)
        or isinstance(kind, pa.BaseExtensionType)
        for kind in columns.schema.types
    ):
        _last_plain_schema[:] = [columns.schema]
        return
    total = 0
    for name, column in zip(columns.schema.names, columns.columns, strict=True):
        if name in REQUIRED_COLUMNS and pa.types.is_null(column.type):
            raise ColumnMissingError(f"column {name} is of type null: it has no value in any row")
        if most_bytes:
            total += sum(int(_lengths(part).sum()) for part in _parts(column) if _is_view(part.type))
            total += repeated_bytes(column) if name in EVENT_SCHEMA.names else 0
    _require_bytes(total, most_bytes)


def _require_bytes(size: int, most: int) -> None:
    if 0 < most < size:
        raise ArrowTooLargeError(
            f"it decodes to {size} bytes or more, more than stream.max_decoded_bytes={most}"
        )


def repeated_bytes(column: pa.Array) -> int:
    """The size of a dictionary's or run-length array's texts when every row has its own copy."""
    if pa.types.is_run_end_encoded(column.type):
        return int(_lengths(column.values).max(initial=0)) * len(column)
    if not pa.types.is_dictionary(column.type):
        return 0
    length_D = _lengths(column.dictionary)
    index_N = column.indices.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    if not len(length_D):
        return 0
    if index_N.min(initial=0) < 0 or index_N.max(initial=0) >= len(length_D):
        raise ArrowLimitError("a dictionary has no entry of a number that a row names")
    # int64 sums cannot overflow: both the rows and the bytes of a message are bounded.
    return int(length_D[index_N].sum())


def _parts(array: pa.Array) -> Iterator[pa.Array]:
    """The array and all its children."""
    kind = array.type
    yield array
    if isinstance(array, pa.ExtensionArray):
        children = [array.storage]
    elif pa.types.is_dictionary(kind):
        children = [array.dictionary]
    elif pa.types.is_map(kind):
        children = [array.keys, array.items]
    elif pa.types.is_struct(kind) or pa.types.is_union(kind):
        children = [array.field(n) for n in range(kind.num_fields)]
    elif kind.num_fields == 1 or pa.types.is_run_end_encoded(kind):  # every kind of list
        children = [array.values]
    else:
        children = []
    for child in children:
        yield from _parts(child)


def _is_view(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string_view(kind) or pa.types.is_binary_view(kind))


def _lengths(values: pa.Array) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """int64 (n,): bytes of each text; zeros for other types."""
    kind = values.type
    if _is_view(kind):
        views = np.frombuffer(values.buffers()[1], np.int32)  # 16 bytes each: the length comes first
        return views[4 * values.offset : 4 * (values.offset + len(values)) : 4].astype(np.int64)
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if is_text or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return pc.binary_length(values).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)  # type: ignore[no-any-return]
    return np.zeros(len(values), np.int64)


class _Table:
    """A table of a FlatBuffer, whose fields are found through its list of offsets."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at
        self._places = at - _read(_I32, data, at)
        self._places_length = _read(_U16, data, self._places)

    def _field(self, number: int) -> int:
        """The field's offset; 0 if it has its default."""
        place = 4 + 2 * number
        if place + 2 > self._places_length:
            return 0
        offset = _read(_U16, self._data, self._places + place)
        return self._at + offset if offset else 0

    def byte(self, number: int) -> int:
        at = self._field(number)
        return self._data[at] if at else 0

    def int64(self, number: int) -> int:
        at = self._field(number)
        found = _read(_I64, self._data, at) if at else 0
        if found < 0:
            raise ValueError(f"a length of {found}")
        return found

    def has(self, number: int) -> bool:
        return bool(self._field(number))

    def table(self, number: int) -> "_Table":
        at = self._field(number)
        if not at:
            raise ValueError("a header without its content")
        return _Table(self._data, at + _read(_U32, self._data, at))

    def pairs(self, number: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """A vector of structures of two int64: the first ones, and the second ones."""
        at = self._field(number)
        if not at:
            return (), ()
        at += _read(_U32, self._data, at)
        count = _read(_U32, self._data, at)
        if count > len(self._data):
            raise ValueError("it ends too early")
        numbers = struct.unpack_from(f"<{2 * count}q", self._data, at + 4)
        return numbers[::2], numbers[1::2]


def _messages(value: bytes) -> Iterator[tuple[int, _Table, int, int]]:
    """Kind, header, start of the body, and the header's cost, for each message of a stream."""
    at = 0
    while at + 4 <= len(value):
        length = _read(_U32, value, at)
        at += 4
        if length == _CONTINUATION:  # missing in the format before Arrow 0.15
            length = _read(_U32, value, at)
            at += 4
        if length == 0:
            return
        if length > _MOST_HEADER_BYTES:
            raise ArrowLimitError(f"a header of {length} bytes; one may have {_MOST_HEADER_BYTES}")
        data = value[at : at + length]
        if len(data) < length:
            raise ValueError("it ends too early")
        message = _Table(data, _read(_U32, data, 0))
        is_first, at = at <= _U32_PAIR.size, at + length
        body = message.int64(3)
        yield message.byte(1), message.table(2), at, _HEADER_COST * length
        if is_first and message.byte(1) == _SCHEMA and not body:
            _last_schema[:] = [value[:at]]
        at += body


def _of_one_batch(value: bytes) -> Extent | None:
    """The same in a third of the time, for the usual message: the last schema and one batch.

    None for any other message.
    """
    schema = _last_schema[0]
    if not schema or not value.startswith(schema):
        return None
    continuation, length = _U32_PAIR.unpack_from(value, len(schema))
    start = len(schema) + _U32_PAIR.size + length
    if continuation != _CONTINUATION or not 0 < length <= _MOST_HEADER_BYTES or len(value) < start:
        return None
    data = value[start - length : start]
    message = _Table(data, _read(_U32, data, 0))
    if message.byte(1) != _BATCH:
        return None
    after = start + message.int64(3)
    if value[after:] not in _ENDS:
        return None
    batch = message.table(2)
    return Extent(batch.int64(0), _decoded_bytes(value, batch, start) + _HEADER_COST * length)


def _decoded_bytes(value: bytes, batch: _Table, start: int) -> int:
    """The extent of a record batch whose body begins at `start`."""
    elements, _ = batch.pairs(1)
    offsets, sizes = batch.pairs(2)
    if batch.has(3):
        compressed = zip(offsets, sizes, strict=True)
        sizes = tuple(_decompressed_bytes(value, start + at, length) for at, length in compressed if length)
    if min(elements, default=0) < 0 or min(sizes, default=0) < 0:
        raise ValueError("a negative length")
    return max(sum(sizes), _ELEMENT_BYTES * sum(elements))


def _decompressed_bytes(value: bytes, at: int, length: int) -> int:
    """A compressed buffer begins with the length that it decompresses to; -1: it is not compressed after all."""
    stated = _read(_I64, value, at)
    return length - _I64.size if stated == -1 else stated


def _read(kind: struct.Struct, data: bytes, at: int) -> int:
    if at < 0:
        raise IndexError(f"an offset of {at}")
    return kind.unpack_from(data, at)[0]  # type: ignore[no-any-return]
