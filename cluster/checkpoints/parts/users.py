"""The histories of the users of a partition, as Arrow files.

| file | holds |
|---|---|
| `users-pPPPPP.arrow` | every user of the partition |
| `users-pPPPPP.baseN.arrow` | if many users have changed: those users, copied in slices; N counts from 1 |
| `users-pPPPPP.changes.arrow` | users who are new or have changed; one without events was removed |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.checkpoints.arrays import read_table
from cluster.checkpoints.checkpoint import Checkpoint
from cluster.checkpoints.manifest import CheckpointError
from cluster.checkpoints.part import Part, Saved
from cluster.checkpoints.parts.stream import saved_stream
from streaming.arrays import Int32Array
from streaming.events.partitioner import key_hashes_of_users
from streaming.events.schema import EVENTS, KEY_HASH, NEGATIVES, USER_ID
from streaming.histories.history import UserStore

USERS = "users-p"
_USERS_AT_ONCE = 2048
_BYTES_OF_EVENT = 16


class UserPart(Part):
    """The histories of one rank's users.

    Args:
        users: this rank's.
        partitions: those that it reads.
        spread_over: number of the topic's partitions; in a checkpoint from before it grew, users are in other files.
    """

    names = (USERS,)

    def __init__(self, users: UserStore, partitions: Sequence[int], spread_over: int) -> None:
        self._users, self._partitions, self._spread_over = users, partitions, spread_over

    def forget(self) -> None:
        """See Part."""
        self._users.take_changed()

    def base(self) -> Iterator[tuple[str, pa.Table]]:
        """See Part."""
        for partition in self._partitions:
            for some in self._users.slices_of(partition, _USERS_AT_ONCE):
                yield f"{USERS}{partition:05d}.arrow", self._users.to_table(partition, some)

    def changed_bytes(self) -> int:
        """See Part."""
        return self._users.changed_count * _BYTES_OF_EVENT * self._users.retained

    def changes_in_slices(self, number: int) -> Iterator[tuple[str, pa.Table]]:
        """See Part."""
        changed = self._users.take_changed()
        home = self._users.home_of(changed)
        for partition in self._partitions:
            users = changed[home == partition]
            for start in range(0, users.shape[0], _USERS_AT_ONCE):
                some = users[start : start + _USERS_AT_ONCE]
                yield f"{USERS}{partition:05d}.base{number}.arrow", self._users.to_table(partition, some)

    def changes(self) -> dict[str, pa.Table]:
        """See Part."""
        changed = self._users.take_changed()
        home = self._users.home_of(changed)
        return {
            f"{USERS}{p:05d}.changes.arrow": self._users.to_table(p, changed[home == p])
            for p in self._partitions
        }

    def restore(self, saved: Saved) -> None:
        """See Part."""
        if saved_stream(saved.manifest)["partitions"] == self._spread_over:
            load_users(saved.checkpoint, self._users, self._partitions)
        else:
            load_moved_users(saved.checkpoint, self._users, self._partitions, self._spread_over)


def partitions_in(checkpoint: Checkpoint) -> list[int]:
    """The partitions whose users a checkpoint holds, ascending."""
    return sorted({int(file.name[len(USERS) :][:5]) for file in checkpoint.files(USERS)})


def merged_users(checkpoint: Checkpoint, partition: int) -> pa.Table:
    """The users of a partition, by user id, in the form for `UserStore.load`."""
    users = last_of_each(read_table(f) for f in reversed(checkpoint.files(f"{USERS}{partition:05d}")))
    return known_users(users).sort_by(USER_ID)


def known_users(users: pa.Table) -> pa.Table:
    """Those who have events or explicit negatives: the others were removed."""
    is_there = pc.greater(users[EVENTS], 0)
    if NEGATIVES in users.column_names:
        is_there = pc.or_(is_there, pc.greater(pc.list_value_length(users[NEGATIVES]), 0))
    return users.filter(is_there)


def load_users(checkpoint: Checkpoint, store: UserStore, partitions: Iterable[int]) -> None:
    """Fill a store with the users of some partitions."""
    for partition in partitions:
        store.load(merged_users(checkpoint, partition))


def load_moved_users(checkpoint: Checkpoint, users: UserStore, mine: Iterable[int], partitions: int) -> None:
    """Fill a store with the users of some partitions from a checkpoint from before the topic gained partitions.

    Raises:
        CheckpointError: an earlier version wrote it without key hashes, and it has users with text ids.
    """
    wanted = list(mine)
    for partition in partitions_in(checkpoint):
        table = merged_users(checkpoint, partition)
        if KEY_HASH not in table.column_names:
            table = table.append_column(KEY_HASH, pa.array(_key_hashes(checkpoint, table, partition)))
        home_N = table[KEY_HASH].to_numpy() % partitions
        users.load(table.filter(pa.array(np.isin(home_N, wanted))))


def _key_hashes(checkpoint: Checkpoint, table: pa.Table, partition: int) -> Int32Array:
    key_N = key_hashes_of_users(table[USER_ID].to_numpy())
    if (key_N % saved_stream(checkpoint.manifest)["partitions"] != partition).any():
        raise CheckpointError(
            f"{checkpoint.location} does not say where users with text ids belong in a topic that has gained "
            "partitions: continue with the previous version of Freshet until it has written a checkpoint,"
            " or start in an empty storage_path"
        )
    return key_N


def last_of_each(newest_first: Iterable[pa.Table]) -> pa.Table:
    """One row per user, from the first table that has the user; also used by `ledger.py`."""
    known, parts = np.zeros(0, np.int64), []
    for table in newest_first:
        users = table[USER_ID].to_numpy()
        parts.append(table.filter(pa.array(~np.isin(users, known))).replace_schema_metadata(None))
        known = np.union1d(known, users)
    return pa.concat_tables(parts, promote_options="default").combine_chunks()
