"""Deltas of versions of runs in memory, as the ranks of a run commit them."""

import numpy as np
import pyarrow as pa

from cluster.queries.changes import Changes, write_changes
from retrieval.deltas.chain import DeltaChain
from retrieval.deltas.delta import write_items
from streaming.catalogue.records import CatalogueUpdate
from streaming.events.schema import ITEM_SCHEMA, USER_SCHEMA

NO_IDS = np.zeros(0, np.int64)


def commit_delta(store, version, changes, ids=NO_IDS, vectors=None, deleted=NO_IDS, **described):
    """Commit the next delta of a version, written by one rank.

    Args:
        changes: of rows and records.
        ids: int64 (N,), items with new vectors.
        vectors: float32 (N, D).
        deleted: int64, ids of deleted items.
    """
    chain = DeltaChain(store, version)
    folder = chain.begin()
    some = np.zeros((0, changes.rows.values.shape[1]), np.float32) if vectors is None else vectors
    write_items(folder.path, 0, np.asarray(ids), some, np.asarray(deleted))
    write_changes(folder.path, 0, changes)
    return chain.commit(folder, described)


def no_rows(dim):
    """Changed rows that are none."""
    return np.zeros(0, np.int16), np.zeros(0, np.int64), np.zeros((0, dim), np.float32)


def records(items=(), users=()):
    """Catalogue records: (id, title or None for a tombstone) of items, and ids of deleted users."""
    titles = [title for _, title in items]
    found = [[i for i, _ in items], titles, [[] for _ in items], [title is None for title in titles]]
    deleted = [list(users), [[0] for _ in users], [True for _ in users]]
    return CatalogueUpdate(_table(found, ITEM_SCHEMA), _table(deleted, USER_SCHEMA))


def _table(columns, schema):
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.table(arrays, schema=schema)


def changes_of(dim, rows=None, removed=None, items=(), users=()):
    """Changes of rows (tables, ids, values), removed keys, and records as in `records`."""
    return Changes.of(rows or no_rows(dim), removed, records(items, users))
