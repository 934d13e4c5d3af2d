"""A data set as flat arrays of each user's events, oldest first.

Shape letters: N events of the table, U users, T positive events, X explicit negatives, I items, C categories,
F attributes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from streaming.arrays import Float32Array, Int64Array
from streaming.catalogue.catalogue import Catalogue
from streaming.catalogue.records import CatalogueUpdate
from streaming.config import StreamConfig
from streaming.events.columns import cast
from streaming.events.hashing import feature_ids
from streaming.events.schema import (
    ATTRIBUTES,
    CATEGORIES,
    DELETED,
    ITEM_ID,
    ITEM_SCHEMA,
    TIMESTAMP_MS,
    TITLE,
    USER_ID,
    USER_SCHEMA,
)
from streaming.events.times import times_in_ms

POS = "pos"


@dataclass(frozen=True)
class Interactions:
    """Events by user; user u has events `offset_U1[u]` to `offset_U1[u + 1]`, oldest first."""

    user_U: Int64Array
    offset_U1: Int64Array
    item_T: Int64Array
    time_T: Int64Array
    """ms."""
    weight_T: Float32Array
    negative_offset_U1: Int64Array
    negative_item_X: Int64Array
    negative_place_X: Int64Array
    """Number of the user's positive events before the explicit negative."""
    attribute_UF: Int64Array

    @property
    def length_U(self) -> Int64Array:
        """Events of each user."""
        return np.diff(self.offset_U1)


@dataclass(frozen=True)
class SignedEvents:
    """Columns of events, one row each, in any order."""

    user_N: Int64Array
    item_N: Int64Array
    time_N: Int64Array
    sign_N: npt.NDArray[np.int8]
    """1 = positive, -1 = explicit negative, 0 = ignored."""
    weight_N: Float32Array
    pos_N: Int64Array
    """Order of a user's events with equal times."""


def by_user(events: SignedEvents, catalogue: Catalogue, *, shuffle_ties: bool, seed: int) -> Interactions:
    """Sorts events by user and time.

    Args:
        events: columns.
        catalogue: for the users' attributes.
        shuffle_ties: draw the order of a user's events with equal times from `seed`, because the file's order within a
            second or a day can be an artifact that a model learns.
        seed: of the shuffling.
    """
    rows = events.user_N.shape[0]
    tie_N = np.random.default_rng(seed).permutation(rows) if shuffle_ties else events.pos_N
    order = np.lexsort((tie_N, events.time_N, events.user_N))
    sign, user = events.sign_N[order], events.user_N[order]
    positive, negative = order[sign > 0], order[sign < 0]
    user_U, first = np.unique(events.user_N[positive], return_index=True)
    offset_U1 = np.append(first, positive.shape[0]).astype(np.int64)
    # Positives before each event in the whole order, then only the same user's.
    before = np.cumsum(sign > 0)[sign < 0]
    u = np.searchsorted(user_U, user[sign < 0])
    known = (u < user_U.shape[0]) & (user_U[np.minimum(u, max(user_U.shape[0] - 1, 0))] == user[sign < 0])
    negative, before, u = negative[known], before[known], u[known]
    return Interactions(
        user_U=user_U,
        offset_U1=offset_U1,
        item_T=events.item_N[positive],
        time_T=events.time_N[positive],
        weight_T=events.weight_N[positive],
        negative_offset_U1=np.searchsorted(u, np.arange(user_U.shape[0] + 1)).astype(np.int64),
        negative_item_X=events.item_N[negative],
        negative_place_X=before - offset_U1[u],
        attribute_UF=catalogue.user_attributes(user_U),
    )


def ids(column: pa.ChunkedArray, name: str) -> Int64Array:
    """Ids of a table by the rule of the stream (`streaming.events.ids`).

    Raises:
        ValueError: an id is missing or invalid, and could become another one's; names the column.
    """
    parts = [cast(name, chunk) for chunk in column.chunks]
    unfit = sum(int(part.unfit_N.sum()) for part in parts if part.unfit_N is not None)
    missing = sum(part.values.null_count for part in parts) - unfit
    if unfit:
        rule = f"{name} must hold integers or texts, not {column.type}"
        raise ValueError(f"{rule} with {unfit:,} of {len(column):,} values that are neither")
    if missing:
        raise ValueError(f"{name} is missing in {missing:,} of {len(column):,} rows")
    return np.concatenate([np.zeros(0, np.int64), *(part.values.to_numpy() for part in parts)])


def catalogue_of(items: pa.Table, users: pa.Table, item_ids: Int64Array, config: StreamConfig) -> Catalogue:
    """The catalogue, as from the stream's topics, plus the items that are only in events.

    Args:
        items: item_id, title, categories (lists of texts).
        users: user_id and a text column per attribute.
        item_ids: int64, items of the events.
        config: which attributes, how many categories.
    """
    catalogue = Catalogue(config)
    catalogue.apply(CatalogueUpdate(_items(items), _users(users, config.user_attributes)))
    catalogue.add_items(np.unique(item_ids))
    return catalogue


def _items(items: pa.Table) -> pa.Table:
    lists = items[CATEGORIES].combine_chunks()
    lists = pc.if_else(pc.is_valid(lists), lists, pa.scalar([], lists.type))
    texts = lists.flatten().cast(pa.string())
    hashed = pa.ListArray.from_arrays(lists.offsets, pa.array(feature_ids(texts), pa.int64()))
    columns = [
        pa.array(ids(items[ITEM_ID], ITEM_ID)),
        items[TITLE].combine_chunks().cast(pa.string()),
        hashed,
        pa.array(np.zeros(items.num_rows, np.bool_)),
    ]
    return pa.table(
        dict(zip((ITEM_ID, TITLE, CATEGORIES, DELETED), columns, strict=True)), schema=ITEM_SCHEMA
    )


def _users(users: pa.Table, names: list[str]) -> pa.Table:
    values_UF = np.zeros((users.num_rows, len(names)), np.int64)
    for k, name in enumerate(names):
        if name not in users.column_names:
            continue
        column = users[name].cast(pa.string()).combine_chunks()
        valid = pc.fill_null(pc.not_equal(column, ""), False)
        texts = pc.binary_join_element_wise(name, column.filter(valid), "=")
        valid = valid.to_numpy(zero_copy_only=False)
        values_UF[valid, k] = feature_ids(texts)
    offsets = np.arange(users.num_rows + 1, dtype=np.int32) * np.int32(len(names))
    lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values_UF.reshape(-1)))
    columns = [pa.array(ids(users[USER_ID], USER_ID)), lists, pa.array(np.zeros(users.num_rows, np.bool_))]
    return pa.table(dict(zip((USER_ID, ATTRIBUTES, DELETED), columns, strict=True)), schema=USER_SCHEMA)


def event_columns(
    interactions: pa.Table, sign_N: npt.NDArray[np.int8], weight_N: Float32Array
) -> SignedEvents:
    """The columns of a data set's table (user_id, item_id, timestamp_ms, optional pos), with signs and weights."""
    rows = interactions.num_rows
    times = times_in_ms(interactions[TIMESTAMP_MS], TIMESTAMP_MS)
    if times.null_count:
        raise ValueError(f"{TIMESTAMP_MS} is missing in {times.null_count:,} of {rows:,} rows")
    pos = interactions[POS].to_numpy() if POS in interactions.column_names else np.arange(rows)
    return SignedEvents(
        ids(interactions[USER_ID], USER_ID),
        ids(interactions[ITEM_ID], ITEM_ID),
        times.to_numpy(),
        sign_N,
        weight_N,
        pos.astype(np.int64),
    )
