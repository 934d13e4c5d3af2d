"""Selects some of a training batch's events; each keeps its history, masks and keys.

Shapes: N rows of the batch, E events in them, B rows of the selection, V values of a list column.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streaming.arrays import Int64Array
from streaming.events.schema import (
    APPEND_MS,
    ATTRIBUTES,
    CONTEXT_LENGTH,
    EVENTS_BEFORE,
    ITEMS,
    NEGATIVES,
    OFFSET,
    PARTITION,
    ROW,
    SEEN,
    TIMES_MS,
    USER_ID,
    WEIGHT,
)

_OF_ROWS = (USER_ID, PARTITION, ATTRIBUTES, SEEN, NEGATIVES)
_OF_EVENTS = (OFFSET, ROW, APPEND_MS, WEIGHT)
_OF_TOKENS = (ITEMS, TIMES_MS)


def event_rows(batch: pa.RecordBatch) -> Int64Array:
    """The row of each event of a training batch (docs/reference/batch.md), int64 (E,)."""
    return np.repeat(np.arange(batch.num_rows), np.diff(batch.column(OFFSET).offsets.to_numpy()))


def count_events(batch: pa.RecordBatch) -> int:
    """How many events the rows of a training batch have together."""
    return len(batch.column(OFFSET).flatten())


def select_events(batch: pa.RecordBatch, keep_E: npt.NDArray[np.bool_]) -> pa.RecordBatch:
    """The kept events of a training batch; an event that is left out remains in the history of those after it.

    A row is cut into one row per range of kept events. Its context is everything before the range, so no row becomes
    longer.

    Args:
        batch: TRAINING_BATCH_SCHEMA.
        keep_E: bool (E,), in the order of the batch's events.
    """
    if keep_E.all():
        return batch
    event_row_E = event_rows(batch)
    starts_E = keep_E.copy()
    starts_E[1:] &= ~(keep_E[:-1] & (event_row_E[1:] == event_row_E[:-1]))
    first_B = np.flatnonzero(starts_E)
    count_B = np.bincount(np.cumsum(starts_E)[keep_E] - 1, minlength=len(first_B))
    row_B = event_row_E[first_B]
    earlier_B = first_B - np.searchsorted(event_row_E, row_B)  # events of the same row before the range
    context_B = batch.column(CONTEXT_LENGTH).to_numpy()[row_B] + earlier_B
    before_B = batch.column(EVENTS_BEFORE).to_numpy()[row_B] + earlier_B
    columns: dict[str, pa.Array] = {name: batch.column(name).take(pa.array(row_B)) for name in _OF_ROWS}
    columns[CONTEXT_LENGTH] = pa.array(context_B.astype(np.int32))
    columns[EVENTS_BEFORE] = pa.array(before_B)
    for name in _OF_EVENTS:
        columns[name] = _lists(count_B, batch.column(name).flatten().to_numpy()[keep_E])
    length_B = context_B + count_B
    for name in _OF_TOKENS:
        lists = batch.column(name)
        start_B = (lists.offsets.to_numpy() - lists.offsets[0].as_py())[row_B]
        columns[name] = _lists(length_B, _slices(lists.flatten().to_numpy(), start_B, length_B))
    return pa.RecordBatch.from_arrays([columns[name] for name in batch.schema.names], schema=batch.schema)


def _slices(values: npt.NDArray[Any], start_B: npt.NDArray[Any], length_B: Int64Array) -> npt.NDArray[Any]:
    """values[start : start + length] of each row, one after another."""
    end_B = np.cumsum(length_B)
    within = np.arange(length_B.sum()) - np.repeat(end_B - length_B, length_B)
    taken: npt.NDArray[Any] = values[np.repeat(start_B, length_B) + within]
    return taken


def _lists(length_B: Int64Array, values: npt.NDArray[Any]) -> pa.ListArray:
    offset_B = np.zeros(len(length_B) + 1, np.int32)
    np.cumsum(length_B, out=offset_B[1:])
    return pa.ListArray.from_arrays(pa.array(offset_B), pa.array(values))
