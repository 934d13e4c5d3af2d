"""One row of an Arrow batch as JSON, for dead letters; works for any types and values."""

import base64
import math
from decimal import Decimal
from typing import Any

import orjson
import pyarrow as pa

from streaming.events.columns import cast
from streaming.events.quoting import quoted
from streaming.events.schema import TIMESTAMP_MS


def row_json(batch: pa.RecordBatch, row: int) -> bytes:
    """The row as a JSON object that can be edited and sent again.

    A timestamp in `timestamp_ms` becomes milliseconds, bytes become text (base64 if they are not UTF-8), and numbers
    that JSON lacks become the texts "NaN", "Infinity" and "-Infinity". A value without a JSON form is described.
    """
    original = {
        name: _value(name, column.slice(row, 1))
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
    }
    try:
        return orjson.dumps(original, default=as_json)
    except TypeError:  # orjson.JSONEncodeError: too deep, or keys that are not texts
        return orjson.dumps({name: _alone(value) for name, value in original.items()}, default=as_json)


def shown(column: pa.Array, row: int) -> str:
    """One value of a column with its type, for an error message."""
    return f"{quoted(_value('', column.slice(row, 1)))} ({column.type})"


def _value(name: str, one: pa.Array) -> Any:
    try:
        if name == TIMESTAMP_MS and pa.types.is_temporal(one.type):
            milliseconds = cast(name, one).values[0].as_py()
            if milliseconds is not None:
                return milliseconds
        value = one[0].as_py()
    except Exception:
        # Years that Python cannot represent, zones unknown to this machine, names that occur twice.
        value = _printed(one)
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{'-' if value < 0 else ''}Infinity"
    return value


def _printed(one: pa.Array) -> str:
    try:
        return str(one.cast(pa.string())[0].as_py())
    except Exception:
        return f"<{one.type}>"


def _alone(value: Any) -> Any:
    try:
        orjson.dumps(value, default=as_json)
    except TypeError:
        return quoted(value)
    return value


def as_json(value: Any) -> Any:
    """Converts values that `orjson.dumps` does not know: bytes to text or base64, numbers to numbers."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    if isinstance(value, Decimal):
        whole = value.is_finite() and value == value.to_integral_value() and abs(value) < 2**63
        return int(value) if whole else float(value)
    try:
        return str(value)
    except Exception:
        return quoted(value)
