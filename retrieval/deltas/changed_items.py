"""A full version's items as its deltas left them: what is superseded, what is new, and searching both together.

Shape letters: N items, Q queries, K results, F fetched results, D columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from retrieval.arrays import Float32Array, Int64Array
from retrieval.deltas.new_items import NOTHING_FOUND, Found, Items, NewItems, Results
from retrieval.deltas.superseded import RowsById, RowSet
from retrieval.indexes.changed_lists import ChangedLists, Members
from retrieval.indexes.ivf import IndexInputError, IvfIndex, NearestLists
from retrieval.indexes.parts import refuse_twins

_SPARE = 8
_NONE = np.empty(0, np.int64)


@dataclass(frozen=True)
class ChangedItems:
    """The items of a version after some deltas; immutable, so any number of threads may search it.

    Attributes:
        index: of the full version; shared, like all that a delta does not change.
        ids: int64 (N,), the id of each row of the version.
        rows: of the version's ids.
        superseded: the version's rows that were replaced or deleted.
        new: the items that deltas brought.
        lists: of all these items; None if the version's lists cannot be changed.
        list_of_row: int32 (N,), of the version's rows; empty without `lists`.
        more_ids: int64, the ids of the rows that deltas brought.
    """

    index: IvfIndex = field(repr=False)
    ids: Int64Array = field(repr=False)
    rows: RowsById = field(repr=False)
    superseded: RowSet = field(repr=False)
    new: NewItems = field(repr=False)
    lists: ChangedLists | None = field(repr=False)
    list_of_row: npt.NDArray[np.int32] = field(repr=False)
    more_ids: Int64Array = field(repr=False)

    @staticmethod
    def none(index: IvfIndex, item_ids: Int64Array) -> ChangedItems:
        """The items before the first delta; int64 (N,), the id of each row."""
        lists = index.lists()
        return ChangedItems(
            index,
            item_ids,
            RowsById(item_ids),
            RowSet.empty(item_ids.shape[0]),
            NewItems.none(index),
            lists,
            lists.list_of_each() if lists is not None else np.empty(0, np.int32),
            _NONE,
        )

    @cached_property
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
        come = self._items(ids, vectors.reshape(ids.shape[0], self.index.dim))
        gone_rows = self.rows.find(gone)
        return replace(
            self,
            superseded=self.superseded.with_rows(gone_rows),
            new=self.new.changed(come, deleted),
            lists=self._lists_after(gone, gone_rows, come),
            more_ids=np.concatenate([self.more_ids, ids]),
        )

    def _items(self, ids: Int64Array, vectors: Float32Array) -> Items:
        if not ids.shape[0]:
            return Items.none(self.index.dim)
        first = self.index.size + self.more_ids.shape[0]
        return Items(ids, vectors, self.index.assigned(vectors), np.arange(first, first + ids.shape[0]))

    def _lists_after(self, gone: Int64Array, gone_rows: Int64Array, come: Items) -> ChangedLists | None:
        if self.lists is None:
            return None
        left = gone_rows[~self.superseded.has(gone_rows)]
        of_deltas = self.new.of_ids(gone)
        leaving = Members(
            np.concatenate([left, of_deltas.row_N]),
            np.concatenate([self.list_of_row[left].astype(np.int64), of_deltas.list_N]),
        )
        return self.lists.changed(leaving, Members(come.row_N, come.list_N), come.vectors)

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
        if self.lists is None:
            return self._search_beside(query_QD, k, nprobe)
        rows, scores = self.lists.search(query_QD, k, max(1, min(nprobe, self.index.nlist)))
        ids = self.ids.take(rows, mode="clip")
        if self.more_ids.shape[0]:
            beyond = rows - self.index.size
            ids = np.where(beyond >= 0, self.more_ids.take(beyond, mode="clip"), ids)
        if scores[:, -1].min(initial=0) == NOTHING_FOUND:
            ids[scores == NOTHING_FOUND] = -1
        return ids, scores

    def _search_beside(self, query_QD: Float32Array, k: int, nprobe: int) -> Results:
        """Search the version's index and the new items, and merge."""
        queries = np.ascontiguousarray(query_QD, np.float32)
        nearest = self.index.nearest_lists(queries, nprobe)
        fetched = k + _SPARE + k // 8
        ids, scores, short = self._merged(queries, k, fetched, nearest)
        while short.shape[0]:
            fetched *= 4
            again = self._merged(queries[short], k, fetched, nearest.of_queries(short))
            ids[short], scores[short] = again[:2]
            short = short[again[2]]
        return ids, scores

    def _merged(
        self, query_QD: Float32Array, k: int, fetched: int, nearest: NearestLists
    ) -> tuple[Int64Array, Float32Array, Int64Array]:
        """The best k of what is fetched, and the indices of queries for which more must be fetched.

        Few of the best items are new, so only as many of these are fetched as of the version beyond k.
        """
        found = [
            self._of_version(query_QD, min(fetched, self.index.size), nearest),
            *self.new.search(query_QD, min(k, fetched - k), nearest),
        ]
        ids, scores = _best([(one.ids, one.scores) for one in found], k)
        # What was not fetched scores at most as much as the last that was.
        cut = [one.worst for one in found if one.worst is not None]
        last = scores[:, -1]
        short = (last < (cut[0] if len(cut) == 1 else np.maximum.reduce(cut))).nonzero()[0] if cut else _NONE
        return ids, scores, short

    def _of_version(self, query_QD: Float32Array, fetched: int, nearest: NearestLists) -> Found:
        rows, scores = self.index.search_in(query_QD, fetched, nearest)
        missing = rows < 0 if rows[:, -1].min(initial=0) < 0 else None
        if missing is not None:
            scores[missing] = NOTHING_FOUND
        worst = scores[:, -1].copy() if fetched < self.index.size else None
        scores[self.superseded.has(rows)] = NOTHING_FOUND
        return Found(self.ids.take(rows, mode="wrap"), scores, worst)


def _best(found: list[Results], k: int) -> Results:
    """The k best of all columns, padded with -1 and -inf."""
    ids, scores = (np.concatenate(half, axis=1) for half in zip(*found, strict=True))
    if scores.shape[1] < k:
        missing = ((0, 0), (0, k - scores.shape[1]))
        ids, scores = np.pad(ids, missing), np.pad(scores, missing, constant_values=NOTHING_FOUND)
    place = np.argsort(scores, axis=1)[:, : -k - 1 : -1]
    place += np.arange(0, scores.size, scores.shape[1])[:, None]
    ids, scores = ids.take(place), scores.take(place)
    if scores[:, -1].min(initial=0) == NOTHING_FOUND:
        ids[scores == NOTHING_FOUND] = -1
    return ids, scores
