"""Event times in the unit that a producer uses, as milliseconds since 1970. Shapes: N rows."""

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_PER_SECOND = {"s": 1, "ms": 1000, "us": 1_000_000, "ns": 1_000_000_000}


def milliseconds(value: Any, unit: str) -> Any:
    """A decoded JSON time in milliseconds; a value that is not a time in this unit comes back unusable.

    A text is read as ISO 8601 in any unit; without a zone it is UTC.

    Args:
        value: of the field that holds the time.
        unit: of numbers; `iso8601` allows none.
    """
    kind = type(value)
    if kind is str:
        return _iso_ms(value)
    if unit == "ms" or (kind is not int and kind is not float):
        return value
    if unit == "iso8601":
        return str(value)
    if kind is int:
        return value * 1000 // _PER_SECOND[unit]
    scaled = value * (1000 / _PER_SECOND[unit])
    return float(round(scaled)) if abs(scaled) < 2**53 else value  # false for NaN


def column_in_ms(column: pa.Array, unit: str) -> pa.Array:
    """A column of times for `streaming.events.columns.cast`: timestamps, or milliseconds.

    Args:
        column: of any type; timestamps and dates say their own unit.
        unit: of numbers; texts are ISO 8601 in any unit.
    Returns:
        The same length. A text that is not a time becomes NaN, which is an unusable value rather than a missing one.
    """
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return _of_texts(column.cast(pa.string()))
    if pa.types.is_integer(kind) and unit == "iso8601":
        return pc.if_else(column.is_null(), pa.scalar(None, pa.float64()), pa.scalar(np.nan))
    if unit in ("ms", "iso8601"):
        return column
    if pa.types.is_integer(kind) and kind != pa.uint64():
        return column.cast(pa.int64()).view(pa.timestamp(unit))
    if pa.types.is_floating(kind):
        return pc.round(pc.multiply(column.cast(pa.float64()), 1000 / _PER_SECOND[unit]))
    return column


def _of_texts(texts: pa.Array) -> pa.Array:
    for kind in (pa.timestamp("us", "UTC"), pa.timestamp("us")):
        try:
            return texts.cast(kind)
        except pa.ArrowInvalid:
            continue
    times = [None if text is None else _iso_ms(text) for text in texts.to_pylist()]
    return pa.array([np.nan if type(time) is str else time for time in times], pa.float64())


def _iso_ms(text: str) -> int | str:
    """Milliseconds of an ISO 8601 time; the text itself if it is not one."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return text
    return ((time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH) // _MILLISECOND
