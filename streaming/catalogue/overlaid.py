"""Changed items and users above a catalogue: each change makes a new view, and views share everything but what changed.

Shapes: Q queried ids, C categories kept per item, F user attributes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from streaming.arrays import BoolArray, Int64Array
from streaming.catalogue.catalogue import Catalogue
from streaming.catalogue.records import CatalogueUpdate, last_records
from streaming.events.schema import ITEM_ID, USER_ID
from streaming.levels import with_level


class ReadCatalogue(Protocol):
    """What is read of a catalogue by id: a `Catalogue`, or changes above one."""

    def categories(self, item_Q: Int64Array) -> Int64Array:
        """int64 (q, c): the category ids of each item, 0 where there is none."""

    def knows(self, item_Q: Int64Array) -> BoolArray:
        """bool (q,): whether each item is known and not deleted."""

    def is_deleted(self, item_Q: Int64Array) -> BoolArray:
        """bool (q,): whether the last record of each item was a tombstone."""

    def user_attributes(self, user_Q: Int64Array) -> Int64Array:
        """int64 (q, f): the attribute ids of each user, 0 where unknown."""

    def knows_user(self, user_Q: Int64Array) -> BoolArray:
        """bool (q,): whether each user has a record and the last one is not a tombstone."""

    def is_deleted_user(self, user_Q: Int64Array) -> BoolArray:
        """bool (q,): whether the last record of each user was a tombstone."""

    def titles(self, item_Q: Int64Array) -> list[str]:
        """The title of each item, empty where there is none."""

    def item_texts(self, item_Q: Int64Array) -> list[str | None]:
        """The text of each item whose id is one; None for numbers and unknown ones."""


class OverlaidCatalogue:
    """The catalogue of a version with later records; any number of threads may read it.

    Args:
        base: the version's; it must not change any more.
        levels: see `with_update`.
    """

    def __init__(self, base: Catalogue, levels: tuple[_Level, ...] = ()) -> None:
        self._base, self._levels = base, levels

    def with_update(self, update: CatalogueUpdate) -> OverlaidCatalogue:
        """The catalogue after some records; this view stays as it is.

        Raises:
            ValueError: the update's users have another number of attributes.
        """
        if update.items.num_rows + update.users.num_rows == 0:
            return self
        newest = _Level.of(update, self._base)
        return OverlaidCatalogue(self._base, with_level(self._levels, newest, self._merged))

    def categories(self, item_Q: Int64Array) -> Int64Array:
        """See ReadCatalogue."""
        found_QC = self._base.categories(item_Q)
        for level in self._levels:
            has_Q = level.has(item_Q)
            found_QC[has_Q] = level.catalogue.categories(item_Q[has_Q])
        return found_QC

    def knows(self, item_Q: Int64Array) -> BoolArray:
        """See ReadCatalogue."""
        found_Q = self._base.knows(item_Q)
        for level in self._levels:
            found_Q = np.where(level.has(item_Q), level.catalogue.knows(item_Q), found_Q)
        return found_Q

    def is_deleted(self, item_Q: Int64Array) -> BoolArray:
        """See ReadCatalogue."""
        found_Q = self._base.is_deleted(item_Q)
        for level in self._levels:
            found_Q = np.where(level.has(item_Q), level.catalogue.is_deleted(item_Q), found_Q)
        return found_Q

    def user_attributes(self, user_Q: Int64Array) -> Int64Array:
        """See ReadCatalogue."""
        found_QF = self._base.user_attributes(user_Q)
        for level in self._levels:
            has_Q = level.has_user(user_Q)
            found_QF[has_Q] = level.catalogue.user_attributes(user_Q[has_Q])
        return found_QF

    def knows_user(self, user_Q: Int64Array) -> BoolArray:
        """See ReadCatalogue."""
        found_Q = self._base.knows_user(user_Q)
        for level in self._levels:
            found_Q = np.where(level.has_user(user_Q), level.catalogue.knows_user(user_Q), found_Q)
        return found_Q

    def is_deleted_user(self, user_Q: Int64Array) -> BoolArray:
        """See ReadCatalogue."""
        found_Q = self._base.is_deleted_user(user_Q)
        for level in self._levels:
            found_Q = np.where(level.has_user(user_Q), level.catalogue.is_deleted_user(user_Q), found_Q)
        return found_Q

    def titles(self, item_Q: Int64Array) -> list[str]:
        """See ReadCatalogue."""
        found_Q = self._base.titles(item_Q)
        for level in self._levels:
            at = np.flatnonzero(level.has(item_Q))
            for place, title in zip(at.tolist(), level.catalogue.titles(item_Q[at]), strict=True):
                found_Q[place] = title
        return found_Q

    def item_texts(self, item_Q: Int64Array) -> list[str | None]:
        """See ReadCatalogue; the version's, because records of a delta have none."""
        return self._base.item_texts(item_Q)

    def _merged(self, older: _Level, newer: _Level) -> _Level:
        items = pa.concat_tables([older.update.items, newer.update.items])
        return _Level.of(
            CatalogueUpdate(items, pa.concat_tables([older.update.users, newer.update.users])), self._base
        )


@dataclass(frozen=True)
class _Level:
    """The last record of each of its items and users; kept as records too, because a catalogue drops tombstones."""

    update: CatalogueUpdate
    catalogue: Catalogue

    @staticmethod
    def of(update: CatalogueUpdate, base: Catalogue) -> _Level:
        once = CatalogueUpdate(last_records(update.items, ITEM_ID), last_records(update.users, USER_ID))
        catalogue = base.empty()
        catalogue.apply(once)
        return _Level(once, catalogue)

    def __len__(self) -> int:
        return int(self.update.items.num_rows + self.update.users.num_rows)

    def has(self, item_Q: Int64Array) -> BoolArray:
        return self.catalogue.knows(item_Q) | self.catalogue.is_deleted(item_Q)

    def has_user(self, user_Q: Int64Array) -> BoolArray:
        return self.catalogue.knows_user(user_Q) | self.catalogue.is_deleted_user(user_Q)
