"""Searches the live version and follows it when another one is promoted.

Shape letters: Q queries, K results, N items, D columns.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from retrieval.index import IvfIndex
from retrieval.version import Version, VersionError, VersionStore

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

INDEX_FILE = "index.faiss"
ITEMS_FILE = "items.arrow"


@dataclass(frozen=True)
class LoadedVersion:
    """A version in memory; immutable, so any number of threads may search it."""

    version: Version
    index: IvfIndex
    item_ids: Int64Array

    @staticmethod
    def load(version: Version) -> LoadedVersion:
        """Read a version's index and ids."""
        index = IvfIndex.load(version.path / INDEX_FILE, str(version.manifest["kind"]))
        table = pa.ipc.open_file(pa.py_buffer((version.path / ITEMS_FILE).read_bytes())).read_all()
        return LoadedVersion(version, index, table["item_id"].to_numpy())

    def search(
        self, query_QD: Float32Array, k: int, exclude: Sequence[Int64Array] | None = None
    ) -> tuple[Int64Array, Float32Array]:
        """As `Searcher.search`."""
        longest = max((len(ids) for ids in exclude), default=0) if exclude is not None else 0
        fetched = min(k + longest, self.index.size)
        rows, scores = self.index.search(query_QD, fetched, int(self.version.manifest["nprobe"]))
        ids = np.where(rows >= 0, self.item_ids[np.maximum(rows, 0)], -1)
        drop = rows < 0
        if exclude is not None:
            for q, unwanted in enumerate(exclude):
                drop[q] |= np.isin(ids[q], unwanted)
        return _first_kept(ids, scores, drop, k)


class Searcher:
    """The live version of a store; `refresh` swaps it, a search in progress keeps the one it began with."""

    def __init__(self, root: Path) -> None:
        self._store = VersionStore(root)
        self._swap = threading.Lock()
        self._loaded: LoadedVersion | None = None
        self.refresh()

    @property
    def version(self) -> Version | None:
        """The version that is searched now; None before the first one."""
        loaded = self._loaded
        return loaded.version if loaded is not None else None

    def refresh(self) -> bool:
        """Load the live version if it is not the one in memory; whether it changed."""
        with self._swap:
            live = self._store.current()
            if live is None or (self._loaded is not None and self._loaded.version.name == live.name):
                return False
            self._loaded = LoadedVersion.load(live)
            return True

    def search(
        self, query_QD: Float32Array, k: int, exclude: Sequence[Int64Array] | None = None
    ) -> tuple[Int64Array, Float32Array]:
        """The best items of each query.

        Args:
            query_QD: float32, made by the query tower of this very version.
            k: how many.
            exclude: item ids, int64, that each query must not get; as many more are fetched.
        Returns:
            Item ids int64 (Q, k) and inner products float32 (Q, k), best first; where there are fewer, id -1 and
            score -inf.
        Raises:
            VersionError: no version is live.
        """
        loaded = self._loaded
        if loaded is None:
            raise VersionError(f"no index version is live in {self._store.root}")
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
