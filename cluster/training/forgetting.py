"""What a tombstone on the users' or the items' topic removes, at a step boundary, on every rank alike.

Of a user: events, explicit negatives, attributes, the row of the user's id. Of an item: its rows, its place in
everybody's history, its title and categories; the id stays known as deleted, so that later events of the item are
ignored and no row comes back. What is removed is not in the next checkpoint or version, and in older ones until
retention drops them. The ledger keeps how many rows of a user were used, without which exactly-once could not be proved
while the topic holds them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cluster.training.run import TrainingRun
from model.features import ITEM, SOURCE, USER
from streaming.catalogue_records import CatalogueUpdate
from streaming.schema import DELETED, ITEM_ID, USER_ID

Int64Array = npt.NDArray[np.int64]


def forget_deleted(run: TrainingRun, update: CatalogueUpdate) -> None:
    """Every rank calls it with the same update; one that holds nothing of these ids has nothing to do."""
    users = _deleted(update.users, USER_ID)
    if users.shape[0]:
        run.users.remove(users)
        run.table.forget(np.full(users.shape[0], USER, np.int16), users)
    items = _deleted(update.items, ITEM_ID)
    if items.shape[0]:
        run.users.drop_items(items)
        for table in (ITEM, SOURCE):
            run.table.forget(np.full(items.shape[0], table, np.int16), items)


def _deleted(records: pa.Table, name: str) -> Int64Array:
    """Ids with a tombstone, each once; a record behind it starts anew."""
    ids: Int64Array = np.unique(pc.filter(records[name], records[DELETED]).to_numpy())
    return ids
