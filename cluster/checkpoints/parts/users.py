"""What belongs to the users of a partition, as Arrow files: histories, and the ledger of what was used.

| file | holds |
|---|---|
| `users-pPPPPP.arrow` | every user of the partition |
| `users-pPPPPP.changes.arrow` | users who are new or other than before; one without events was removed |
| `ledger-pPPPPP.arrow`, `ledger-pPPPPP.changes.arrow` | the same for the counts of used rows; the sums are metadata |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cluster.checkpoints.arrays import read_table
from cluster.checkpoints.checkpoint import Checkpoint
from cluster.ledger import Ledger, PartitionLedger
from streaming.events.schema import EVENTS, NEGATIVES, USER_ID
from streaming.histories.history import UserStore
from streaming.histories.user_changes import CountChanges, UserChanges

USERS = "users-p"
LEDGER = "ledger-p"
_USERS_AT_ONCE = 4096


class UserPart:
    """The histories of one rank's users as a part of a checkpoint (`checkpointing.Part`)."""

    def __init__(self, users: UserStore, partitions: Sequence[int]) -> None:
        self._users, self._partitions = users, partitions
        self._changes = UserChanges(users)

    def forget(self) -> None:
        """See Part."""
        self._changes.take()

    def base(self) -> Iterator[tuple[str, pa.Table]]:
        """See Part."""
        everybody = {p: self._users.everybody_of(p) for p in self._partitions}
        for partition, users in everybody.items():
            for start in range(0, max(1, users.shape[0]), _USERS_AT_ONCE):
                some = users[start : start + _USERS_AT_ONCE]
                yield f"{USERS}{partition:05d}.arrow", self._users.to_table(partition, some)

    def changes(self) -> dict[str, pa.Table]:
        """See Part."""
        changed = self._changes.take()
        home = self._users.home_of(changed)
        return {
            f"{USERS}{p:05d}.changes.arrow": self._users.to_table(p, changed[home == p])
            for p in self._partitions
        }


class LedgerPart:
    """The ledgers of one rank as a part of a checkpoint (`checkpointing.Part`)."""

    def __init__(self, ledger: Ledger, partitions: Sequence[int]) -> None:
        self._ledger = ledger
        self._counts = {p: CountChanges() for p in partitions}
        self._sums: dict[int, dict[str, str]] = {}

    def forget(self) -> None:
        """See Part."""
        for partition in self._counts:
            self._take(partition)

    def base(self) -> Iterator[tuple[str, pa.Table]]:
        """See Part."""
        for partition in self._counts:
            yield f"{LEDGER}{partition:05d}.arrow", self._ledger.partitions[partition].to_table()

    def changes(self) -> dict[str, pa.Table]:
        """See Part."""
        return {
            f"{LEDGER}{p:05d}.changes.arrow": self._ledger.partitions[p].to_table(self._take(p))
            for p in self._counts
        }

    def _take(self, partition: int) -> npt.NDArray[np.int64]:
        """Places of the users whose counts have changed; of one user if only the sums have, which go with the users."""
        ledger = self._ledger.partitions[partition]
        places = self._counts[partition].take(ledger.counts)
        if places.shape[0] == 0 and ledger.sums != self._sums.get(partition):
            places = np.arange(min(1, ledger.counts.shape[0]))
        self._sums[partition] = ledger.sums
        return places


def partitions_in(checkpoint: Checkpoint) -> list[int]:
    """The partitions whose users a checkpoint holds, ascending."""
    return sorted({int(file.name[len(USERS) :][:5]) for file in checkpoint.files(USERS)})


def merged_users(checkpoint: Checkpoint, partition: int) -> pa.Table:
    """The users of a partition, by user id, as `UserStore.load` takes them."""
    users = _last_of_each(read_table(f) for f in reversed(checkpoint.files(f"{USERS}{partition:05d}")))
    is_there = pc.greater(users[EVENTS], 0)
    if NEGATIVES in users.column_names:
        is_there = pc.or_(is_there, pc.greater(pc.list_value_length(users[NEGATIVES]), 0))
    return users.filter(is_there).sort_by(USER_ID)


def merged_ledger(checkpoint: Checkpoint, partition: int) -> PartitionLedger:
    """The ledger of a partition."""
    tables = [read_table(f) for f in reversed(checkpoint.files(f"{LEDGER}{partition:05d}"))]
    metadata = tables[0].schema.metadata
    return PartitionLedger.from_table(_last_of_each(tables).replace_schema_metadata(metadata))


def load_users(checkpoint: Checkpoint, store: UserStore, partitions: Iterable[int]) -> None:
    """Fill a store with the users of some partitions."""
    for partition in partitions:
        store.load(merged_users(checkpoint, partition))


def _last_of_each(newest_first: Iterable[pa.Table]) -> pa.Table:
    """One row per user, of the first table that has the user."""
    known, parts = np.zeros(0, np.int64), []
    for table in newest_first:
        users = table[USER_ID].to_numpy()
        parts.append(table.filter(pa.array(~np.isin(users, known))).replace_schema_metadata(None))
        known = np.union1d(known, users)
    return pa.concat_tables(parts, promote_options="default").combine_chunks()
