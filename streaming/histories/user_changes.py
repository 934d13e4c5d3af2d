"""Tracks the users whose history has changed, for delta checkpoints.

Shapes: U slots or places.
"""

import numpy as np

from streaming.arrays import Int64Array
from streaming.histories.event_store import EventStore
from streaming.histories.history import UserStore


class CountChanges:
    """Remembers counts that only grow; a place with another count has changed."""

    def __init__(self) -> None:
        self._known_U = np.zeros(1024, np.int64)

    def take(self, count_U: Int64Array) -> Int64Array:
        """int64: the places whose counts differ from the last call's, ascending; new places started at 0."""
        size = len(count_U)
        if size > len(self._known_U):
            self._known_U = np.concatenate(
                [self._known_U, np.zeros(max(size, 2 * len(self._known_U)), np.int64)]
            )
        changed = np.flatnonzero(self._known_U[:size] != count_U)
        self._known_U[changed] = count_U[changed]
        return changed

    def forget(self, count_U: Int64Array) -> None:
        """These are the counts of the last call."""
        if len(count_U) > len(self._known_U):
            self._known_U = np.zeros(max(len(count_U), 2 * len(self._known_U)), np.int64)
        self._known_U[: len(count_U)] = count_U

    def count(self, count_U: Int64Array) -> int:
        """How many places `take` would return."""
        known_U = self._known_U[: len(count_U)]
        fresh_U = count_U[len(known_U) :]
        return int(np.count_nonzero(known_U != count_U[: len(known_U)]) + np.count_nonzero(fresh_U))


class UserChanges:
    """The users whose events or explicit negatives have changed."""

    def __init__(self, users: UserStore) -> None:
        self._stores: list[tuple[EventStore, CountChanges]] = [
            (users, CountChanges()),
            (users.negatives, CountChanges()),
        ]

    def forget(self) -> None:
        """Forget the changes so far."""
        for store, counts in self._stores:
            counts.forget(store.log.count_U[: len(store)])
            store.take_removed()

    @property
    def count(self) -> int:
        """About how many `take` would return; who lost events and got others is counted twice, or not at all."""
        return sum(counts.count(store.log.count_U[: len(store)]) for store, counts in self._stores)

    def take(self) -> Int64Array:
        """int64: users whose events changed since the last call, and users removed since; ascending."""
        changed = [np.empty(0, np.int64)]
        for store, counts in self._stores:
            changed += [store.ids[counts.take(store.log.count_U[: len(store)])], store.take_removed()]
        return np.unique(np.concatenate(changed))
