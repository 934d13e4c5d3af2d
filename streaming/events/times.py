"""Event times of files in milliseconds, from columns of any time type and unit. Shapes: N rows."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from streaming.events.schema import TIMESTAMP_MS

SECONDS = "timestamp"
"""The column that is read if `timestamp_ms` is missing; its numbers are seconds."""
_NUMBERS_BELOW_MS = 2**62
_YEAR_MS = 31_556_952_000
_FIRST_YEAR, _LAST_YEAR = 1971, 2200
FIRST_PLAUSIBLE_MS = _YEAR_MS
"""Earlier event times are likely in another unit: seconds of 2026, read as milliseconds, are in January 1970."""


def time_column(names: list[str]) -> str | None:
    """The column with the event times: `timestamp_ms`, else `timestamp`; None if neither exists."""
    return next((name for name in (TIMESTAMP_MS, SECONDS) if name in names), None)


def times_in_ms(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """The column as int64 milliseconds since 1970, UTC; null where a value is missing or not a time.

    Args:
        column: timestamps of any unit, with or without a time zone (without one they are UTC), dates (their midnight),
            or numbers, which are seconds; in `timestamp_ms`, milliseconds.
        name: of the column.
    Raises:
        ValueError: the column has another type; names both.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if pa.types.is_timestamp(kind):
        # A finer unit is truncated to milliseconds; a coarser one must not overflow.
        return column.cast(pa.timestamp("ms", kind.tz), safe=kind.unit in ("s", "ms")).cast(pa.int64())
    if pa.types.is_date(kind):
        return column.cast(pa.timestamp("ms")).cast(pa.int64())
    if pa.types.is_null(kind):
        return column.cast(pa.int64())
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise ValueError(f"column {name} must hold timestamps, dates or numbers, not {kind}")
    return _scaled(column, 1 if name == TIMESTAMP_MS else 1000)


def _scaled(numbers: pa.ChunkedArray, factor: int) -> pa.ChunkedArray:
    if pa.types.is_integer(numbers.type):
        limit = _NUMBERS_BELOW_MS // factor
        if numbers.type.bit_width == 64:
            largest = pa.scalar(limit, numbers.type)
            inside = pc.less(numbers, largest)
            if pa.types.is_signed_integer(numbers.type):
                inside = pc.and_(inside, pc.greater(numbers, pa.scalar(-limit, numbers.type)))
            numbers = pc.if_else(inside, numbers, pa.scalar(None, numbers.type))
        return pc.multiply(numbers.cast(pa.int64()), factor)
    values_N = pc.fill_null(numbers.cast(pa.float64()), np.nan).to_numpy() * factor
    is_time_N = np.abs(values_N) < _NUMBERS_BELOW_MS  # false for NaN
    rounded_N = np.rint(np.where(is_time_N, values_N, 0)).astype(np.int64)
    return pa.chunked_array([pa.array(rounded_N, mask=~is_time_N)])


def implausible(times_ms: npt.NDArray[np.int64], name: str) -> str:
    """A warning if event times are in 1970 or earlier, or after 2200, which a wrong unit causes; else empty.

    Args:
        times_ms: int64 (n,), of all events.
        name: of the column that they were read from.
    """
    year_N = 1970 + times_ms // _YEAR_MS
    strange = int(((year_N < _FIRST_YEAR) | (year_N > _LAST_YEAR)).sum())
    if not strange:
        return ""
    unit = "milliseconds" if name == TIMESTAMP_MS else "seconds"
    return (
        f"{strange:,} of {len(year_N):,} events are of a year before {_FIRST_YEAR} or after {_LAST_YEAR} "
        f"(from {year_N.min()} to {year_N.max()}): numbers in the column {name} are read as {unit}; "
        f"`{TIMESTAMP_MS}` holds milliseconds, `{SECONDS}` seconds, and a timestamp type says its unit itself"
    )
