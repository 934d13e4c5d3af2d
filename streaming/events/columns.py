"""Converts columns of any Arrow type to the columns of an event; a value that does not fit costs only its row.

Shapes: N rows.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streaming.arrays import BoolArray, Int32Array, Int64Array
from streaming.events.ids import EXACT_IN_DOUBLE, INT64_MAX, INT64_MIN, ids_of_texts
from streaming.events.partitioner import key_hashes_of_texts
from streaming.events.schema import (
    ACTION,
    EVENT_ID,
    EVENT_SCHEMA,
    ITEM_ID,
    TIMESTAMP_MS,
    USER_ID,
    VALUE,
    WEIGHT,
)

_DECIMAL_SCALES = range(39)
_MS_PER = {"s": 1000, "ms": 1}
_PER_MS = {"ms": 1, "us": 1000, "ns": 1_000_000}
_MS_PER_DAY = 86_400_000


class Cast(NamedTuple):
    """A column of an event.

    Attributes:
        values: of the event's type (ids int64); null where the value is missing or does not fit.
        unfit_N: bool (n,), whether a value does not fit; None if all do.
        key_N: int32 (n,), Kafka's hashes of text ids; None for every other column.
        texts: Arrow strings (n,), the texts of text ids; None for every other column.
    """

    values: pa.Array
    unfit_N: BoolArray | None = None
    key_N: Int32Array | None = None
    texts: pa.Array | None = None


def cast(name: str, column: pa.Array) -> Cast:
    """A column in the type of EVENT_SCHEMA, with text ids turned into integers (`streaming.events.ids`).

    Args:
        name: of the event's column.
        column: of any type.
    """
    try:
        return _CASTS[name](_plain(column))
    except pa.ArrowException:
        return _nothing_fits(column, EVENT_SCHEMA.field(name).type)


EXPECTED = {
    USER_ID: "an int64 or a text",
    ITEM_ID: "an int64 or a text",
    TIMESTAMP_MS: "an int64 (milliseconds since 1970) or a timestamp",
    ACTION: "a text",
    EVENT_ID: "a text",
    WEIGHT: "a number",
    VALUE: "a number",
}
"""What a value of each column must be, for people."""


def _plain(column: pa.Array) -> pa.Array:
    """The column without extension types and other wrappers that do not change the values."""
    while True:
        if isinstance(column, pa.ExtensionArray):
            column = column.storage
        elif pa.types.is_run_end_encoded(column.type):
            column = pc.run_end_decode(column)
        elif pa.types.is_dictionary(column.type):
            column = _decoded(column)
        else:
            return column


def _decoded(column: pa.DictionaryArray) -> pa.Array:
    values = column.dictionary
    if _is_view(values.type):  # which Arrow cannot take by index
        values = values.cast(pa.string() if pa.types.is_string_view(values.type) else pa.binary())
    return values.take(column.indices)


def _is_view(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string_view(kind) or pa.types.is_binary_view(kind))


def _id(column: pa.Array) -> Cast:
    if not _is_textual(column.type):
        return _integer(column)
    found = _text(column)
    texts, unfit_N = pc.fill_null(found.values, ""), found.unfit_N
    is_absent_N = pc.equal(texts, "").to_numpy(zero_copy_only=False)
    ids = pa.array(ids_of_texts(texts), mask=is_absent_N)
    return Cast(ids, unfit_N, key_hashes_of_texts(texts), texts)


def _time(column: pa.Array) -> Cast:
    kind = column.type
    if pa.types.is_timestamp(kind):
        number_N, is_null_N = _int64s(column.cast(pa.int64())), _is_null(column)
        if kind.unit in _PER_MS:
            return Cast(pa.array(number_N // _PER_MS[kind.unit], mask=is_null_N))
        return _scaled(number_N, _MS_PER[kind.unit], is_null_N)
    if pa.types.is_date32(kind):
        return _scaled(_int64s(column.cast(pa.int32())), _MS_PER_DAY, _is_null(column))
    if pa.types.is_date64(kind):
        return Cast(column.cast(pa.int64()))
    return _integer(column)


def _scaled(number_N: Int64Array, factor: int, is_null_N: BoolArray) -> Cast:
    unfit_N = (number_N > INT64_MAX // factor) | (number_N < -(INT64_MAX // factor))
    return _without(np.where(unfit_N, 0, number_N) * factor, unfit_N & ~is_null_N, is_null_N)


def _integer(column: pa.Array) -> Cast:
    kind = column.type
    if pa.types.is_null(kind) or (pa.types.is_integer(kind) and kind != pa.uint64()):
        return Cast(column.cast(pa.int64()))
    is_null_N = _is_null(column)
    if kind == pa.uint64():
        number_N = pc.fill_null(column, 0).to_numpy(zero_copy_only=False)
        return _without(number_N.astype(np.int64), number_N > np.uint64(INT64_MAX), is_null_N)
    if pa.types.is_floating(kind):
        # A narrower type holds fewer integers exactly; beyond those, two ids may become the same number.
        exact = {16: 2**11, 32: 2**24, 64: EXACT_IN_DOUBLE}[kind.bit_width]
        number_N = pc.fill_null(column.cast(pa.float64()), 0.0).to_numpy(zero_copy_only=False)
        with np.errstate(invalid="ignore"):
            unfit_N = ~((np.abs(number_N) <= exact) & (np.floor(number_N) == number_N))
        return _without(np.where(unfit_N, 0, number_N).astype(np.int64), unfit_N, is_null_N)
    if pa.types.is_decimal(kind):
        return _whole_decimals(column)
    return _nothing_fits(column, pa.int64())


def _whole_decimals(column: pa.Array) -> Cast:
    scale = column.type.scale
    if scale not in _DECIMAL_SCALES:
        return _nothing_fits(column, pa.int64())
    wide = column.cast(pa.decimal256(76, scale))
    low, high = (pa.scalar(limit, pa.int64()).cast(wide.type) for limit in (INT64_MIN, INT64_MAX))
    in_range = pc.and_(pc.greater_equal(wide, low), pc.less_equal(wide, high))
    fits = pc.and_(pc.equal(pc.trunc(wide), wide), in_range)
    fits_N = pc.fill_null(fits, True).to_numpy(zero_copy_only=False)
    whole = pc.if_else(pa.array(fits_N), wide, pa.scalar(None, wide.type))
    return Cast(whole.cast(pa.int64()), ~fits_N if not fits_N.all() else None)


def _number(column: pa.Array) -> Cast:
    kind = column.type
    if pa.types.is_null(kind):
        return Cast(column.cast(pa.float32()))
    if pa.types.is_decimal(kind):
        column = column.cast(pa.decimal256(76, kind.scale)) if kind.bit_width < 128 else column
        column = column.cast(pa.float64())
    elif not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        return _nothing_fits(column, pa.float32())
    # Unsafe only in precision; values that become infinite are rejected later.
    return Cast(column.cast(pa.float64()).cast(pa.float32(), safe=False))


def _text(column: pa.Array) -> Cast:
    kind = column.type
    if pa.types.is_null(kind) or (_is_textual(kind) and not _is_binary(kind)):
        return Cast(column.cast(pa.string()))
    if not _is_binary(kind):
        return _nothing_fits(column, pa.string())
    data = column.cast(pa.binary())
    try:
        return Cast(data.cast(pa.string()))
    except pa.ArrowInvalid:
        texts = [_utf8(value) for value in data.to_pylist()]
        unfit_N = np.array([text is None for text in texts], np.bool_) & ~_is_null(data)
        return Cast(pa.array(texts, pa.string()), unfit_N)


def _utf8(data: bytes | None) -> str | None:
    try:
        return None if data is None else data.decode()
    except UnicodeDecodeError:
        return None


def _is_binary(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _is_textual(kind: pa.DataType) -> bool:
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return bool(is_text or _is_binary(kind))


def _nothing_fits(column: pa.Array, kind: pa.DataType) -> Cast:
    is_null_N = _is_null(column)
    return Cast(pa.nulls(len(column), kind), ~is_null_N if not is_null_N.all() else None)


def _without(values_N: Int64Array, unfit_N: BoolArray, is_null_N: BoolArray) -> Cast:
    unfit_N = unfit_N & ~is_null_N
    return Cast(pa.array(values_N, mask=unfit_N | is_null_N), unfit_N if unfit_N.any() else None)


def _is_null(column: pa.Array) -> BoolArray:
    nulls: BoolArray = column.is_null().to_numpy(zero_copy_only=False)
    return nulls


def _int64s(column: pa.Array) -> Int64Array:
    numbers: Int64Array = pc.fill_null(column, 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return numbers


_CASTS: dict[str, Callable[[pa.Array], Cast]] = {
    USER_ID: _id,
    ITEM_ID: _id,
    TIMESTAMP_MS: _time,
    ACTION: _text,
    EVENT_ID: _text,
    WEIGHT: _number,
    VALUE: _number,
}
