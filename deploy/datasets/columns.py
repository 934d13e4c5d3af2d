"""Converts columns of a data set's files to the stream's types; unusable values are reported by file and column.

A pandas frame with missing values has floats instead of integers; whole numbers are read as integers, NaN as missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from deploy.datasets.fetching import DatasetError
from streaming.events.times import implausible, time_column, times_in_ms

Say = Callable[[str], None]
_EXACT_BELOW = 2**53
_LARGEST_ID = 2**63 - 1


@dataclass(frozen=True)
class DatasetFile:
    """One file of a data set, and the callback that reports rows left out of it."""

    path: Path
    table: pa.Table
    say: Say

    @property
    def names(self) -> list[str]:
        """Of its columns."""
        return list(self.table.column_names)

    def error(self, problem: str) -> DatasetError:
        """An error about this file."""
        return DatasetError(f"{self.path}: {problem}")

    def as_type(self, name: str, kind: pa.DataType) -> pa.ChunkedArray:
        """A column cast to a type; an empty text counts as missing.

        Raises:
            DatasetError: its values are of another kind.
        """
        column = whole_numbers(decoded(self.table[name]))
        try:
            return without_empty(column.cast(kind))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            reason = str(error).splitlines()[0]
            raise self.error(f"column {name} must be {kind}, not {column.type}: {reason}") from error

    def ids(self, name: str) -> pa.ChunkedArray:
        """A column of ids, int64 or string; null for null, NaN, an empty text, or a number beyond int64.

        Raises:
            DatasetError: values that are not ids.
        """
        column = decoded(self.table[name])
        kind = column.type
        if pa.types.is_null(kind):
            return column.cast(pa.int64())
        if pa.types.is_integer(kind):
            return _within_int64(column)
        if pa.types.is_floating(kind):
            return self._whole_ids(name, column)
        if not is_text(kind):
            raise self.error(f"column {name} must hold whole numbers or texts, not {kind}")
        return without_empty(column.cast(pa.string()))

    def times(self) -> pa.ChunkedArray:
        """Event times, int64 ms, from `timestamp_ms`, else `timestamp`; null if missing.

        Raises:
            DatasetError: neither column exists, or it does not hold times.
        """
        name = time_column(self.names)
        if name is None:
            raise DatasetError(f"{self.path} has neither timestamp (s) nor timestamp_ms")
        try:
            times = times_in_ms(self.table[name], name)
        except ValueError as error:
            raise self.error(str(error)) from error
        if warning := implausible(times.drop_null().to_numpy(), name):
            self.say(f"{self.path}: {warning}")
        return times

    def complete_rows(self, columns: Mapping[str, pa.ChunkedArray], needed: Sequence[str]) -> pa.Table:
        """A table of the rows with values in all required columns; reports how many rows have not.

        Raises:
            DatasetError: a needed column is missing in every row.
        """
        table = pa.table(dict(columns))
        missing = {name: table[name].null_count for name in needed if table[name].null_count}
        if not missing:
            return table
        for name, count in missing.items():
            if count == table.num_rows:
                raise self.error(f"column {name} is empty in all {count:,} rows")
        complete = table
        for name in missing:
            complete = complete.filter(pc.is_valid(complete[name]))
        counts = ", ".join(f"no {name} in {count:,}" for name, count in missing.items())
        left_out = table.num_rows - complete.num_rows
        self.say(f"{self.path}: {left_out:,} of {table.num_rows:,} rows are left out: {counts}")
        if not complete.num_rows:
            raise self.error(f"no row has all of {', '.join(needed)}")
        return complete

    def last_of_each(self, table: pa.Table, name: str) -> pa.Table:
        """The last row of each id, as the compacted topics keep it; reports how many others there were."""
        code_N = pc.dictionary_encode(table[name].combine_chunks()).indices.to_numpy(zero_copy_only=False)
        _, from_end = np.unique(code_N[::-1], return_index=True)
        if len(from_end) == table.num_rows:
            return table
        repeated = table.num_rows - len(from_end)
        self.say(f"{self.path}: {repeated:,} rows repeat an earlier {name}: the last of each counts")
        return table.take(pa.array(np.sort(table.num_rows - 1 - from_end)))

    def _whole_ids(self, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
        values_N = pc.fill_null(column.cast(pa.float64()), np.nan).to_numpy()
        finite_N = np.isfinite(values_N)
        whole_N = finite_N & (np.rint(values_N) == values_N) & (np.abs(values_N) < _EXACT_BELOW)
        if (finite_N & ~whole_N).any():
            seen = float(values_N[finite_N & ~whole_N][0])
            raise self.error(
                f"column {name} holds {seen!r} as {column.type}, which is not an id: "
                f"ids are whole numbers (as floats, below 2^53) or texts"
            )
        return _integers(values_N, whole_N)


def decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Without dictionary encoding (pandas' categories)."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def without_empty(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Texts with null instead of empty ones; any other column unchanged."""
    if not is_text(column.type):
        return column
    return pc.if_else(pc.equal(column, ""), pa.scalar(None, column.type), column)


def whole_numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A float column with NaN as null, as int64 if all other values are whole; any other column unchanged."""
    if not pa.types.is_floating(column.type):
        return column
    values_N = pc.fill_null(column.cast(pa.float64()), np.nan).to_numpy()
    known_N = ~np.isnan(values_N)
    if (np.rint(values_N[known_N]) == values_N[known_N]).all() and (
        np.abs(values_N[known_N]) < _EXACT_BELOW
    ).all():
        return _integers(values_N, known_N)
    return pa.chunked_array([pa.array(values_N, column.type, mask=~known_N)])


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds texts, of any of Arrow's three string types."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_list(kind: pa.DataType) -> bool:
    """Whether a column holds lists, of any length."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _integers(values_N: np.ndarray, known_N: np.ndarray) -> pa.ChunkedArray:
    whole_N = np.where(known_N, values_N, 0).astype(np.int64)
    return pa.chunked_array([pa.array(whole_N, mask=~known_N)])


def _within_int64(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_uint64(column.type):
        inside = pc.less_equal(column, pa.scalar(_LARGEST_ID, pa.uint64()))
        column = pc.if_else(inside, column, pa.scalar(None, pa.uint64()))
    return column.cast(pa.int64())
