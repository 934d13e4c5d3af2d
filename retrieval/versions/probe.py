"""Whether searches of a version will find what a delta brings, without the version's lists in memory.

Shape letters: S sampled items, D columns, L lists.

An item is found by its own vector if its list is among those that are searched, and its code scores like the vector
itself: then it is among the best, or as many others are at least as good. Codes that are coarser than that, and packed
ones, are searched for in the version, which is loaded when the first of them comes.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from retrieval.arrays import Float32Array, Int64Array
from retrieval.deltas.gates import ROUNDING, Bools, searches_find
from retrieval.indexes.coarse import ListAssignment
from retrieval.indexes.ivf import IvfIndex
from retrieval.versions.searcher import LoadedVersion
from retrieval.versions.shards import shards_of
from retrieval.versions.store import Version

_NONE = np.empty(0, np.int64)


class DeltaProbe:
    """For the writer of a version's deltas; its shards stay on the disk.

    Args:
        version: verified.
    Raises:
        VersionError, OSError: it cannot be read.
    """

    def __init__(self, version: Version) -> None:
        self._version = version
        kind = str(version.manifest["kind"])
        files = [version.file(shard.index) for shard in shards_of(version)]
        # A shard alone: centroids and codes are the same in all of them.
        shards = [IvfIndex.load(file, kind, mapped=True) for file in files] if kind != "ivf_pqfs" else []
        self._index = shards[0] if shards else self._loaded.index
        self._nprobe = int(version.manifest["nprobe"])
        self._lists = ListAssignment(self._index.centroids())
        self.list_lengths: Int64Array = np.sum(
            [one.list_lengths() for one in shards or [self._index]], axis=0
        )
        """int64 (L,), of the version."""

    def lists_of(self, vectors_ND: Float32Array) -> Int64Array:
        """The list that each vector belongs to, int64 (N,)."""
        return self._lists.of(vectors_ND)

    def finds(self, item_ids: Int64Array, vectors_SD: Float32Array) -> Bools:
        """Whether a search for each item's own vector finds it once the delta is applied, bool (S,)."""
        found = self._certain(np.ascontiguousarray(vectors_SD))
        rest = np.flatnonzero(~found)
        if rest.shape[0]:
            view = self._loaded.with_items(item_ids[rest], vectors_SD[rest], _NONE)
            found[rest] = searches_find(view, item_ids[rest], vectors_SD[rest])
        return found

    def _certain(self, vectors_SD: Float32Array) -> Bools:
        stored_SD = self._index.as_stored(vectors_SD)
        if stored_SD is None:
            return np.zeros(vectors_SD.shape[0], np.bool_)
        searched = self._index.nearest_lists(vectors_SD, self._nprobe).list_QP
        own, stored = (np.einsum("sd,sd->s", vectors_SD, other) for other in (vectors_SD, stored_SD))
        in_searched_S = (searched == self.lists_of(vectors_SD)[:, None]).any(axis=1)
        certain: Bools = in_searched_S & np.isfinite(stored) & (stored >= own * (1 - ROUNDING))
        return certain

    @cached_property
    def _loaded(self) -> LoadedVersion:
        return LoadedVersion.load(self._version)
