"""The last events of each user of some partitions, by user id.

Shapes: Q queried users, R runs, N events.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from numba import njit

from streaming.arrays import Int32Array, Int64Array
from streaming.events.partitioner import KEY_HASHES
from streaming.histories.event_log import (
    CHUNK,
    EventLog,
    append,
    clear,
    copy_last,
    drop_items,
    new_log,
    with_free_chunks,
    with_users,
)
from streaming.histories.id_index import IdIndex
from streaming.recent_changes import RecentChanges

_FIRST_USERS, _FIRST_CHUNKS = 1024, 1024
_SLOTS_AT_ONCE = 1 << 16


class EventStore:
    """The last `retained` events of every user who has any; a user without events costs nothing.

    Up to 31 older events are kept too but never returned, because only whole chunks are freed. A user's partition is
    the key hash modulo the number of partitions.
    """

    def __init__(self, retained: int, *, with_times: bool = True, partitions: int = KEY_HASHES) -> None:
        self._retained = retained
        self._partitions = np.int64(partitions)
        self._index = IdIndex()
        self._key_U = np.empty(_FIRST_USERS, np.int32)
        self._log = new_log(_FIRST_USERS, _FIRST_CHUNKS, with_times=with_times)
        self._changed = RecentChanges()

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

    def slots_of(self, user_Q: Int64Array, key_Q: Int32Array) -> Int32Array:
        """int32 (q,): the slots of users who get events; unknown users get one, and the key hash given."""
        known = len(self._index)
        slot_Q = self._index.add(user_Q)
        self._changed.add(user_Q)
        users = len(self._index)
        self._log = with_users(self._log, users)
        if users > len(self._key_U):
            grown = np.empty(len(self._log.head_U), np.int32)
            grown[:known] = self._key_U[:known]
            self._key_U = grown
        new_Q = slot_Q >= known
        self._key_U[slot_Q[new_Q]] = key_Q[new_Q]
        return slot_Q

    def reserve(self, runs: int, events: int) -> None:
        """Makes room for a number of events and runs before a kernel appends them."""
        self._log = with_free_chunks(self._log, events // CHUNK + runs)

    def append(
        self,
        user_R: Int64Array,
        key_R: Int32Array,
        start_R: Int64Array,
        item_N: Int64Array,
        time_N: Int64Array,
    ) -> None:
        """Appends a run of events per user.

        Args:
            user_R: int64 (r,), may repeat.
            key_R: int32 (r,), the user's key hash.
            start_R: int64 (r + 1,), run r is events [start_R[r], start_R[r + 1]).
            item_N: int64 (n,).
            time_N: int64 (n,), ms.
        """
        slot_R = self.slots_of(user_R, key_R)
        self.reserve(len(user_R), len(item_N))
        _append_runs(self._log, slot_R, start_R, item_N, time_N, self._retained)

    def find(self, user_Q: Int64Array) -> Int32Array:
        """int32 (q,): the slot of each user, -1 where unknown."""
        return self._index.find(user_Q)

    def last_items(self, user_Q: Int64Array, limit: int) -> tuple[Int64Array, Int64Array]:
        """The last items of each user.

        Returns:
            items int64 (n,), offsets int64 (q + 1,) of each user's range, oldest first; empty for an unknown user.
        """
        slot_Q = self._index.find(user_Q)
        offset_Q = self._offsets(slot_Q, limit)
        return _gather(self._log, self._log.items_CK, slot_Q, offset_Q), offset_Q

    def counts(self, user_Q: Int64Array) -> Int64Array:
        """int64 (q,): total number of each user's events."""
        slot_Q = self._index.find(user_Q)
        return np.where(slot_Q >= 0, self._log.count_U[slot_Q], 0)

    def key_hashes(self, user_Q: Int64Array) -> Int32Array:
        """int32 (q,): the key hash of each user, -1 where unknown."""
        slot_Q = self._index.find(user_Q)
        return np.where(slot_Q >= 0, self._key_U[slot_Q], -1).astype(np.int32)

    def users(self) -> Int64Array:
        """int64: all users who have events, ascending."""
        return np.sort(self._index.ids[self._has_events()])

    def users_of(self, partition: int) -> Int64Array:
        """int64: the users of a partition who have events, ascending."""
        is_home_U = self._key_U[: len(self)] % self._partitions == partition
        return np.sort(self._index.ids[is_home_U & self._has_events()])

    def known_in_slices(self, partition: int, at_once: int) -> Iterator[Int64Array]:
        """The same users in order of arrival, in slices of about `at_once`; users who arrive meanwhile are left out."""
        waiting, held = [np.empty(0, np.int64)], 0
        for start in range(0, len(self), _SLOTS_AT_ONCE):
            some = slice(start, min(start + _SLOTS_AT_ONCE, len(self)))
            is_home_U = self._key_U[some] % self._partitions == partition
            waiting.append(self._index.ids[some][is_home_U & (self._log.count_U[some] > 0)])
            held += waiting[-1].shape[0]
            if held >= at_once:
                found = np.concatenate(waiting)
                yield from np.split(found, range(at_once, held, at_once))
                waiting, held = [np.empty(0, np.int64)], 0
        yield np.concatenate(waiting)

    def remove(self, user_Q: Int64Array) -> None:
        """Removes the events of these users; unknown ones are ignored. Their next event starts a new history."""
        slot_Q = self._index.find(np.unique(user_Q))
        _remove(self._log, slot_Q[slot_Q >= 0])
        self._changed.add(self._index.ids[slot_Q[slot_Q >= 0]])

    def drop_items(self, item_Q: Int64Array) -> None:
        """Removes the events of these items from all users."""
        if len(item_Q):
            changed = _drop_items(self._log, len(self), np.unique(item_Q))
            self._changed.add(self._index.ids[changed])

    @property
    def changed_count(self) -> int:
        """How many users `take_changed` would return."""
        return len(self._changed)

    def take_changed(self) -> Int64Array:
        """int64: users who got or lost events since the last call, ascending."""
        return self._changed.take()

    def _has_events(self) -> npt.NDArray[np.bool_]:
        return self._log.count_U[: len(self)] > 0

    def _offsets(self, slot_Q: Int32Array, limit: int) -> Int64Array:
        """int64 (q + 1,): offsets of each user's last `limit` events in a flat array."""
        shown_Q = np.minimum(self._log.length_U[slot_Q], min(limit, self._retained))
        offset_Q = np.zeros(len(slot_Q) + 1, np.int64)
        np.cumsum(np.where(slot_Q >= 0, shown_Q, 0), out=offset_Q[1:])
        return offset_Q

    def _times(self, slot_Q: Int32Array, offset_Q: Int64Array) -> Int64Array:
        return _gather(self._log, self._log.times_CK, slot_Q, offset_Q)


@njit(cache=True, nogil=True)
def _append_runs(
    log: EventLog,
    slot_R: Int32Array,
    start_R: Int64Array,
    item_N: Int64Array,
    time_N: Int64Array,
    retained: int,
) -> None:
    for r in range(len(slot_R)):
        append(log, slot_R[r], item_N, time_N, start_R[r], start_R[r + 1], retained)


@njit(cache=True, nogil=True)
def _remove(log: EventLog, slot_Q: Int32Array) -> None:
    for slot in slot_Q:
        clear(log, slot)


@njit(cache=True, nogil=True)
def _drop_items(log: EventLog, users: int, item_D: Int64Array) -> Int32Array:
    """The slots that lost events."""
    changed, count = np.empty(users, np.int32), 0
    for slot in range(users):
        if drop_items(log, slot, item_D) > 0:
            changed[count] = slot
            count += 1
    return changed[:count]


@njit(cache=True, nogil=True)
def _gather(log: EventLog, values_CK: Int64Array, slot_Q: Int32Array, offset_Q: Int64Array) -> Int64Array:
    out_N = np.empty(offset_Q[len(slot_Q)], np.int64)
    for q in range(len(slot_Q)):
        copy_last(log, values_CK, slot_Q[q], offset_Q[q + 1] - offset_Q[q], out_N, offset_Q[q + 1])
    return out_N
