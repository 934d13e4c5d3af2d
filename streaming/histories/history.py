"""What is known about each user: the last events, the total number of events, and the last explicit negatives.

Shapes: Q queried users, N events.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from streaming.arrays import Int32Array, Int64Array
from streaming.events.partitioner import KEY_HASHES
from streaming.events.schema import (
    EVENTS,
    HISTORY_SCHEMA,
    ITEMS,
    KEY_HASH,
    NEGATIVES,
    PARTITION,
    TIMES_MS,
    USER_ID,
)
from streaming.histories.event_store import EventStore


class UserStore(EventStore):
    """Histories of the users of the partitions that this worker reads.

    The last max(history_length, seen_length) events of a user are kept.

    Attributes:
        negatives: the last `history_length` explicit negatives of the users who have any, without times. They are not
            part of the history. Users with nothing but negatives are known only here.
    """

    def __init__(self, history_length: int, seen_length: int, partitions: int = KEY_HASHES) -> None:
        super().__init__(max(history_length, seen_length), partitions=partitions)
        self.negatives = EventStore(history_length, with_times=False, partitions=partitions)

    def remove(self, user_Q: Int64Array) -> None:
        """Removes events and explicit negatives of these users."""
        super().remove(user_Q)
        self.negatives.remove(user_Q)

    def drop_items(self, item_Q: Int64Array) -> None:
        """Removes these items from all users' events and explicit negatives."""
        super().drop_items(item_Q)
        self.negatives.drop_items(item_Q)

    def last(self, user_Q: Int64Array, limit: int) -> tuple[Int64Array, Int64Array, Int64Array]:
        """The last events of each user.

        Returns:
            items int64 (n,), times int64 (n,), offsets int64 (q + 1,) of each user's range, oldest first; empty for an
            unknown user.
        """
        item_N, offset_Q = self.last_items(user_Q, limit)
        return item_N, self._times(self.find(user_Q), offset_Q), offset_Q

    @property
    def changed_count(self) -> int:
        """About how many users `take_changed` would return; who has new events and negatives is counted twice."""
        return super().changed_count + self.negatives.changed_count

    def take_changed(self) -> Int64Array:
        """int64: users whose events or explicit negatives have changed since the last call, ascending."""
        return np.union1d(super().take_changed(), self.negatives.take_changed())

    def everybody_of(self, partition: int) -> Int64Array:
        """int64: the users of a partition who have events or explicit negatives, ascending."""
        return np.union1d(self.users_of(partition), self.negatives.users_of(partition))

    def slices_of(self, partition: int, at_once: int) -> Iterator[Int64Array]:
        """The same users in slices, in no particular order; users whose first events come meanwhile may be missing."""
        for some in self.negatives.known_in_slices(partition, at_once):
            yield some[self.counts(some) == 0]
        yield from self.known_in_slices(partition, at_once)

    def home_of(self, user_Q: Int64Array) -> Int64Array:
        """int64 (q,): the partition of each user who is or was known."""
        key_Q = np.maximum(self.key_hashes(user_Q), self.negatives.key_hashes(user_Q))
        return key_Q % self._partitions

    def to_table(self, partition: int, users: Int64Array | None = None) -> pa.Table:
        """The state of a partition's users in HISTORY_SCHEMA, by user id: equal for equal histories.

        Args:
            partition: its number.
            users: int64, the users to include; by default all with events or explicit negatives. A row without either
                is of a removed user.
        """
        user_Q = self.everybody_of(partition) if users is None else users
        item_N, time_N, offset_Q = self.last(user_Q, self.retained)
        negative_N, negative_offset_Q = self.negatives.last_items(user_Q, self.negatives.retained)
        return pa.table(
            [
                pa.array(user_Q),
                pa.array(np.full(len(user_Q), partition, np.int32)),
                pa.array(np.maximum(self.key_hashes(user_Q), self.negatives.key_hashes(user_Q))),
                pa.array(self.counts(user_Q)),
                _lists(offset_Q, item_N),
                _lists(offset_Q, time_N),
                _lists(negative_offset_Q, negative_N),
            ],
            schema=HISTORY_SCHEMA,
        )

    def load(self, table: pa.Table) -> None:
        """Adds the users of a table from `to_table`; none of them may be known yet.

        Earlier versions wrote tables without the column of negatives.

        Raises:
            ValueError: a user is already known.
        """
        table = table.combine_chunks()
        if table.num_rows == 0:
            return
        # Earlier versions wrote no key hashes; the partition serves as one as long as the topic gains no partitions.
        key = KEY_HASH if KEY_HASH in table.column_names else PARTITION
        user_Q, key_Q, count_Q = (table[name].to_numpy() for name in (USER_ID, key, EVENTS))
        if (self.find(user_Q) >= 0).any() or (self.negatives.find(user_Q) >= 0).any():
            raise ValueError("histories loaded twice: a user of the table is in the store already")
        times = table[TIMES_MS].combine_chunks().flatten().to_numpy()
        _load(self, user_Q, key_Q, table[ITEMS], times)
        slot_Q = self.find(user_Q)
        self.log.count_U[slot_Q[slot_Q >= 0]] = count_Q[slot_Q >= 0]
        if NEGATIVES in table.column_names:
            _load(self.negatives, user_Q, key_Q, table[NEGATIVES], np.empty(0, np.int64))


def _lists(offset_Q: Int64Array, value_N: Int64Array) -> pa.LargeListArray:
    return pa.LargeListArray.from_arrays(pa.array(offset_Q), pa.array(value_N))


def _load(
    store: EventStore, user_Q: Int64Array, key_Q: Int32Array, column: pa.ChunkedArray, time_N: Int64Array
) -> None:
    """Appends each user's list; a user whose list is empty stays unknown."""
    lists = column.combine_chunks()
    offset_Q = lists.offsets.to_numpy() - lists.offsets[0].as_py()
    has_Q = np.diff(offset_Q) > 0
    # Users left out have no events, so the ranges of the others still follow one another.
    start_R = np.append(offset_Q[:-1][has_Q], offset_Q[-1])
    store.append(user_Q[has_Q], key_Q[has_Q], start_R, lists.flatten().to_numpy(), time_N)
