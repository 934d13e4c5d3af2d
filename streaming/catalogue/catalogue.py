"""What is known about items and users besides events: categories, titles, attributes.

Shapes: N items, Q queried ids, C categories kept per item, F user attributes, R records of an update.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streaming.arrays import Int64Array
from streaming.catalogue.reader import CatalogueReader
from streaming.catalogue.records import CatalogueUpdate
from streaming.config import StreamConfig
from streaming.events.schema import (
    ATTRIBUTES,
    CATEGORIES,
    DELETED,
    ITEM_ID,
    ITEM_SCHEMA,
    TITLE,
    USER_ID,
    USER_SCHEMA,
)
from streaming.histories.id_index import IdIndex
from streaming.histories.id_texts import KnownTexts
from streaming.recent_changes import RecentChanges

__all__ = ["Catalogue", "CatalogueReader", "CatalogueUpdate"]

_FIRST_ROOM = 1024
_Array = TypeVar("_Array", bound=np.ndarray[Any, Any])


class Catalogue:
    """Items in order of arrival, and the attributes of users.

    A function of the updates and of the items added, in order; so are its copies on every worker.

    Attributes:
        texts: those of text ids, of items and users that this process has read; different on every worker.
    """

    def __init__(self, config: StreamConfig) -> None:
        self._config = config
        self.texts = KnownTexts()
        self._items, self._users = IdIndex(), IdIndex()
        self._categories_NC = np.zeros((_FIRST_ROOM, config.max_categories), np.int64)
        self._title_N = np.full(_FIRST_ROOM, None, object)
        self._deleted_N = np.zeros(_FIRST_ROOM, np.bool_)
        self._gone = np.zeros(0, np.int64)  # places of the deleted items, ascending
        self._living_before_gone = np.zeros(0, np.int64)  # so many living items precede each of them
        self._attributes_UF = np.zeros((_FIRST_ROOM, len(config.user_attributes)), np.int64)
        self._deleted_U = np.zeros(_FIRST_ROOM, np.bool_)
        self._changed_items, self._changed_users = RecentChanges(), RecentChanges()

    @property
    def item_ids(self) -> Int64Array:
        """int64 (n,): the items that are not deleted, in order of arrival; a copy of them all, never for a step."""
        return self._items.ids[~self._deleted_N[: len(self._items)]]

    @property
    def item_count(self) -> int:
        """How many items are not deleted."""
        return len(self._items) - self._gone.shape[0]

    @property
    def known_ids(self) -> Int64Array:
        """int64 (n,): all items that were ever known, also deleted ones, in order of arrival; a view until the next."""
        return self._items.ids

    def items_at(self, place_Q: Int64Array) -> Int64Array:
        """int64 (q,): `item_ids[place_Q]`, in time that does not depend on the number of items.

        Args:
            place_Q: int64, 0 to `item_count` − 1.
        """
        # The i-th deleted item precedes the k-th living one if it comes after i deleted and at most k living ones.
        before_Q = np.searchsorted(self._living_before_gone, place_Q, side="right")
        found_Q: Int64Array = self._items.ids[place_Q + before_Q]
        return found_Q

    def add_items(self, item_Q: Int64Array) -> None:
        """Adds items that were first seen in events, in the given order; known ones stay as they are."""
        known = len(self._items)
        self._items.add(item_Q)
        self._changed_items.add(np.arange(known, len(self._items)))
        self._make_room()

    def apply(self, update: CatalogueUpdate) -> None:
        """Applies the records of an update; a deleted item is known again with its next record.

        Raises:
            ValueError: the update's users have another number of attributes than the settings.
        """
        self._apply_items(update.items.combine_chunks())
        self._apply_users(update.users.combine_chunks())

    def categories(self, item_Q: Int64Array) -> Int64Array:
        """int64 (q, c): the category ids of each item, 0 where there is none."""
        return _rows(self._categories_NC, self._items.find(item_Q))

    def knows(self, item_Q: Int64Array) -> npt.NDArray[np.bool_]:
        """bool (q,): whether each item is known and not deleted."""
        at_Q = self._items.find(item_Q)
        return (at_Q >= 0) & ~self._deleted_N[at_Q]

    def is_deleted(self, item_Q: Int64Array) -> npt.NDArray[np.bool_]:
        """bool (q,): whether the last record of each item was a tombstone."""
        if self._gone.shape[0] == 0:
            return np.zeros(len(item_Q), np.bool_)
        at_Q = self._items.find(item_Q)
        return np.where(at_Q >= 0, self._deleted_N[at_Q], False)

    def user_attributes(self, user_Q: Int64Array) -> Int64Array:
        """int64 (q, f): the attribute ids of each user, 0 where unknown."""
        return _rows(self._attributes_UF, self._users.find(user_Q))

    def knows_user(self, user_Q: Int64Array) -> npt.NDArray[np.bool_]:
        """bool (q,): whether each user has a record and the last one is not a tombstone."""
        at_Q = self._users.find(user_Q)
        return (at_Q >= 0) & ~self._deleted_U[at_Q]

    def is_deleted_user(self, user_Q: Int64Array) -> npt.NDArray[np.bool_]:
        """bool (q,): whether the last record of each user was a tombstone."""
        at_Q = self._users.find(user_Q)
        return (at_Q >= 0) & self._deleted_U[at_Q]

    def empty(self) -> Catalogue:
        """A catalogue of the same settings without items and users."""
        return Catalogue(self._config)

    def titles(self, item_Q: Int64Array) -> list[str]:
        """The title of each item, empty where there is none."""
        return [(self._title_N[at] or "") if at >= 0 else "" for at in self._items.find(item_Q)]

    def item_texts(self, item_Q: Int64Array) -> list[str | None]:
        """The text of each item whose id is one; None for numbers and unknown ones."""
        return self.texts.items.texts(item_Q)

    @property
    def known_users(self) -> Int64Array:
        """int64 (u,): all users that ever had a record, in order of arrival; a view until the next one."""
        return self._users.ids

    @property
    def changed_count(self) -> int:
        """How many items and users `take_changes` would return."""
        return len(self._changed_items) + len(self._changed_users)

    def take_changes(self) -> tuple[Int64Array, Int64Array]:
        """int64: the places of items and of users that are new or changed since the last call, ascending."""
        return self._changed_items.take(), self._changed_users.take()

    def item_records(self, place_R: Int64Array, id_R: Int64Array) -> pa.Table:
        """What is known of the items at some places, in ITEM_SCHEMA.

        Another thread may call this while records are applied. It may then read one that is half applied.

        Args:
            place_R: int64, places in `known_ids`.
            id_R: int64, their ids, read by the thread that applies records.
        """
        categories_RC = self._categories_NC[place_R]
        columns = [
            pa.array(id_R),
            pa.array(self._title_N[place_R], pa.string()),
            _ragged(categories_RC, categories_RC != 0),
            pa.array(self._deleted_N[place_R]),
        ]
        return pa.table(columns, schema=ITEM_SCHEMA)

    def user_records(self, place_R: Int64Array, id_R: Int64Array) -> pa.Table:
        """The same of users, in USER_SCHEMA; `place_R` are places in `known_users`."""
        attributes_RF = self._attributes_UF[place_R]
        columns = [
            pa.array(id_R),
            _ragged(attributes_RF, np.ones(attributes_RF.shape, np.bool_)),
            pa.array(self._deleted_U[place_R]),
        ]
        return pa.table(columns, schema=USER_SCHEMA)

    def snapshot(self) -> CatalogueUpdate:
        """The whole catalogue as one update: applied to an empty catalogue, it gives an equal one.

        Deleted users are not in it. The ids of deleted items are, because their events must still be recognized.
        Users are sorted by id: one who was deleted and returns has the same place as in a restored run.
        """
        here_U = np.flatnonzero(~self._deleted_U[: len(self._users)])
        order_U = here_U[np.argsort(self._users.ids[here_U])]
        return CatalogueUpdate(
            self.item_records(np.arange(len(self._items)), self._items.ids.copy()),
            self.user_records(order_U, self._users.ids[order_U]),
        )

    def _apply_items(self, items: pa.Table) -> None:
        if items.num_rows == 0:
            return
        at_R = self._items.add(items[ITEM_ID].to_numpy())
        self._changed_items.add(at_R)
        self._make_room()
        # NumPy's assignment by index keeps the last of several values for one place.
        self._categories_NC[at_R] = padded(items[CATEGORIES], self._categories_NC.shape[1])
        self._title_N[at_R] = items[TITLE].to_numpy()
        self._deleted_N[at_R] = items[DELETED].to_numpy()
        still = self._gone[self._deleted_N[self._gone]]
        self._gone = np.union1d(still, at_R[self._deleted_N[at_R]]).astype(np.int64)
        self._living_before_gone = self._gone - np.arange(self._gone.shape[0])

    def _apply_users(self, users: pa.Table) -> None:
        if users.num_rows == 0:
            return
        lists = users[ATTRIBUTES].combine_chunks()
        width = self._attributes_UF.shape[1]
        lengths = np.diff(lists.offsets.to_numpy())
        if (lengths != width).any():
            found = int(lengths[lengths != width][0])
            raise ValueError(
                f"a user record has {found} attributes, but stream.user_attributes names {width}: "
                "the catalogue was read with other settings"
            )
        at_R = self._users.add(users[USER_ID].to_numpy())
        self._changed_users.add(at_R)
        self._make_room()
        self._attributes_UF[at_R] = lists.flatten().to_numpy().reshape(len(at_R), width)
        self._deleted_U[at_R] = users[DELETED].to_numpy()

    def _make_room(self) -> None:
        items, users = len(self._items), len(self._users)
        self._categories_NC = _grown(self._categories_NC, items, 0)
        self._title_N = _grown(self._title_N, items, None)
        self._deleted_N = _grown(self._deleted_N, items, False)
        self._attributes_UF = _grown(self._attributes_UF, users, 0)
        self._deleted_U = _grown(self._deleted_U, users, False)


def _rows(table_NX: Int64Array, at_Q: npt.NDArray[np.int32]) -> Int64Array:
    """Rows of a table by index; zeros where the index is -1."""
    return np.where((at_Q >= 0)[:, None], table_NX[at_Q], 0)


def _grown(array: _Array, rows: int, fill: object) -> _Array:
    """The array, grown to at least this many rows (amortised doubling)."""
    if rows <= len(array):
        return array
    grown = np.full((max(rows, 2 * len(array)), *array.shape[1:]), fill, array.dtype)
    grown[: len(array)] = array
    return cast(_Array, grown)


def padded(lists: pa.ChunkedArray, width: int) -> Int64Array:
    """int64 (r, width): the first `width` values of each list, then zeros."""
    flat = lists.combine_chunks()
    offset_R = flat.offsets.to_numpy() - flat.offsets[0].as_py()
    place_W = np.arange(width)
    is_there_RW = place_W < np.diff(offset_R)[:, None]
    out_RW = np.zeros(is_there_RW.shape, np.int64)
    out_RW[is_there_RW] = flat.flatten().to_numpy()[(offset_R[:-1, None] + place_W)[is_there_RW]]
    return out_RW


def _ragged(values_RW: Int64Array, keep_RW: npt.NDArray[np.bool_]) -> pa.ListArray:
    """The kept values of each row as lists."""
    offset_R = np.zeros(len(values_RW) + 1, np.int32)
    np.cumsum(keep_RW.sum(axis=1), out=offset_R[1:])
    return pa.ListArray.from_arrays(pa.array(offset_R), pa.array(values_RW[keep_RW]))
