"""The items of a version's deltas: vectors that are new or replace those of the version.

Recent ones are compared with each query one by one. Once they are many, they are moved to inverted lists with the
centroids of the version, so that a query scans the same share of them as of the version.

Shape letters: N items, Q queries, K results, D columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
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
class ListedItems:
    """Items in inverted lists; some may have been replaced or deleted since.

    Attributes:
        ids: int64 (N,).
        vectors: float32 (N, D).
        list_N: int64, the list of each.
        kept: bool (N,), false for items that were replaced or deleted.
        rows: of the ids.
        ivf: the lists, for `search_lists`.
        only: Faiss's selector of the kept ones; None if all are.
    """

    ids: Int64Array
    vectors: Float32Array
    list_N: Int64Array
    kept: Bools
    rows: RowsById
    ivf: Any
    only: Any = None

    @staticmethod
    def of(base: IvfIndex, ids: Int64Array, vectors: Float32Array, list_N: Int64Array) -> ListedItems:
        """Items in lists with the centroids of `base`."""
        kept = np.ones(ids.shape[0], np.bool_)
        return ListedItems(ids, vectors, list_N, kept, RowsById(ids), base.beside(vectors, list_N))

    def without(self, item_ids: Int64Array) -> ListedItems:
        """The same without some items."""
        rows = self.rows.find(item_ids)
        rows = rows[self.kept[rows]]
        if not rows.shape[0]:
            return self
        kept = self.kept.copy()
        kept[rows] = False
        selector: Any = faiss.IDSelectorBitmap  # in Python it takes the bits alone, and keeps them
        only = selector(np.packbits(kept, bitorder="little"))
        return replace(self, kept=kept, only=only)

    def search(self, query_QD: Float32Array, k: int, nearest: NearestLists) -> Found:
        """The best K items of each query in its lists, best first."""
        rows, scores = search_lists(
            self.ivf, query_QD, k, nearest.list_QP, nearest.closeness_QP, only=self.only
        )
        if rows[:, -1].min(initial=0) < 0:
            scores[rows < 0] = NOTHING_FOUND
        return Found(self.ids.take(rows, mode="wrap"), scores, scores[:, -1])


@dataclass(frozen=True)
class NewItems:
    """All items of the deltas so far; immutable.

    Attributes:
        ids: int64 (N,), of recent items, distinct.
        vectors: float32 (N, D), of recent items.
        listed: those before them.
    """

    base: IvfIndex = field(repr=False)
    ids: Int64Array
    vectors: Float32Array
    listed: ListedItems | None = None

    @staticmethod
    def none(base: IvfIndex) -> NewItems:
        """No items beside a version's index."""
        return NewItems(base, np.empty(0, np.int64), np.empty((0, base.dim), np.float32))

    @property
    def size(self) -> int:
        """Items."""
        return int(self.ids.shape[0]) + (int(self.listed.kept.sum()) if self.listed is not None else 0)

    def items(self) -> Results:
        """Ids int64 (N,) and vectors float32 (N, D) of all of them."""
        if self.listed is None:
            return self.ids, self.vectors
        kept = self.listed.kept
        return (
            np.concatenate([self.listed.ids[kept], self.ids]),
            np.concatenate([self.listed.vectors[kept], self.vectors]),
        )

    def list_lengths(self) -> Int64Array:
        """How many of them are in each list, int64 (L,); recent ones are in none."""
        lists = self.listed.list_N[self.listed.kept] if self.listed is not None else np.empty(0, np.int64)
        return np.bincount(lists, minlength=self.base.nlist)

    def changed(self, ids: Int64Array, vectors: Float32Array, deleted: Int64Array) -> NewItems:
        """The items after a delta.

        Args:
            ids: int64 (N,), distinct.
            vectors: float32 (N, D).
            deleted: int64, ids of deleted items.
        """
        gone = np.concatenate([ids, deleted])
        stays = ~np.isin(self.ids, gone)
        new = NewItems(
            self.base,
            np.concatenate([self.ids[stays], ids]),
            np.concatenate([self.vectors[stays], vectors]),
            self.listed.without(gone) if self.listed is not None else None,
        )
        listed = self.listed.ids.shape[0] if self.listed is not None else 0
        return new if new.ids.shape[0] <= max(_FEW, listed // _SHARE_OF_LISTED) else new._all_listed()

    def search(self, query_QD: Float32Array, k: int, nearest: NearestLists) -> list[Found]:
        """The best of each half, at most K, best first.

        Args:
            query_QD: float32, C-contiguous.
            k: K.
            nearest: the lists of each query.
        """
        found, recent = [], self.ids.shape[0]
        if self.listed is not None:
            found.append(self.listed.search(query_QD, k, nearest))
        if recent:
            scores, rows = faiss.knn(
                query_QD, self.vectors, min(k, recent), metric=faiss.METRIC_INNER_PRODUCT
            )
            found.append(Found(self.ids.take(rows), scores, scores[:, -1] if k < recent else None))
        return found

    def _all_listed(self) -> NewItems:
        ids, vectors = self.items()
        list_N = self.base.assigned(self.vectors)
        if self.listed is not None:
            list_N = np.concatenate([self.listed.list_N[self.listed.kept], list_N])
        return replace(NewItems.none(self.base), listed=ListedItems.of(self.base, ids, vectors, list_N))
