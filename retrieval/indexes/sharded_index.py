"""An index whose shards are spread over ranks while a version is built; results are those of all ranks together.

Every rank calls the same methods in the same order, with the same arguments. Row numbers continue from rank to rank.

Shape letters: Q queries, K results, C candidates, S items of a slice, L lists, D columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from retrieval.arrays import Float32Array, Int64Array
from retrieval.indexes.exact import exact_top_k
from retrieval.indexes.exclusions import NO_EXCLUSIONS, Exclusions
from retrieval.indexes.ivf import IvfIndex
from retrieval.indexes.parts import Part
from retrieval.ranks import Ranks, gather_results

Float64Array = npt.NDArray[np.float64]
_SPARE = 8
"""Candidates in addition to K, because a scan of many items rounds differently than a single inner product."""


@dataclass(frozen=True)
class Found:
    """Results of queries, best first; ties are ordered by item id, so they do not depend on the ranks.

    Attributes:
        row_QK: int64, row numbers over all ranks, -1 padded.
        id_QK: int64, item ids; -1 in the padding (but -1 can also be an id).
        score_QK: float64, inner products; -inf where padded.
    """

    row_QK: Int64Array
    id_QK: Int64Array
    score_QK: Float64Array


def best_of(found: Sequence[Found], k: int) -> Found:
    """The k best results of each query among several."""
    rows, ids, scores = (
        np.concatenate([getattr(one, name) for one in found], axis=1)
        for name in ("row_QK", "id_QK", "score_QK")
    )
    order = np.lexsort((ids, -scores), axis=-1)[:, :k]
    return Found(*(np.take_along_axis(values, order, axis=1) for values in (rows, ids, scores)))


class ShardedSearch:
    """Searches the shards of all ranks.

    Args:
        ranks: that hold the shards.
        shards: this rank's, possibly none; each is an index and the int64 item ids of its rows.
    """

    def __init__(self, ranks: Ranks, shards: Sequence[tuple[IvfIndex, Int64Array]]) -> None:
        self._ranks, self._shards = ranks, shards
        told = ranks.gather_objects((sum(index.size for index, _ in shards), [i.nlist for i, _ in shards]))
        self._first_row = sum(size for size, _ in told[: ranks.rank])
        self.size = sum(size for size, _ in told)
        """Items."""
        self.nlist = max((lists for _, of_rank in told for lists in of_rank), default=1)
        """Inverted lists."""

    def find(
        self, query_QD: Float32Array, k: int, nprobe: int, unwanted: Exclusions = NO_EXCLUSIONS
    ) -> Found:
        """The k best items in the lists nearest to each query, without the unwanted ids of each."""

        def search() -> Found:
            found, first_row = [_nothing(query_QD.shape[0])], self._first_row
            for index, ids in self._shards:
                if index.size:
                    fetched = min(k + unwanted.longest, index.size)
                    rows, scores = index.search(query_QD, fetched, nprobe)
                    found.append(_found(rows, scores.astype(np.float64), ids, first_row, unwanted))
                first_row += index.size
            return best_of(found, k)

        return best_of(gather_results(self._ranks, search), k)

    def search_excluding(
        self, query_QD: Float32Array, k: int, exclude: Sequence[Int64Array], nprobe: int
    ) -> tuple[Int64Array, Float32Array]:
        """Ids int64 (Q, K) and scores float32 (Q, K) that a `Searcher` would return; -inf in the padding."""
        unwanted = Exclusions.of(exclude)
        nprobe += -(-4 * unwanted.longest * self.nlist // max(1, self.size))
        id_QK = np.full((query_QD.shape[0], k), -1, np.int64)
        score_QK = np.full(id_QK.shape, -np.inf, np.float32)
        short = np.arange(query_QD.shape[0])
        while short.shape[0]:
            found = self.find(query_QD[short], k, nprobe, unwanted.of_queries(short))
            columns = found.id_QK.shape[1]
            id_QK[short, :columns], score_QK[short, :columns] = found.id_QK, found.score_QK
            if nprobe >= self.nlist:
                break
            short = short[np.isneginf(score_QK[short, min(k, self.size) - 1])]
            nprobe *= 4
        return id_QK, score_QK


class ShardedIndex(ShardedSearch):
    """The candidate: one shard per rank, to be tuned and gated.

    Args:
        ranks: that hold the shards.
        shard: the index of this rank's items.
        item_ids: int64, of the shard's rows.
    """

    def __init__(self, ranks: Ranks, shard: IvfIndex, item_ids: Int64Array) -> None:
        super().__init__(ranks, [(shard, item_ids)])
        self.shard, self._ids = shard, item_ids

    def centroids(self) -> Float32Array:
        """Centroids float32 (L, D); the same on all ranks."""
        return self.shard.centroids()

    def on_cpu(self) -> ShardedIndex:
        """The index as read from the shards' files; this object if all shards are on the CPU."""
        moved = gather_results(self._ranks, lambda: self.shard.on_cpu() is not self.shard)
        return ShardedIndex(self._ranks, self.shard.on_cpu(), self._ids) if any(moved) else self

    def search(self, query_QD: Float32Array, k: int, nprobe: int) -> tuple[Int64Array, Float64Array]:
        """Row numbers int64 (Q, K), -1 padded, and inner products float64 (Q, K), best first."""
        found = self.find(query_QD, k, nprobe)
        return found.row_QK, found.score_QK

    def lists_of(self, rows: Int64Array) -> Int64Array:
        """The list of each row, int64 in the shape of `rows`; 0 for the -1 of a missing result."""

        def own() -> npt.NDArray[np.int32]:
            if self.shard.size == 0:
                return np.zeros(rows.shape, np.int32)
            local = rows - self._first_row
            mine = (rows >= 0) & (local >= 0) & (local < self.shard.size)
            return self.shard.lists_of(np.where(mine, local, -1)).astype(np.int32)

        lists: Int64Array = np.sum(gather_results(self._ranks, own), axis=0, dtype=np.int64)
        return lists

    def scanned(self, query_QD: Float32Array, nprobe: int) -> float:
        """Mean number of items that a search for one of these queries scans."""
        return float(sum(gather_results(self._ranks, lambda: self.shard.scanned(query_QD, nprobe))))

    def exact(self, query_QD: Float32Array, k: int, part: Part, cards: Sequence[int]) -> Found:
        """The k best of all items, regardless of lists.

        Args:
            query_QD: float32.
            k: K.
            part: the vectors of the shard's items, in the order of its rows.
            cards: GPUs that scan, if any.
        """

        def scan() -> Found:
            best, start = _nothing(query_QD.shape[0]), 0
            for ids, vectors_SD in part.slices():
                wanted = min(k + _SPARE, vectors_SD.shape[0])
                rows = exact_top_k(query_QD, vectors_SD, wanted, cards)
                scores = _products(query_QD, vectors_SD, rows)
                best = best_of([best, _found(rows, scores, ids, self._first_row + start)], k)
                start += vectors_SD.shape[0]
            return best

        return best_of(gather_results(self._ranks, scan), k)


def _found(
    row_QK: Int64Array,
    score_QK: Float64Array,
    ids: Int64Array,
    first_row: int,
    unwanted: Exclusions = NO_EXCLUSIONS,
) -> Found:
    """Results as rows of some items, whose numbers start at `first_row`."""
    id_QK = ids[np.maximum(row_QK, 0)]
    drop_QK = row_QK < 0
    for q, excluded in enumerate(unwanted.ids if unwanted.longest else ()):
        drop_QK[q] |= np.isin(id_QK[q], excluded)
    return Found(
        np.where(drop_QK, -1, row_QK + first_row),
        np.where(drop_QK, -1, id_QK),
        np.where(drop_QK, -np.inf, score_QK),
    )


def _nothing(queries: int) -> Found:
    none = np.zeros((queries, 0), np.int64)
    return Found(none, none, none.astype(np.float64))


def _products(query_QD: Float32Array, vectors_SD: Float32Array, row_QC: Int64Array) -> Float64Array:
    """Inner products float64 (Q, C), bit-identical for two vectors whatever the other rows are."""
    queries, score_QC = query_QD.astype(np.float64), np.empty(row_QC.shape, np.float64)
    for column in range(row_QC.shape[1]):
        score_QC[:, column] = np.einsum("qd,qd->q", queries, vectors_SD[row_QC[:, column]].astype(np.float64))
    return score_QC
