"""The catalogue of a checkpoint, read in slices from its mapped files: no process needs all of it in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.checkpoints.arrays import StoredContent, write_table
from cluster.checkpoints.attribute_change import AttributeChange
from cluster.checkpoints.part import Saved
from cluster.checkpoints.parts.catalogue import ITEMS, USERS, files_of, stem
from cluster.checkpoints.parts.id_texts import ITEMS as ITEM_TEXTS
from cluster.checkpoints.parts.id_texts import read_texts
from cluster.queries.saved_records import SavedRecords
from cluster.tables.buckets import buckets_of, owners_of
from model.features import ITEM
from streaming.arrays import Int64Array
from streaming.catalogue.catalogue import Catalogue, padded
from streaming.catalogue.records import CatalogueUpdate
from streaming.config import StreamConfig
from streaming.events.schema import CATEGORIES, DELETED, ITEM_ID, USER_ID
from streaming.histories.id_texts import ID, IdTexts

_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class SavedCatalogue:
    """Items in order of arrival, and users.

    Attributes:
        items: in ITEM_SCHEMA.
        users: in USER_SCHEMA with the checkpoint's attributes.
        attributes: how the user attributes have changed since.
    """

    items: SavedRecords
    users: SavedRecords
    attributes: AttributeChange
    _texts: Sequence[StoredContent] = ()

    @staticmethod
    def open(saved: Saved) -> SavedCatalogue:
        """Map the files of a checkpoint."""
        items, users = (
            SavedRecords(files_of(saved.here(stem(file)), file), key, with_deleted=file == ITEMS)
            for file, key in ((ITEMS, ITEM_ID), (USERS, USER_ID))
        )
        return SavedCatalogue(items, users, saved.attributes, saved.files(ITEM_TEXTS))

    @property
    def item_count(self) -> int:
        """Number of items that are not deleted."""
        return sum(pc.sum(pc.invert(some[DELETED])).as_py() or 0 for some in self.items.slices(_AT_ONCE))

    def owned_items(
        self, rank: int, world: int, width: int, at_once: int
    ) -> Iterator[tuple[Int64Array, Int64Array]]:
        """Ids int64 (n,) and categories int64 (n, width) of a rank's items, in order of arrival.

        Args:
            rank: of `world`.
            world: number of ranks.
            width: `stream.max_categories`.
            at_once: items per slice; the last slice may be smaller.
        """
        waiting: list[tuple[Int64Array, Int64Array]] = []
        held = 0
        for some in self.items.slices(at_once):
            mine = _owned(some, rank, world, width)
            waiting.append(mine)
            held += mine[0].shape[0]
            if held >= at_once:
                ids, category_NC = (np.concatenate(column) for column in zip(*waiting, strict=True))
                yield ids[:at_once], category_NC[:at_once]
                waiting, held = [(ids[at_once:], category_NC[at_once:])], held - at_once
        if held:
            ids, category_NC = (np.concatenate(column) for column in zip(*waiting, strict=True))
            yield ids, category_NC

    def only(self, item_ids: Int64Array, user_ids: Int64Array, stream: StreamConfig) -> Catalogue:
        """The data of some items and users, under the run's settings."""
        users = self.users.of(user_ids)
        found = Catalogue(stream)
        found.apply(CatalogueUpdate(self.items.of(item_ids), self._as_now(users)))
        return found

    def write(self, folder: Path) -> None:
        """Put the catalogue into an index version that is being built."""
        self.items.write(folder / ITEMS)
        if self.attributes.changed:
            users = pa.concat_tables(self.users.slices(_AT_ONCE))
            write_table(folder / USERS, self._as_now(users))
        else:
            self.users.write(folder / USERS)
        texts = read_texts(self._texts, IdTexts())
        if tables := list(texts.tables()):
            items = self.items.slices(_AT_ONCE)
            living = pa.concat_arrays(
                [some.filter(pc.invert(some[DELETED]))[ITEM_ID].combine_chunks() for some in items]
            )
            table = pa.concat_tables(tables)
            kept = table.filter(pc.is_in(table[ID], value_set=living))
            write_table(folder / f"{ITEM_TEXTS}{0:05d}.arrow", kept)

    def _as_now(self, users: pa.Table) -> pa.Table:
        return self.attributes.of_users(users) if self.attributes.changed else users


def _owned(items: pa.Table, rank: int, world: int, width: int) -> tuple[Int64Array, Int64Array]:
    ids = items[ITEM_ID].to_numpy()
    tables = np.full(ids.shape[0], ITEM, np.int16)
    mine = owners_of(buckets_of(tables, np.ascontiguousarray(ids)), world) == rank
    mine &= ~items[DELETED].to_numpy()
    return ids[mine], padded(items[CATEGORIES], width)[mine]
