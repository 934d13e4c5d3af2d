"""The events of a batch for systems that count or factorise: dense item indices instead of rows of a step.

Shape letters: E events, T items of all rows of the batch, R recent items, X known items of all events.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from model.arrays import Float32Array, Int64Array
from model.key_index import KeyIndex


class ItemIndex:
    """Maps catalogue ids to columns 0..I−1, in the given order."""

    def __init__(self, item_ids: Int64Array) -> None:
        self._index = KeyIndex(item_ids.shape[0])
        self._index.add(np.zeros(item_ids.shape[0], np.int16), np.ascontiguousarray(item_ids, np.int64))

    def __len__(self) -> int:
        return len(self._index)

    def find(self, item_ids: Int64Array) -> Int64Array:
        """The column of each id, int64 of the same shape; −1 if it is not in the catalogue."""
        return self._index.find(
            np.zeros(item_ids.shape[0], np.int16), np.ascontiguousarray(item_ids, np.int64)
        )


@dataclass(frozen=True)
class Histories:
    """The events of a batch and the items before each. Items are columns, −1 if not in the catalogue."""

    item_T: Int64Array
    """The rows' items, concatenated: in each row the context, then the run's items."""
    place_E: Int64Array
    """Index of each event's own item in `item_T`."""
    first_E: Int64Array
    """Index in `item_T` at which the event's row begins."""
    seen: Int64Array
    """The rows' known items, concatenated."""
    seen_first_E: Int64Array
    """Index at which the known items of the event's row begin."""
    seen_count_E: Int64Array
    user_E: Int64Array
    weight_E: Float32Array

    @staticmethod
    def of(batch: pa.RecordBatch, index: ItemIndex) -> Histories:
        """Views of a training batch (docs/reference/batch.md)."""
        items, length_N = _ragged(batch, "items")
        seen, seen_N = _ragged(batch, "seen")
        first_N = np.cumsum(length_N) - length_N
        seen_first_N = np.cumsum(seen_N) - seen_N
        context_N = batch.column("context_length").to_numpy().astype(np.int64)
        row_T = np.repeat(np.arange(batch.num_rows), length_N)
        place_E = np.flatnonzero(np.arange(items.shape[0]) >= (first_N + context_N)[row_T])
        row_E = row_T[place_E]
        return Histories(
            item_T=index.find(items),
            place_E=place_E,
            first_E=first_N[row_E],
            seen=index.find(seen),
            seen_first_E=seen_first_N[row_E],
            seen_count_E=seen_N[row_E],
            user_E=batch.column("user_id").to_numpy()[row_E],
            weight_E=batch.column("weight").flatten().to_numpy().astype(np.float32),
        )

    @property
    def target_E(self) -> Int64Array:
        """Each event's own item."""
        return self.item_T[self.place_E]

    def recent(self, count: int) -> Int64Array:
        """The last items before each event in its row, newest first, int64 (E, R), padded with −1."""
        at_ER = self.place_E[:, None] - 1 - np.arange(count)[None, :]
        inside_ER = at_ER >= self.first_E[:, None]
        if self.item_T.shape[0] == 0:
            return np.full(at_ER.shape, -1, np.int64)
        return np.where(inside_ER, self.item_T[np.maximum(at_ER, 0)], -1)

    def known(self) -> tuple[Int64Array, Int64Array]:
        """The distinct catalogue items that each event's user had before it: events int64 (X,), items int64 (X,)."""
        seen_event, seen_at = _stretches(self.seen_first_E, self.seen_count_E)
        event, at = _stretches(self.first_E, self.place_E - self.first_E)
        events = np.concatenate([seen_event, event])
        items = np.concatenate([self.seen[seen_at], self.item_T[at]])
        inside = items >= 0
        width = int(items.max(initial=0)) + 1
        pairs = np.unique(events[inside] * width + items[inside])
        return pairs // width, pairs % width


def _ragged(batch: pa.RecordBatch, name: str) -> tuple[Int64Array, Int64Array]:
    column: Any = batch.column(name)
    return column.flatten().to_numpy().astype(np.int64), np.diff(column.offsets.to_numpy()).astype(np.int64)


def _stretches(start_E: Int64Array, length_E: Int64Array) -> tuple[Int64Array, Int64Array]:
    """For each element of each range: the range's number, and start, start + 1, …"""
    event = np.repeat(np.arange(start_E.shape[0]), length_E)
    within = np.arange(event.shape[0]) - np.repeat(np.cumsum(length_E) - length_E, length_E)
    return event, start_E[event] + within
