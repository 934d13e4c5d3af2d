"""Removes what a tombstone on the users' or items' topic deletes, between steps, on every rank.

For a user: events, explicit negatives, attributes, and the row of the id. For an item: its rows, its entries in all
histories, title and categories. The id remains known as deleted, so later events of the item are ignored and create no
row. The next checkpoint and version no longer have the removed data; older ones do until retention drops them. The
ledger keeps the number of a user's used rows, which the exactly-once proof needs as long as the topic has them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.collectives import Collectives
from cluster.training.state.run import TrainingRun
from model.features import ITEM, SOURCE, USER
from streaming.arrays import BoolArray, Int64Array
from streaming.catalogue.records import CatalogueUpdate
from streaming.events.quoting import quoted
from streaming.events.schema import DELETED, ITEM_ID, USER_ID

_SHOWN = 3


@dataclass(frozen=True)
class NotFound:
    """Ids with a tombstone that were unknown on every rank; they may be written differently in the events.

    Attributes:
        users: int64, ascending.
        items: int64, ascending.
    """

    users: Int64Array
    items: Int64Array

    def said(self, text_of: Callable[[str, int], str]) -> str:
        """One line for people; empty if all were found.

        Args:
            text_of: returns an id as written in its tombstone, by `user` or `item`.
        """
        parts = []
        for kind, ids in (("user", self.users), ("item", self.items)):
            if ids.shape[0]:
                shown = ", ".join(quoted(text_of(kind, i)) for i in ids[:_SHOWN].tolist())
                more = f" and {ids.shape[0] - _SHOWN:,} more" if ids.shape[0] > _SHOWN else ""
                parts.append(f"{kind} {shown}{more}")
        if not parts:
            return ""
        return f"tombstones matched nothing: {'; '.join(parts)} (is the key written as in the events?)"


def forget_deleted(run: TrainingRun, update: CatalogueUpdate, comm: Collectives) -> NotFound:
    """Collective. Every rank calls it with the same update, before the catalogue applies it."""
    users = _deleted(update.users, USER_ID)
    items = _deleted(update.items, ITEM_ID)
    not_found = NotFound(
        _unknown(users, _knows_users(run, users), update.users, USER_ID, comm),
        _unknown(items, _knows_items(run, items), update.items, ITEM_ID, comm),
    )
    if users.shape[0]:
        run.users.remove(users)
        run.texts.users.forget(users)
        run.table.forget(np.full(users.shape[0], USER, np.int16), users)
    if items.shape[0]:
        run.users.drop_items(items)
        run.texts.items.forget(items)
        for table in (ITEM, SOURCE):
            run.table.forget(np.full(items.shape[0], table, np.int16), items)
    return not_found


def _knows_users(run: TrainingRun, users: Int64Array) -> BoolArray:
    """bool (n,): whether this rank has any data of each user."""
    has_attributes = run.catalogue.user_attributes(users).any(axis=1)
    has_events = (run.users.find(users) >= 0) | (run.users.negatives.find(users) >= 0)
    return has_attributes | has_events


def _knows_items(run: TrainingRun, items: Int64Array) -> BoolArray:
    """bool (n,): whether each item is in the catalogue, which also has the items of events."""
    return run.catalogue.knows(items)


def _unknown(
    ids: Int64Array, known: BoolArray, records: pa.Table, name: str, comm: Collectives
) -> Int64Array:
    if not ids.shape[0]:
        return ids
    known_anywhere = comm.exchange(known.astype(np.float64)).sum(axis=0) > 0
    # An item that the same records created and deleted counts as found.
    made = records[name].to_numpy()[~records[DELETED].to_numpy()]
    unknown: Int64Array = ids[~known_anywhere & ~np.isin(ids, made)]
    return unknown


def _deleted(records: pa.Table, name: str) -> Int64Array:
    """Distinct ids whose last record is a tombstone."""
    ids: Int64Array = np.unique(pc.filter(records[name], records[DELETED]).to_numpy())
    return ids
