"""What is known of every user: the last events, and how many there have been.

Shapes: Q queried users, R runs, N events.
"""

import numpy as np
import pyarrow as pa
from numba import njit

from streaming.event_log import CHUNK, EventLog, append, copy_last, new_log, with_free_chunks, with_users
from streaming.id_index import IdIndex
from streaming.partitioner import Int32s, Int64s
from streaming.schema import HISTORY_SCHEMA

_FIRST_USERS, _FIRST_CHUNKS = 1024, 1024


class UserStore:
    """Histories of the users of the partitions that this worker reads.

    The last max(history_length, seen_length) events of a user are kept (and up to 31 older ones that are
    never shown, because chunks are freed whole).
    """

    def __init__(self, history_length: int, seen_length: int) -> None:
        self._retained = max(history_length, seen_length)
        self._index = IdIndex()
        self._partition_U = np.empty(_FIRST_USERS, np.int32)
        self._log = new_log(_FIRST_USERS, _FIRST_CHUNKS)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def log(self) -> EventLog:
        """The arrays, for kernels; valid until the next call that adds users or events."""
        return self._log

    @property
    def retained(self) -> int:
        """Events kept per user, for kernels that append."""
        return self._retained

    def slots_of(self, user_Q: Int64s, partition_Q: Int32s) -> Int32s:
        """int32 (q,): the slot of each user; unknown users get one, and the partition given."""
        known = len(self._index)
        slot_Q = self._index.add(user_Q)
        users = len(self._index)
        self._log = with_users(self._log, users)
        if users > len(self._partition_U):
            grown = np.empty(len(self._log.head_U), np.int32)
            grown[:known] = self._partition_U[:known]
            self._partition_U = grown
        new_Q = slot_Q >= known
        self._partition_U[slot_Q[new_Q]] = partition_Q[new_Q]
        return slot_Q

    def reserve(self, runs: int, events: int) -> None:
        """Makes room for so many events in so many runs before a kernel appends them."""
        self._log = with_free_chunks(self._log, events // CHUNK + runs)

    def append(
        self, user_R: Int64s, partition_R: Int32s, start_R: Int64s, item_N: Int64s, time_N: Int64s
    ) -> None:
        """Appends a run of events per user.

        Args:
            user_R: int64 (r,), may repeat.
            partition_R: int32 (r,), the user's partition.
            start_R: int64 (r + 1,), run r is events [start_R[r], start_R[r + 1]).
            item_N: int64 (n,).
            time_N: int64 (n,), ms.
        """
        slot_R = self.slots_of(user_R, partition_R)
        self.reserve(len(user_R), len(item_N))
        _append_runs(self._log, slot_R, start_R, item_N, time_N, self._retained)

    def last(self, user_Q: Int64s, limit: int) -> tuple[Int64s, Int64s, Int64s]:
        """The last events of each user.

        Returns:
            items int64 (n,), times int64 (n,), offsets int64 (q + 1,) of each user's stretch, oldest first;
            an unknown user's is empty.
        """
        slot_Q = self._index.find(user_Q)
        offset_Q = np.zeros(len(user_Q) + 1, np.int64)
        np.cumsum(np.minimum(self._lengths(slot_Q), limit), out=offset_Q[1:])
        item_N, time_N = np.empty(offset_Q[-1], np.int64), np.empty(offset_Q[-1], np.int64)
        _gather(self._log, slot_Q, offset_Q, item_N, time_N)
        return item_N, time_N, offset_Q

    def counts(self, user_Q: Int64s) -> Int64s:
        """int64 (q,): events of each user ever."""
        slot_Q = self._index.find(user_Q)
        return np.where(slot_Q >= 0, self._log.count_U[slot_Q], 0)

    def partitions(self) -> list[int]:
        """The partitions that any user here belongs to, ascending."""
        return [int(p) for p in np.unique(self._partition_U[: len(self)])]

    def users_of(self, partition: int) -> Int64s:
        """int64: the users of a partition, ascending."""
        return np.sort(self._index.ids[self._partition_U[: len(self)] == partition])

    def to_table(self, partition: int) -> pa.Table:
        """The state of a partition's users in HISTORY_SCHEMA, by user id: equal for equal histories."""
        user_Q = self.users_of(partition)
        item_N, time_N, offset_Q = self.last(user_Q, self._retained)
        offsets = pa.array(offset_Q)
        return pa.table(
            [
                pa.array(user_Q),
                pa.array(np.full(len(user_Q), partition, np.int32)),
                pa.array(self.counts(user_Q)),
                pa.LargeListArray.from_arrays(offsets, pa.array(item_N)),
                pa.LargeListArray.from_arrays(offsets, pa.array(time_N)),
            ],
            schema=HISTORY_SCHEMA,
        )

    def load(self, table: pa.Table) -> None:
        """Adds the users of a table that `to_table` made; none of them may be known already.

        Raises:
            ValueError: a user is here already.
        """
        table = table.combine_chunks()
        if table.num_rows == 0:
            return
        user_Q, partition_Q, count_Q = (table.column(c).to_numpy() for c in range(3))
        if (self._index.find(user_Q) >= 0).any():
            raise ValueError("histories loaded twice: a user of the table is in the store already")
        items, times = (table.column(c).combine_chunks() for c in (3, 4))
        start_R = items.offsets.to_numpy() - items.offsets[0].as_py()
        self.append(user_Q, partition_Q, start_R, items.flatten().to_numpy(), times.flatten().to_numpy())
        self._log.count_U[self._index.find(user_Q)] = count_Q

    def _lengths(self, slot_Q: Int32s) -> Int64s:
        shown_Q = np.minimum(self._log.length_U[slot_Q], self._retained)
        return np.where(slot_Q >= 0, shown_Q, 0).astype(np.int64)


@njit(cache=True, nogil=True)
def _append_runs(
    log: EventLog, slot_R: Int32s, start_R: Int64s, item_N: Int64s, time_N: Int64s, retained: int
) -> None:
    for r in range(len(slot_R)):
        append(log, slot_R[r], item_N, time_N, start_R[r], start_R[r + 1], retained)


@njit(cache=True, nogil=True)
def _gather(log: EventLog, slot_Q: Int32s, offset_Q: Int64s, item_N: Int64s, time_N: Int64s) -> None:
    for q in range(len(slot_Q)):
        count = offset_Q[q + 1] - offset_Q[q]
        copy_last(log, log.items_CK, slot_Q[q], count, item_N, offset_Q[q + 1])
        copy_last(log, log.times_CK, slot_Q[q], count, time_N, offset_Q[q + 1])
