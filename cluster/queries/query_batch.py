"""Users as queries: their state after all their events, without an event to train on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streaming.arrays import Int64Array
from streaming.batches.batcher import UserAttributes
from streaming.events.schema import TRAINING_BATCH_SCHEMA
from streaming.histories.history import UserStore

AFTER_ALL_MS = np.iinfo(np.int64).max
"""The time of a placeholder event: later than any history."""


def query_batch(
    user_Q: Int64Array, users: UserStore, attributes: UserAttributes, history_length: int
) -> pa.RecordBatch:
    """A batch in TRAINING_BATCH_SCHEMA with one row and one placeholder event per user.

    The placeholder item comes after the history; a query never sees its own item.

    Args:
        user_Q: int64 (Q,); unknown users get an empty history.
        users: histories and counts.
        attributes: the catalogue.
        history_length: W, items of history.
    """
    items, times, offset_Q1 = users.last(user_Q, history_length)
    return history_batch(
        user_Q,
        np.diff(offset_Q1),
        items,
        times,
        users.counts(user_Q),
        attributes.user_attributes(user_Q),
        users.negatives.last_items(user_Q, history_length),
    )


def history_batch(
    user_Q: Int64Array,
    length_Q: Int64Array,
    items: Int64Array,
    times: Int64Array,
    count_Q: Int64Array,
    attributes_QF: Int64Array,
    negatives: tuple[Int64Array, Int64Array] | None = None,
) -> pa.RecordBatch:
    """The same from histories given as ragged arrays: `length_Q` items of each query, concatenated.

    `negatives` are the explicit negatives and their offsets (Q + 1,) by query; by default there are none.
    """
    ends = np.cumsum(length_Q)
    nothing = np.zeros(0, np.int64), np.zeros(user_Q.shape[0] + 1, np.int64)
    return placed_batch(
        user_Q,
        (
            np.insert(items, ends, 0),
            np.insert(times, ends, AFTER_ALL_MS),
            np.concatenate([[0], ends + np.arange(1, user_Q.shape[0] + 1)]),
        ),
        count_Q,
        attributes_QF,
        (items, np.concatenate([[0], ends])),
        negatives or nothing,
    )


def placed_batch(
    user_Q: Int64Array,
    history: tuple[Int64Array, Int64Array, Int64Array],
    before_Q: Int64Array,
    attributes_QF: Int64Array,
    seen: tuple[Int64Array, Int64Array],
    negatives: tuple[Int64Array, Int64Array],
) -> pa.RecordBatch:
    """One row and one event per user in TRAINING_BATCH_SCHEMA: the last entry of each user's history is the event.

    Args:
        user_Q: int64 (Q,).
        history: items and times of all users in turn, each user's event included, and offsets int64 (Q + 1,).
        before_Q: int64 (Q,), events before the event.
        attributes_QF: int64 (Q, F).
        seen: items that the users had before the event, and offsets int64 (Q + 1,).
        negatives: explicit ones, and offsets int64 (Q + 1,).
    """
    items, times, offset_Q1 = history
    queries, width = attributes_QF.shape
    one_Q1, zeros_Q = np.arange(queries + 1), np.zeros(queries, np.int64)
    columns = [
        pa.array(user_Q, pa.int64()),
        _lists(offset_Q1, items, pa.int64()),
        _lists(offset_Q1, times, pa.int64()),
        pa.array(np.diff(offset_Q1) - 1, pa.int32()),
        pa.array(before_Q, pa.int64()),
        _lists(one_Q1 * width, attributes_QF.reshape(-1), pa.int64()),
        _lists(seen[1], seen[0], pa.int64()),
        pa.array(zeros_Q, pa.int32()),
        _lists(one_Q1, zeros_Q, pa.int64()),
        _lists(one_Q1, zeros_Q, pa.int32()),
        _lists(one_Q1, zeros_Q, pa.int64()),
        _lists(one_Q1, np.ones(queries), pa.float32()),
        _lists(negatives[1], negatives[0], pa.int64()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=TRAINING_BATCH_SCHEMA)


def _lists(offsets: Int64Array, values: npt.NDArray[np.generic], kind: pa.DataType) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, kind))
