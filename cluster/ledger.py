"""The proof that every event was used exactly once: trained, quarantined, or set aside (negative, ignored, duplicate).

It is updated after the optimizer's step and saved in the same commit as the trained state: a counter per user, and per
partition the number and hash sum of the used (partition, offset, row). A count over the topic must give the same
numbers, for any settings of actions. The sum of 64-bit hashes modulo 2^64 does not depend on order, and any lost or
doubled event changes it.

Messages that retention removed before they were read cannot be counted again. After such a gap, hash and counters per
user start again, and the proof covers only later events. The other numbers cover everything.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import njit

from model.key_index import KeyIndex, mix64
from streaming.arrays import Int64Array
from streaming.events.signals import DUPLICATE, IGNORED, NEGATIVE
from streaming.recent_changes import RecentChanges

_SUMS = ("partition", "events", "hash_sum", "negatives", "ignored", "duplicates", "quarantined")


@njit(cache=True, nogil=True)
def position_hash_sum(partition: int, offsets: Int64Array, rows: Int64Array) -> np.uint64:
    """Sum modulo 2^64 of a 64-bit hash of each (partition, offset, row)."""
    total = np.uint64(0)
    for k in range(offsets.shape[0]):
        value = np.uint64(partition) * np.uint64(0x9E3779B97F4A7C15)
        for part in (np.uint64(offsets[k]), np.uint64(rows[k])):
            value = mix64((value ^ part) + np.uint64(0x9E3779B97F4A7C15))
        total += value
    return total


@dataclass
class PartitionLedger:
    """The used rows of one partition.

    Attributes:
        partition: its number.
        events: used rows, trained on or not.
        hash_sum: of their positions, since the last gap.
        negatives: explicit negatives among them.
        ignored: rows among them that were neither trained on nor negatives.
        duplicates: rows among them whose event id had occurred before.
        quarantined: rows among them whose training step was refused.
    """

    partition: int
    events: int = 0
    hash_sum: int = 0
    negatives: int = 0
    ignored: int = 0
    duplicates: int = 0
    quarantined: int = 0
    _users: KeyIndex = field(default_factory=KeyIndex)
    _counts: Int64Array = field(default_factory=lambda: np.zeros(0, np.int64))
    _changed: RecentChanges = field(default_factory=RecentChanges, compare=False)
    _behind: int = 0
    """Rows before this offset were taken before a gap that has been passed; a restored run continues after it."""

    @property
    def trained(self) -> int:
        """Used rows that were trained on."""
        return self.events - self.negatives - self.ignored - self.duplicates - self.quarantined

    def add(self, users: Int64Array, offsets: Int64Array, rows: Int64Array) -> None:
        """Count events: their users int64 (E,), offsets int64 (E,) and rows int64 (E,)."""
        self.events += users.shape[0]
        since = offsets >= self._behind
        if not since.all():
            users, offsets, rows = users[since], offsets[since], rows[since]
        self.hash_sum = (self.hash_sum + int(position_hash_sum(self.partition, offsets, rows))) % 2**64
        self._add_counts(users, np.ones(users.shape[0], np.int64))

    def begin_behind(self, offset: int) -> None:
        """Record a gap up to this offset; from here, hash and counters per user start again."""
        self._behind, self.hash_sum = offset, 0
        self._counts[:] = 0
        self._changed.add(np.arange(len(self._users)))

    def user_counts(self) -> tuple[Int64Array, Int64Array]:
        """Users int64 (U,), ascending, and the number of each one's rows used since the last gap, int64 (U,)."""
        users = self._users.keys()[1]
        order = np.argsort(users)
        return users[order], self._counts[: len(self._users)][order]

    def take_changed(self) -> Int64Array:
        """int64: places in `counts` of users whose counts have changed since the last call, ascending."""
        return self._changed.take()

    @property
    def sums(self) -> dict[str, str]:
        """All numbers except those per user, as text."""
        return {name: str(getattr(self, name)) for name in _SUMS}

    @property
    def counts(self) -> Int64Array:
        """Number of each user's used rows, int64 (U,), in order of the users' arrival; a view."""
        return self._counts[: len(self._users)]

    def to_table(self, places: Int64Array | None = None) -> pa.Table:
        """For the checkpoint: users and counts, with sums as schema metadata; all users, or those at some places."""
        if places is None:
            users, counts = self.user_counts()
        else:
            users, counts = self._users.keys()[1][places], self.counts[places]
        return pa.table({"user_id": users, "events": counts}).replace_schema_metadata(self.sums)

    @staticmethod
    def from_table(table: pa.Table) -> PartitionLedger:
        """The inverse of `to_table`; numbers that an earlier version did not count are 0."""
        meta = {key.decode(): int(value) for key, value in table.schema.metadata.items()}
        ledger = PartitionLedger(meta["partition"])
        for name in _SUMS:
            setattr(ledger, name, meta.get(name, 0))
        ledger._add_counts(table["user_id"].to_numpy(), table["events"].to_numpy())
        return ledger

    def _add_counts(self, users: Int64Array, counts: Int64Array) -> None:
        index = self._users.add(np.zeros(users.shape[0], np.int16), users)
        self._changed.add(index)
        size = len(self._users)
        if size > self._counts.shape[0]:
            self._counts = np.concatenate([self._counts, np.zeros(size, np.int64)])
        np.add.at(self._counts, index, counts)


class Ledger:
    """The ledgers of the partitions that one rank reads."""

    def __init__(self, partitions: Iterable[int]) -> None:
        self.partitions = {p: PartitionLedger(p) for p in partitions}

    @property
    def events(self) -> int:
        """Used rows of all of them."""
        return sum(ledger.events for ledger in self.partitions.values())

    @property
    def negatives(self) -> int:
        """Explicit negatives of all of them."""
        return sum(ledger.negatives for ledger in self.partitions.values())

    @property
    def ignored(self) -> int:
        """Ignored rows of all of them."""
        return sum(ledger.ignored for ledger in self.partitions.values())

    @property
    def duplicates(self) -> int:
        """Duplicate rows of all of them."""
        return sum(ledger.duplicates for ledger in self.partitions.values())

    @property
    def quarantined(self) -> int:
        """Rows of all of them whose training step was refused."""
        return sum(ledger.quarantined for ledger in self.partitions.values())

    def add_quarantined(self, batch: pa.RecordBatch) -> None:
        """Count the targets of a training batch whose step was refused."""
        self.add_batch(batch)
        events_N = np.diff(batch.column("offset").offsets.to_numpy())
        partition_N = batch.column("partition").to_numpy()
        for partition in np.unique(partition_N).tolist():
            self.partitions[partition].quarantined += int(events_N[partition_N == partition].sum())

    def add_batch(self, batch: pa.RecordBatch) -> None:
        """Count the targets of a training batch (docs/reference/batch.md), after the optimizer has stepped on them."""
        runs = np.diff(batch.column("offset").offsets.to_numpy())
        users = np.repeat(batch.column("user_id").to_numpy(), runs)
        partitions = np.repeat(batch.column("partition").to_numpy(), runs)
        self._add(users, partitions, batch.column("offset").flatten(), batch.column("row").flatten())

    def add_set_aside(self, rows: pa.RecordBatch) -> None:
        """Count the rows set aside from a training batch (SET_ASIDE_SCHEMA)."""
        partitions, signs = rows.column("partition").to_numpy(), rows.column("sign").to_numpy()
        self._add(rows.column("user_id").to_numpy(), partitions, rows.column("offset"), rows.column("row"))
        for partition in np.unique(partitions).tolist():
            ledger, mine = self.partitions[partition], signs[partitions == partition]
            ledger.negatives += int((mine == NEGATIVE).sum())
            ledger.ignored += int((mine == IGNORED).sum())
            ledger.duplicates += int((mine == DUPLICATE).sum())

    def _add(
        self, users: Int64Array, partitions: npt.NDArray[np.int32], offsets: pa.Array, rows: pa.Array
    ) -> None:
        offsets_E, rows_E = offsets.to_numpy(), rows.to_numpy().astype(np.int64)
        for partition in np.unique(partitions).tolist():
            mine = partitions == partition
            self.partitions[partition].add(users[mine], offsets_E[mine], rows_E[mine])
