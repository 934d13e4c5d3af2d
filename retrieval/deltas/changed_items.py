"""A full version's items as its deltas left them: what is superseded, what is new, and searching both together.

Shape letters: N items, Q queries, K results, F fetched results, D columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from retrieval.arrays import Float32Array, Int64Array
from retrieval.deltas.new_items import NewItems, Results
from retrieval.deltas.superseded import RowsById, RowSet
from retrieval.indexes.ivf import IndexInputError, IvfIndex, NearestLists
from retrieval.indexes.parts import refuse_twins

_SPARE = 8
_NOTHING_FOUND = np.float32(-np.inf)


@dataclass(frozen=True)
class ChangedItems:
    """The items of a version after some deltas; immutable, so any number of threads may search it.

    Attributes:
        index: of the full version; shared, like all that a delta does not change.
        item_ids: int64 (N,), of its rows.
        rows: of the ids.
        superseded: its rows that were replaced or deleted.
        new: the items that deltas brought.
    """

    index: IvfIndex = field(repr=False)
    item_ids: Int64Array = field(repr=False)
    rows: RowsById = field(repr=False)
    superseded: RowSet = field(repr=False)
    new: NewItems = field(repr=False)

    @staticmethod
    def none(index: IvfIndex, item_ids: Int64Array) -> ChangedItems:
        """The items before the first delta."""
        return ChangedItems(
            index, item_ids, RowsById(item_ids), RowSet.empty(item_ids.shape[0]), NewItems.none(index)
        )

    @property
    def size(self) -> int:
        """Items."""
        return self.index.size - self.superseded.size + self.new.size

    @property
    def share(self) -> float:
        """Items of the deltas, or rows that they superseded, whichever are more, / items of the full version."""
        return max(self.new.size, self.superseded.size) / self.index.size

    def changed(self, ids: Int64Array, vectors: Float32Array, deleted: Int64Array) -> ChangedItems:
        """The items after one more delta; the cost is that of the delta, apart from copying a bit per item.

        Args:
            ids: int64 (N,), distinct.
            vectors: float32 (N, D), of new items or instead of existing ones.
            deleted: int64, ids of items that are deleted; other than `ids`.
        Raises:
            IndexInputError: vectors of another width than the version's, or an id twice.
        """
        if ids.shape[0] and vectors.shape != (ids.shape[0], self.index.dim):
            raise IndexInputError(
                f"{ids.shape[0]} items have vectors of shape {vectors.shape}, the index has {self.index.dim} columns"
            )
        gone = np.concatenate([ids, np.unique(deleted)])
        refuse_twins(np.sort(gone))
        return ChangedItems(
            self.index,
            self.item_ids,
            self.rows,
            self.superseded.with_rows(self.rows.find(gone)),
            self.new.changed(ids, vectors.reshape(ids.shape[0], self.index.dim), deleted),
        )

    def search(self, query_QD: Float32Array, k: int, nprobe: int) -> Results:
        """Ids int64 (Q, K) and inner products float32 (Q, K), best first; -inf where there are no more.

        Args:
            query_QD: float32.
            k: K.
            nprobe: number of lists to search, of the version and of the deltas.
        Raises:
            IndexInputError: queries of another width.
        """
        if query_QD.ndim != 2 or query_QD.shape[1] != self.index.dim:
            raise IndexInputError(
                f"queries have shape {query_QD.shape}, the index has {self.index.dim} columns"
            )
        queries = np.ascontiguousarray(query_QD, np.float32)
        nearest = self.index.nearest_lists(queries, nprobe)
        new = self.new.search(queries, k, nearest)
        fetched = min(k + _SPARE + k // 8, self.index.size)
        (ids, scores), short = self._merged(queries, k, fetched, nearest, new)
        while short.shape[0]:
            fetched = min(4 * fetched, self.index.size)
            of_short = [(i[short], s[short]) for i, s in new]
            again, still = self._merged(queries[short], k, fetched, nearest.of_queries(short), of_short)
            ids[short], scores[short] = again
            short = short[still]
        return ids, scores

    def _merged(
        self, query_QD: Float32Array, k: int, fetched: int, nearest: NearestLists, new: list[Results]
    ) -> tuple[Results, Int64Array]:
        """The best k, and the indices of queries that may miss some because of superseded rows."""
        rows, scores = self.index.search_in(query_QD, fetched, nearest)
        worst = np.where(rows[:, -1] >= 0, scores[:, -1], _NOTHING_FOUND)
        scores[(rows < 0) | self.superseded.has(rows)] = _NOTHING_FOUND
        ids = self.item_ids[rows]
        ids, scores = (np.concatenate(half, axis=1) for half in zip((ids, scores), *new, strict=True))
        best = np.argsort(-scores, axis=1)[:, :k]
        ids, scores = np.take_along_axis(ids, best, 1), np.take_along_axis(scores, best, 1)
        missing = k - scores.shape[1]
        if missing > 0:
            ids = np.pad(ids, ((0, 0), (0, missing)), constant_values=-1)
            scores = np.pad(scores, ((0, 0), (0, missing)), constant_values=_NOTHING_FOUND)
        ids[scores == _NOTHING_FOUND] = -1
        if fetched == self.index.size:
            return (ids, scores), np.empty(0, np.int64)
        # Everything that was not fetched scores at most as much as the last that was.
        return (ids, scores), (scores[:, -1] < worst).nonzero()[0]
