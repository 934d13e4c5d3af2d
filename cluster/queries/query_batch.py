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
    queries = user_Q.shape[0]
    ends = np.cumsum(length_Q)
    with_place_Q1 = np.concatenate([[0], ends + np.arange(1, queries + 1)])
    padded_items = np.insert(items, ends, 0)
    padded_times = np.insert(times, ends, AFTER_ALL_MS)
    one_Q1 = np.arange(queries + 1)
    zeros_Q = np.zeros(queries, np.int64)
    width = attributes_QF.shape[1]
    unwanted, unwanted_Q1 = negatives or (np.zeros(0, np.int64), np.zeros(queries + 1, np.int64))
    return pa.RecordBatch.from_arrays(
        [
            pa.array(user_Q, pa.int64()),
            _lists(with_place_Q1, padded_items, pa.int64()),
            _lists(with_place_Q1, padded_times, pa.int64()),
            pa.array(length_Q, pa.int32()),
            pa.array(count_Q, pa.int64()),
            _lists(one_Q1 * width, attributes_QF.reshape(-1), pa.int64()),
            _lists(np.concatenate([[0], ends]), items, pa.int64()),
            pa.array(zeros_Q, pa.int32()),
            _lists(one_Q1, zeros_Q, pa.int64()),
            _lists(one_Q1, zeros_Q, pa.int32()),
            _lists(one_Q1, zeros_Q, pa.int64()),
            _lists(one_Q1, np.ones(queries), pa.float32()),
            _lists(unwanted_Q1, unwanted, pa.int64()),
        ],
        schema=TRAINING_BATCH_SCHEMA,
    )


def _lists(offsets: Int64Array, values: npt.NDArray[np.generic], kind: pa.DataType) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, kind))
