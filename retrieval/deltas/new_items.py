"""The items of a version's deltas: vectors that are new or replace those of the version.

Where lists cannot be changed (packed ones, those of a GPU), these items are searched beside the version's: recent ones
one by one; once they are many, in inverted lists with the version's centroids, so that a query scans the same share.

Shape letters: N items, Q queries, K results, D columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import faiss
import numpy as np

from retrieval.arrays import Float32Array, Int64Array
from retrieval.deltas.superseded import Bools, RowsById
from retrieval.indexes.ivf import IvfIndex, NearestLists
from retrieval.indexes.kinds import search_lists

_FEW = 1024
"""Comparing this many vectors with a query takes a few µs."""
_SHARE_OF_LISTED = 16
NOTHING_FOUND = np.float32(-np.inf)
Results = tuple[Int64Array, Float32Array]


@dataclass(frozen=True)
class Found:
    """Results of one part of the items.

    Attributes:
        ids: int64 (Q, F).
        scores: float32 (Q, F), -inf where there is none.
        worst: float32 (Q,), the score of the last result; None if the part has no more items.
    """

    ids: Int64Array
    scores: Float32Array
    worst: Float32Array | None


@dataclass(frozen=True)
class Items:
    """Columns of items.

    Attributes:
        ids: int64 (N,), distinct.
        vectors: float32 (N, D).
        list_N: int64, the list of the version that each belongs to.
        row_N: int64, a number that no other item of the version or its deltas ever had.
    """

    ids: Int64Array
    vectors: Float32Array
    list_N: Int64Array
    row_N: Int64Array

    @staticmethod
    def none(dim: int) -> Items:
        """No items."""
        empty = np.empty(0, np.int64)
        return Items(empty, np.empty((0, dim), np.float32), empty, empty)

    def chosen(self, which: Bools | Int64Array) -> Items:
        """Some of them."""
        return Items(self.ids[which], self.vectors[which], self.list_N[which], self.row_N[which])

    def and_(self, others: Items) -> Items:
        """These, then others."""
        pairs = zip(vars(self).values(), vars(others).values(), strict=True)
        return Items(*(np.concatenate(pair) for pair in pairs))


@dataclass(frozen=True)
class ListedItems:
    """Items that can be searched in inverted lists; some may have been replaced or deleted since.

    Attributes:
        items: of the lists.
        kept: bool (N,), false for items that were replaced or deleted.
        rows: of the ids.
        ivf: the lists, for `search_lists`, made when they are needed.
        only: Faiss's selector of the kept ones; None if all are.
    """

    items: Items
    kept: Bools
    rows: RowsById
    ivf: Callable[[], Any]
    only: Any = None

    @staticmethod
    def of(base: IvfIndex, items: Items) -> ListedItems:
        """Items in lists with the centroids of `base`."""
        kept = np.ones(items.ids.shape[0], np.bool_)
        return ListedItems(
            items, kept, RowsById(items.ids), cache(partial(base.beside, items.vectors, items.list_N))
        )

    def places(self, item_ids: Int64Array) -> Int64Array:
        """Where those of some ids that are kept are in `items`."""
        rows = self.rows.find(item_ids)
        return rows[self.kept[rows]]

    def without(self, places: Int64Array) -> ListedItems:
        """The same without the items at some places."""
        if not places.shape[0]:
            return self
        kept = self.kept.copy()
        kept[places] = False
        selector: Any = faiss.IDSelectorBitmap  # in Python it takes the bits alone, and keeps them
        only = selector(np.packbits(kept, bitorder="little"))
        return replace(self, kept=kept, only=only)

    def search(self, query_QD: Float32Array, k: int, nearest: NearestLists) -> Found:
        """The best K items of each query in its lists, best first."""
        rows, scores = search_lists(
            self.ivf(), query_QD, k, nearest.list_QP, nearest.closeness_QP, only=self.only
        )
        if rows[:, -1].min(initial=0) < 0:
            scores[rows < 0] = NOTHING_FOUND
        return Found(self.items.ids.take(rows, mode="wrap"), scores, scores[:, -1])


@dataclass(frozen=True)
class NewItems:
    """All items of the deltas so far; immutable.

    Attributes:
        base: the version's index.
        recent: the items of the last deltas.
        listed: those before them.
    """

    base: IvfIndex = field(repr=False)
    recent: Items = field(repr=False)
    listed: ListedItems | None = field(default=None, repr=False)

    @staticmethod
    def none(base: IvfIndex) -> NewItems:
        """No items beside a version's index."""
        return NewItems(base, Items.none(base.dim))

    @property
    def size(self) -> int:
        """Items."""
        return int(self.recent.ids.shape[0]) + (int(self.listed.kept.sum()) if self.listed is not None else 0)

    def items(self) -> Items:
        """All of them."""
        if self.listed is None:
            return self.recent
        return self.listed.items.chosen(self.listed.kept).and_(self.recent)

    def of_ids(self, item_ids: Int64Array) -> Items:
        """Those of some ids."""
        found = self.recent.chosen(np.isin(self.recent.ids, item_ids))
        if self.listed is not None:
            found = self.listed.items.chosen(self.listed.places(item_ids)).and_(found)
        return found

    def changed(self, items: Items, deleted: Int64Array) -> NewItems:
        """The items after a delta.

        Args:
            items: that it brings.
            deleted: int64, ids of deleted items.
        """
        gone = np.concatenate([items.ids, deleted])
        listed = self.listed.without(self.listed.places(gone)) if self.listed is not None else None
        stays = ~np.isin(self.recent.ids, gone)
        new = NewItems(self.base, self.recent.chosen(stays).and_(items), listed)
        many = max(_FEW, (listed.kept.shape[0] if listed is not None else 0) // _SHARE_OF_LISTED)
        if new.recent.ids.shape[0] <= many:
            return new
        return replace(NewItems.none(self.base), listed=ListedItems.of(self.base, new.items()))

    def search(self, query_QD: Float32Array, k: int, nearest: NearestLists) -> list[Found]:
        """The best of each half, at most K, best first.

        Args:
            query_QD: float32, C-contiguous.
            k: K.
            nearest: the lists of each query.
        """
        found, few = [], self.recent.ids.shape[0]
        if self.listed is not None:
            found.append(self.listed.search(query_QD, k, nearest))
        if few:
            scores, rows = faiss.knn(
                query_QD, self.recent.vectors, min(k, few), metric=faiss.METRIC_INNER_PRODUCT
            )
            found.append(Found(self.recent.ids.take(rows), scores, scores[:, -1] if k < few else None))
        return found
