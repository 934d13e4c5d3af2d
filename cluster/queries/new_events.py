"""Events of a training batch as requests to a version, without items that the user had before.

Shape letters: E events of a batch, S those whose item is new to its user.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from streaming.arrays import BoolArray, Int64Array
from streaming.batches.selection import event_rows
from streaming.events.schema import CONTEXT_LENGTH, ITEMS, OFFSET, SEEN


@dataclass(frozen=True)
class NewEvents:
    """The events of a batch whose item is new to the user; other items could not be recommended.

    Attributes:
        event_S: int64, their indices among the E events of the batch.
        target_S: int64, their items.
        had: int64 each, the items that the user had before the event.
    """

    event_S: Int64Array
    target_S: Int64Array
    had: list[Int64Array]

    @staticmethod
    def of(batch: pa.RecordBatch) -> NewEvents:
        """The new events of a batch in TRAINING_BATCH_SCHEMA."""
        items, first_N1 = _ragged(batch.column(ITEMS))
        seen, seen_N1 = _ragged(batch.column(SEEN))
        row_E = event_rows(batch)
        first_event_N1 = _ragged(batch.column(OFFSET))[1]
        context_N = batch.column(CONTEXT_LENGTH).to_numpy().astype(np.int64)
        within_E = np.arange(row_E.shape[0]) - first_event_N1[row_E]
        place_E = first_N1[row_E] + context_N[row_E] + within_E
        events, had = [], []
        for event, (row, place) in enumerate(zip(row_E.tolist(), place_E.tolist(), strict=True)):
            before = np.concatenate([seen[seen_N1[row] : seen_N1[row + 1]], items[first_N1[row] : place]])
            if not (before == items[place]).any():
                events.append(event)
                had.append(before)
        event_S = np.array(events, np.int64)
        return NewEvents(event_S, items[place_E[event_S]], had)

    def where(self, keep_S: BoolArray) -> NewEvents:
        """Those of them that are to be kept, bool (S,)."""
        kept = np.flatnonzero(keep_S)
        return NewEvents(self.event_S[kept], self.target_S[kept], [self.had[s] for s in kept.tolist()])


def _ragged(column: pa.ListArray) -> tuple[Int64Array, Int64Array]:
    offsets = column.offsets.to_numpy().astype(np.int64)
    return column.values.to_numpy()[offsets[0] : offsets[-1]], offsets - offsets[0]
