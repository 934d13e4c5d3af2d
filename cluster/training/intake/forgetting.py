"""What a tombstone on the users' or the items' topic removes, at a step boundary, on every rank alike.

Of a user: events, explicit negatives, attributes, the row of the user's id. Of an item: its rows, its place in
everybody's history, its title and categories; the id remains known as deleted, so that later events of the item are
ignored and no row comes back. What is removed is not in the next checkpoint or version, and in older ones until
retention drops them. The ledger keeps how many rows of a user were used, without which exactly-once could not be proved
while the topic holds them.
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
    """Ids with a tombstone of which nothing was known on any rank: they may be written otherwise than in the events.

    Attributes:
        users: int64, ascending.
        items: int64, ascending.
    """

    users: Int64Array
    items: Int64Array

    def said(self, text_of: Callable[[str, int], str]) -> str:
        """One line for people, empty if everybody was found.

        Args:
            text_of: an id as its tombstone says it, by `user` or `item`.
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
    """Collective. Every rank calls it with the same update, before the catalogue takes it up."""
    users = _deleted(update.users, USER_ID)
    items = _deleted(update.items, ITEM_ID)
    not_found = NotFound(
        _unknown(users, _knows_users(run, users), update.users, USER_ID, comm),
        _unknown(items, _knows_items(run, items), update.items, ITEM_ID, comm),
    )
    if users.shape[0]:
        run.users.remove(users)
        run.table.forget(np.full(users.shape[0], USER, np.int16), users)
    if items.shape[0]:
        run.users.drop_items(items)
        for table in (ITEM, SOURCE):
            run.table.forget(np.full(items.shape[0], table, np.int16), items)
    return not_found


def _knows_users(run: TrainingRun, users: Int64Array) -> BoolArray:
    """bool (n,): whether this rank has anything of each user."""
    has_attributes = run.catalogue.user_attributes(users).any(axis=1)
    has_events = (run.users.find(users) >= 0) | (run.users.negatives.find(users) >= 0)
    return has_attributes | has_events


def _knows_items(run: TrainingRun, items: Int64Array) -> BoolArray:
    """bool (n,): whether each item is in the catalogue, where an item of an event is too."""
    return run.catalogue.knows(items)


def _unknown(
    ids: Int64Array, known: BoolArray, records: pa.Table, name: str, comm: Collectives
) -> Int64Array:
    if not ids.shape[0]:
        return ids
    known_anywhere = comm.exchange(known.astype(np.float64)).sum(axis=0) > 0
    # One that the same records made and deleted is found too.
    made = records[name].to_numpy()[~records[DELETED].to_numpy()]
    unknown: Int64Array = ids[~known_anywhere & ~np.isin(ids, made)]
    return unknown


def _deleted(records: pa.Table, name: str) -> Int64Array:
    """Ids with a tombstone, each once; a later record starts over."""
    ids: Int64Array = np.unique(pc.filter(records[name], records[DELETED]).to_numpy())
    return ids
