"""Searches the live version and follows it when another one is promoted.

Shape letters: Q queries, K results, N items, D columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from retrieval.arrays import Float32Array, Int64Array
from retrieval.deltas.changed_items import ChangedItems
from retrieval.deltas.delta import Delta
from retrieval.indexes.exclusions import NO_EXCLUSIONS, Exclusions
from retrieval.indexes.gpu_index import GpuIvfIndex, searched_on_gpu
from retrieval.indexes.ivf import IndexInputError, IvfIndex
from retrieval.storage.cache import FileCache
from retrieval.versions.follower import VersionFollower
from retrieval.versions.following import Following
from retrieval.versions.item_texts import ItemTexts
from retrieval.versions.shards import load_shards
from retrieval.versions.store import Version, VersionError, VersionStore

_NONE = np.empty(0, np.int64)
_NOTHING_FOUND = np.float32(-np.inf)


@dataclass(frozen=True)
class LoadedVersion:
    """A version in memory, after some of its deltas; immutable, so any number of threads may search it.

    Attributes:
        version: the full one.
        index: of the full version.
        item_ids: int64 (N,), the id of each of its rows.
        delta: the last one that was applied; None before the first.
        changed: the items after these deltas; None before the first.
        texts: of items whose ids are texts; None: all ids are shown as numbers.
    """

    version: Version
    index: IvfIndex
    item_ids: Int64Array
    delta: Delta | None = None
    changed: ChangedItems | None = None
    texts: ItemTexts | None = None

    @staticmethod
    def load(version: Version) -> LoadedVersion:
        """Read a version's shards as one index, and their ids."""
        return LoadedVersion(version, *load_shards(version), texts=ItemTexts(version))

    @staticmethod
    def load_on(version: Version, gpu: int | Sequence[int] | None) -> Iterator[LoadedVersion]:
        """The version searched by the CPU, then, if there is a `gpu`, by that: so a GPU holds one version at a time."""
        loaded = LoadedVersion.load(version)
        yield loaded
        if gpu is not None and searched_on_gpu(loaded.index.kind):
            yield replace(loaded, index=GpuIvfIndex.copy_of(loaded.index, gpu))

    @property
    def size(self) -> int:
        """Items."""
        return self.changed.size if self.changed is not None else self.index.size

    @property
    def delta_number(self) -> int:
        """Number of the last delta that was applied; 0 before the first."""
        return self.delta.number if self.delta is not None else 0

    def holds(self, item_ids: Int64Array) -> npt.NDArray[np.bool_]:
        """Whether a search can return each item, bool in the shape of `item_ids`; reads all ids of the version."""
        if self.changed is None:
            return np.isin(item_ids, self.item_ids)
        rows = self.changed.rows.find(item_ids)
        left = self.item_ids[rows[~self.changed.superseded.has(rows)]]
        return np.isin(item_ids, np.concatenate([left, self.changed.new.of_ids(item_ids).ids]))

    def advance(self, delta: Delta) -> LoadedVersion:
        """The version after its next delta; shares with this one all that the delta does not change.

        Raises:
            DeltaError: its items do not fit the version.
        """
        try:
            return replace(self.with_items(*delta.items(), delta.deleted()), delta=delta)
        except IndexInputError as error:
            raise delta.damaged(str(error)) from error

    def with_items(self, ids: Int64Array, vectors: Float32Array, deleted: Int64Array) -> LoadedVersion:
        """The version with other items, as a delta would change them.

        Args:
            ids: int64 (N,), distinct.
            vectors: float32 (N, D), of new items or instead of existing ones.
            deleted: int64, ids of items that are deleted; other than `ids`.
        Raises:
            IndexInputError: vectors of another width than the version's, or an id twice.
        """
        before = self.changed or self._unchanged
        return replace(self, changed=before.changed(ids, vectors, deleted))

    def as_given(self, item_ids: Int64Array) -> list[int | str]:
        """As `Searcher.as_given`."""
        found = self.texts.of(item_ids).to_pylist() if self.texts else [None] * len(item_ids)
        pairs = zip(item_ids.tolist(), found, strict=True)
        return [number if text is None else text for number, text in pairs]

    @cached_property
    def _unchanged(self) -> ChangedItems:
        """Sorts all ids, so it is made once per version, when the first delta comes."""
        return ChangedItems.none(self.index, self.item_ids)

    def search(
        self, query_QD: Float32Array, k: int, exclude: Sequence[Int64Array] | None = None
    ) -> tuple[Int64Array, Float32Array]:
        """As `Searcher.search`."""
        if k < 1:
            raise IndexInputError(f"k must be at least 1, got {k}")
        if exclude is not None and len(exclude) != query_QD.shape[0]:
            raise IndexInputError(f"{len(exclude)} sets of excluded ids for {query_QD.shape[0]} queries")
        unwanted = Exclusions.of(exclude) if exclude is not None else NO_EXCLUSIONS
        nprobe = self._nprobe_for(unwanted.longest)
        ids, scores, short = self._search(query_QD, k, nprobe, unwanted)
        while short.shape[0] and nprobe < self.index.nlist:
            nprobe *= 4
            again = self._search(query_QD[short], k, nprobe, unwanted.of_queries(short))
            ids[short], scores[short] = again[:2]
            short = short[again[2]]
        return ids, scores

    def _nprobe_for(self, excluded: int) -> int:
        """Number of lists to search. nprobe is tuned without exclusions, and the excluded items are often the nearest.

        Adds lists for four times the number of excluded items: with a user's nearest 300 of 1,700 items excluded,
        recall@10 of the rest is .04 with plain nprobe.
        """
        nprobe = int(self.version.manifest["nprobe"])
        return nprobe + -(-4 * excluded * self.index.nlist // self.index.size) if excluded else nprobe

    def _search(
        self, query_QD: Float32Array, k: int, nprobe: int, unwanted: Exclusions
    ) -> tuple[Int64Array, Float32Array, Int64Array]:
        """Ids and scores as in `search`, and the indices of queries with too few results."""
        fetched = min(k + unwanted.longest, max(1, self.size))
        if self.changed is not None:
            ids, scores = self.changed.search(query_QD, fetched, nprobe)
            if unwanted.longest or fetched < k:
                ids, scores = unwanted.first_kept(ids, scores, k)
            return ids, scores, self._too_few(scores, k)
        rows, scores = self.index.search(query_QD, fetched, nprobe)
        ids = self.item_ids[rows]  # the id of the last item where the row is missing, -1
        some_missing = rows[:, -1].min(initial=0) < 0
        if some_missing:
            missing = rows < 0
            ids[missing], scores[missing] = -1, _NOTHING_FOUND
        if unwanted.longest or fetched < k:
            ids, scores = unwanted.first_kept(ids, scores, k)
        elif not some_missing:
            return ids, scores, _NONE
        return ids, scores, self._too_few(scores, k)

    def _too_few(self, scores_QK: Float32Array, k: int) -> Int64Array:
        wanted = min(k, self.size)
        return (scores_QK[:, wanted - 1] == _NOTHING_FOUND).nonzero()[0] if wanted else _NONE


class Searcher:
    """The live version of a store after its deltas; `refresh` swaps it, and a search in progress keeps what it has.

    `close`, or the end of its block, stops threads that follow and releases the version's memory and files.

    Args:
        location: of the store, a folder or a URI.
        gpu: search on this GPU, or with the items divided among several; the CPU keeps a copy, which serves while a
            new version is copied to the GPU.
        cache: for copies of files in an object store; by default the user's.
    """

    def __init__(
        self, location: str | Path, gpu: int | Sequence[int] | None = None, *, cache: FileCache | None = None
    ) -> None:
        self._store = VersionStore(location, cache)
        self._follower = VersionFollower(
            self._store, lambda version: LoadedVersion.load_on(version, gpu), LoadedVersion.advance
        )
        self.refresh()

    @property
    def loaded(self) -> LoadedVersion | None:
        """The version in memory, with its index; None before the first version."""
        return self._follower.current

    @property
    def version(self) -> Version | None:
        """The version in memory; None before the first one."""
        loaded = self.loaded
        return loaded.version if loaded is not None else None

    def refresh(self) -> bool:
        """See `VersionFollower.refresh`."""
        return self._follower.refresh()

    def following(self, every_s: float = 0.1) -> Following:
        """Follows versions and deltas from a thread while the block runs, with a look every `every_s` seconds."""
        return self._follower.following(every_s)

    def close(self) -> None:
        """See `VersionFollower.close`; a later search raises VersionError."""
        self._follower.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def search(
        self, query_QD: Float32Array, k: int, exclude: Sequence[Int64Array] | None = None
    ) -> tuple[Int64Array, Float32Array]:
        """The best items of each query.

        Args:
            query_QD: float32, encoded by the query tower of the same version.
            k: number of results per query.
            exclude: for each query, int64 item ids that it must not get. More lists are searched and more items fetched
                for them, until there are k results or no more lists.
        Returns:
            Item ids int64 (Q, k) and inner products float32 (Q, k), best first, padded with id -1 and score -inf.
        Raises:
            VersionError: no version is live, or the searcher was closed.
            IndexInputError: queries of another width, k below 1, or another number of `exclude` than of queries.
        """
        return self._live().search(query_QD, k, exclude)

    def as_given(self, item_ids: Int64Array) -> list[int | str]:
        """Found items as their ids were put in: texts where they are texts.

        A text id that is newer than the version in memory, from a delta, stays a number.

        Args:
            item_ids: int64 (n,), of a search.
        Raises:
            VersionError: no version is in memory.
        """
        return self._live().as_given(item_ids)

    def _live(self) -> LoadedVersion:
        loaded = self.loaded
        if loaded is None:
            if self._follower.closed:
                raise VersionError(f"the searcher of {self._store.where} was closed")
            raise VersionError(f"no index version is live in {self._store.where}")
        return loaded
