"""What has changed in a run since its last delta, copied between two steps.

Shape letters: N items of a snapshot, K categories of an item.

A checkpoint's snapshot is a moment that a version can be of; the version's first delta has everything since then. The
number of rows that one snapshot copies is bounded, so that it pauses training for a few milliseconds: the rows that
changed last come first, the others wait for the next deltas.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cluster.checkpoints.parts.row_copies import RowCopies
from cluster.queries.changes import Changes
from cluster.tables.buckets import buckets_of, owners_of
from cluster.tables.change_log import ChangeLog
from cluster.tables.sharded_embedding import ShardedEmbedding
from model.features import ITEM
from streaming.arrays import BoolArray, Float64Array, Int16Array, Int64Array
from streaming.catalogue.catalogue import Catalogue
from streaming.catalogue.records import CatalogueUpdate
from streaming.events.schema import ITEM_ID, ITEM_SCHEMA, USER_SCHEMA

_MOST_ROWS = 1 << 15
"""Of one rank in one snapshot: 8 MiB with 64 columns."""
_NONE = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Moment:
    """A point in the history of this rank's state: places in its three logs."""

    rows: int
    items: int
    updates: int


@dataclass(frozen=True)
class ItemChanges:
    """Items of this rank whose vectors may have changed.

    Attributes:
        ids: int64 (N,).
        category_NK: int64, 0 if there are fewer.
        traffic_N: float64, the summed weight of each item's events.
        fresh_N: whether the item is new, or its record has changed.
        deleted: int64 (n,), items of this rank that were deleted.
    """

    ids: Int64Array
    category_NK: Int64Array
    traffic_N: Float64Array
    fresh_N: BoolArray
    deleted: Int64Array


@dataclass(frozen=True)
class Snapshot:
    """The changes of one rank.

    Attributes:
        changes: its rows and, on rank 0, the records of the catalogue.
        items: those that it owns.
        left: number of changed rows that later snapshots copy.
    """

    changes: Changes
    items: ItemChanges
    left: int = 0

    @property
    def empty(self) -> bool:
        """Whether nothing has changed."""
        rows, records = self.changes.rows, self.changes.catalogue
        arrays = rows.ids, rows.removed_ids, self.items.ids, self.items.deleted
        return not any(
            (*(array.shape[0] for array in arrays), records.items.num_rows, records.users.num_rows)
        )


class RunChanges:
    """Follows the rows and the catalogue of one rank; used between steps only.

    Args:
        table: this rank's rows; its changes are logged from now on.
        catalogue: the run's.
        rank: of this process.
        world: number of ranks.
        most_rows: of one snapshot.
    """

    def __init__(
        self,
        table: ShardedEmbedding,
        catalogue: Catalogue,
        rank: int,
        world: int,
        most_rows: int = _MOST_ROWS,
    ) -> None:
        self._table, self._catalogue = table, catalogue
        self._rank, self._world, self._most_rows = rank, world, most_rows
        self._log = table.log = ChangeLog()
        self._updates: list[CatalogueUpdate] = []
        self._dropped_updates = 0
        self._from = self.moment()
        self._left = _NONE
        """Rows that changed before `_from` and were not copied yet."""
        self._taken: tuple[Moment, Int64Array] | None = None

    def records_applied(self, update: CatalogueUpdate) -> None:
        """Note records that the catalogue has applied."""
        if update.items.num_rows + update.users.num_rows:
            self._updates.append(update)

    def moment(self) -> Moment:
        """The present one."""
        known = self._catalogue.known_ids.shape[0]
        return Moment(self._log.mark(), known, self._dropped_updates + len(self._updates))

    def begin_at(self, moment: Moment) -> None:
        """The next snapshot has the changes since a moment."""
        self._from, self._left, self._taken = moment, _NONE, None

    def forget_before(self, moment: Moment) -> None:
        """Drop the changes that neither the next snapshot nor a version of this moment or a later one needs."""
        oldest = min(moment.rows, self._from.rows), min(moment.updates, self._from.updates)
        self._log.drop_before(oldest[0])
        gone = max(0, oldest[1] - self._dropped_updates)
        self._updates = self._updates[gone:]
        self._dropped_updates += gone

    def take(self) -> Snapshot:
        """Copy what has changed since the last snapshot that was committed."""
        here, table = self.moment(), self._table
        left = self._log.last_changed_before(self._left, self._from.rows)
        rows = np.concatenate([left, self._log.since(self._from.rows)])
        copied, kept = rows[-self._most_rows :], rows[: -self._most_rows]
        self._taken = here, kept
        tables, ids = table.keys_of(copied)
        values_KD = RowCopies(None, 0).read([table.values_CD], copied)[0].numpy()
        gone_tables, gone_ids = self._log.removed_since(self._from.rows)
        gone = table.index.find(gone_tables, gone_ids) < 0
        removed = gone_tables[gone], gone_ids[gone]
        update = self._records()
        moved = np.concatenate([ids[tables == ITEM], removed[1][removed[0] == ITEM]])
        return Snapshot(
            Changes.of((tables, ids, values_KD), removed, update if self._rank == 0 else None),
            self._items(moved, update),
            kept.shape[0],
        )

    def touch(self, tables: Int16Array, ids: Int64Array) -> None:
        """Let the next snapshot have the rows of some keys, as far as this rank has them."""
        rows = self._table.index.find(tables, ids)
        self._log.touch(rows[rows >= 0])

    def settle(self, *, committed: bool) -> None:
        """End the last snapshot; what a delta that was not committed had is in the next one again."""
        if self._taken is not None and committed:
            self._from, self._left = self._taken
        self._taken = None

    def _items(self, moved: Int64Array, update: CatalogueUpdate) -> ItemChanges:
        recorded = np.unique(update.items[ITEM_ID].to_numpy())
        recorded = recorded[self._owned(recorded)]
        fresh = recorded[self._catalogue.knows(recorded)]
        moved = moved[self._catalogue.knows(moved) & ~np.isin(moved, fresh)]
        ids = np.concatenate([fresh, moved])
        return ItemChanges(
            ids,
            self._catalogue.categories(ids),
            self._table.frequencies(np.full(ids.shape[0], ITEM, np.int16), ids),
            np.arange(ids.shape[0]) < fresh.shape[0],
            recorded[self._catalogue.is_deleted(recorded)],
        )

    def _owned(self, ids: Int64Array) -> BoolArray:
        owner = owners_of(buckets_of(np.full(ids.shape[0], ITEM, np.int16), ids), self._world)
        owned: BoolArray = owner == self._rank
        return owned

    def _records(self) -> CatalogueUpdate:
        """The records since the last snapshot, after those of items that became known through events."""
        new = self._catalogue.known_ids[self._from.items :]
        since = self._updates[self._from.updates - self._dropped_updates :]
        return CatalogueUpdate(
            pa.concat_tables([_untitled(new), *(update.items for update in since)]),
            pa.concat_tables([USER_SCHEMA.empty_table(), *(update.users for update in since)]),
        )


def _untitled(ids: Int64Array) -> pa.Table:
    count = ids.shape[0]
    columns = [
        pa.array(ids),
        pa.nulls(count, pa.string()),
        pa.ListArray.from_arrays(pa.array(np.zeros(count + 1, np.int32)), pa.array(_NONE)),
        pa.array(np.zeros(count, np.bool_)),
    ]
    return pa.table(columns, schema=ITEM_SCHEMA)
