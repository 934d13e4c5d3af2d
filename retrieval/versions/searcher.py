"""Searches the live version and follows it when another one is promoted.

Shape letters: Q queries, K results, N items, D columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from retrieval.arrays import Float32Array, Int64Array
from retrieval.indexes.gpu_index import GpuIvfIndex, searched_on_gpu
from retrieval.indexes.ivf import IndexInputError, IvfIndex
from retrieval.indexes.parts import read_ids
from retrieval.storage.cache import FileCache
from retrieval.versions.follower import VersionFollower
from retrieval.versions.following import Following
from retrieval.versions.store import Version, VersionError, VersionStore

INDEX_FILE = "index.faiss"
ITEMS_FILE = "items.arrow"
SEARCHED_FILES = frozenset((INDEX_FILE, ITEMS_FILE))
"""What `LoadedVersion.load` reads."""


@dataclass(frozen=True)
class LoadedVersion:
    """A version in memory; immutable, so any number of threads may search it."""

    version: Version
    index: IvfIndex
    item_ids: Int64Array

    @staticmethod
    def load(version: Version) -> LoadedVersion:
        """Read a version's index and ids."""
        index = IvfIndex.load(version.file(INDEX_FILE), str(version.manifest["kind"]))
        return LoadedVersion(version, index, read_ids(version.file(ITEMS_FILE)))

    @staticmethod
    def load_on(version: Version, gpu: int | Sequence[int] | None) -> Iterator[LoadedVersion]:
        """The version searched by the CPU, then, if there is a `gpu`, by that: so a GPU holds one version at a time."""
        loaded = LoadedVersion.load(version)
        yield loaded
        if gpu is not None and searched_on_gpu(loaded.index.kind):
            yield replace(loaded, index=GpuIvfIndex.copy_of(loaded.index, gpu))

    def search(
        self, query_QD: Float32Array, k: int, exclude: Sequence[Int64Array] | None = None
    ) -> tuple[Int64Array, Float32Array]:
        """As `Searcher.search`."""
        if k < 1:
            raise IndexInputError(f"k must be at least 1, got {k}")
        unwanted = [np.unique(ids) for ids in exclude] if exclude is not None else None
        if unwanted is not None and len(unwanted) != query_QD.shape[0]:
            raise IndexInputError(f"{len(unwanted)} sets of excluded ids for {query_QD.shape[0]} queries")
        nprobe = self._nprobe_for(max((ids.shape[0] for ids in unwanted or ()), default=0))
        ids, scores = self._search(query_QD, k, nprobe, unwanted)
        while nprobe < self.index.nlist:
            short = np.flatnonzero(np.isneginf(scores[:, min(k, self.index.size) - 1]))
            if short.shape[0] == 0:
                break
            nprobe *= 4
            still_unwanted = [unwanted[q] for q in short] if unwanted is not None else None
            ids[short], scores[short] = self._search(query_QD[short], k, nprobe, still_unwanted)
        return ids, scores

    def _nprobe_for(self, excluded: int) -> int:
        """Lists to search. nprobe is tuned on plain queries, and the excluded items are the nearest of all.

        Room for four times as many items: at a user's 300 nearest of 1,700 items excluded, recall@10 of the rest is
        .04 with plain nprobe.
        """
        items_per_list = self.index.size / self.index.nlist
        return int(self.version.manifest["nprobe"]) + int(np.ceil(4 * excluded / items_per_list))

    def _search(
        self, query_QD: Float32Array, k: int, nprobe: int, unwanted: Sequence[Int64Array] | None
    ) -> tuple[Int64Array, Float32Array]:
        longest = max((ids.shape[0] for ids in unwanted or ()), default=0)
        rows, scores = self.index.search(query_QD, min(k + longest, self.index.size), nprobe)
        ids = np.where(rows >= 0, self.item_ids[np.maximum(rows, 0)], -1)
        drop = rows < 0
        for q, excluded in enumerate(unwanted or ()):
            drop[q] |= np.isin(ids[q], excluded)
        return _first_kept(ids, scores, drop, k)


class Searcher:
    """The live version of a store; `refresh` swaps it, a search in progress keeps the one it began with.

    `close`, or the end of its block, stops threads that follow and releases the version's memory and files.

    Args:
        location: of the store, a folder or a URI.
        gpu: search on this GPU, or with the items divided among several; the CPU keeps a copy, which serves while a
            new version goes up.
        cache: for copies of what lies in an object store; by default the user's.
    """

    def __init__(
        self, location: str | Path, gpu: int | Sequence[int] | None = None, *, cache: FileCache | None = None
    ) -> None:
        self._store = VersionStore(location, cache)
        self._follower = VersionFollower(self._store, lambda version: LoadedVersion.load_on(version, gpu))
        self.refresh()

    @property
    def loaded(self) -> LoadedVersion | None:
        """What is searched now; None before the first version."""
        return self._follower.current

    @property
    def version(self) -> Version | None:
        """The version that is searched now; None before the first one."""
        loaded = self.loaded
        return loaded.version if loaded is not None else None

    def refresh(self) -> bool:
        """See `VersionFollower.refresh`."""
        return self._follower.refresh()

    def following(self, every_s: float = 1.0) -> Following:
        """Follows new versions from a thread while the block runs, with a look at the pointer every so many seconds."""
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
            query_QD: float32, made by the query tower of this very version.
            k: how many.
            exclude: item ids, int64, that each query must not get; more lists are searched and more items fetched,
                and as many lists again as it takes to fill k.
        Returns:
            Item ids int64 (Q, k) and inner products float32 (Q, k), best first; where there are fewer, id -1 and
            score -inf.
        Raises:
            VersionError: no version is live, or the searcher was closed.
            IndexInputError: queries of another width, k below 1, or another number of `exclude` than of queries.
        """
        loaded = self.loaded
        if loaded is None:
            if self._follower.closed:
                raise VersionError(f"the searcher of {self._store.where} was closed")
            raise VersionError(f"no index version is live in {self._store.where}")
        return loaded.search(query_QD, k, exclude)


def _first_kept(
    ids_QF: Int64Array, scores_QF: Float32Array, drop_QF: npt.NDArray[np.bool_], k: int
) -> tuple[Int64Array, Float32Array]:
    order = np.argsort(drop_QF, axis=1, kind="stable")[:, :k]
    kept = ~np.take_along_axis(drop_QF, order, 1)
    ids = np.where(kept, np.take_along_axis(ids_QF, order, 1), -1)
    scores = np.where(kept, np.take_along_axis(scores_QF, order, 1), -np.inf).astype(np.float32)
    missing = k - ids.shape[1]
    if missing > 0:
        ids = np.pad(ids, ((0, 0), (0, missing)), constant_values=-1)
        scores = np.pad(scores, ((0, 0), (0, missing)), constant_values=-np.inf)
    return ids, scores
