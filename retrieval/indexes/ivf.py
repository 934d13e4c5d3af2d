"""A Faiss IVF index over item vectors, by inner product.

Shape letters: N items, Q queries, K results, D columns, P probed lists, L lists.

An index is not searched while items are added, and nprobe is passed with each search, so any number of threads can
search it. `IvfBuilder` builds an index or a shard of one in slices, `IvfIndex.build` from a whole matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from retrieval.arrays import Float32Array, Int64Array, UInt8Array
from retrieval.config import IndexConfig
from retrieval.indexes.changed_lists import ChangedLists
from retrieval.indexes.coarse import assign_lists, train_centroids
from retrieval.indexes.kinds import (
    add,
    as_stored,
    codec_sample,
    ivf_of,
    search,
    search_lists,
    searchable,
    trained_empty,
)
from retrieval.indexes.merging import merge_into_first
from retrieval.storage.durable import PRIVATE_FILE, naming

_ITEMS_PER_LIST = 30
_WRITE_BYTES = 1 << 20
# Scanning this few items costs no more than choosing lists, and cannot miss any.
_TOO_FEW_FOR_LISTS = 1000
_NO_LISTS = np.empty(0, np.int32)
_ON_CPU = IndexConfig(device="cpu")
"""Made once: checking settings takes 4 ms."""


class IndexInputError(ValueError):
    """Vectors, ids or queries that cannot be used; says which and why."""


def lists_for(items: int, config: IndexConfig) -> int:
    """index.nlist, or about 4·√N lists of at least some 30 items each, one list for a small catalogue."""
    if config.nlist:
        return max(1, min(config.nlist, items))
    if items < _TOO_FEW_FOR_LISTS:
        return 1
    return min(int(4 * np.sqrt(items)), items // _ITEMS_PER_LIST)


@dataclass(frozen=True)
class NearestLists:
    """The lists with the largest products of centroid and query.

    Attributes:
        list_QP: int64, nearest first.
        closeness_QP: float32, the products.
    """

    list_QP: Int64Array
    closeness_QP: Float32Array

    def of_queries(self, numbers: Int64Array) -> NearestLists:
        """Those of some queries."""
        return NearestLists(self.list_QP[numbers], self.closeness_QP[numbers])


class IvfIndex:
    """Rows of a matrix of item vectors behind inverted lists.

    Results are row numbers, not item ids: Faiss marks a missing result with -1, which is a valid item id here.

    Attributes:
        kind: index.kind.
        nlist: inverted lists.
        size: items.
        dim: columns of a vector.
    """

    def __init__(
        self,
        stored: Any,
        kind: str,
        owner: Any = None,
        list_N: npt.NDArray[np.int32] | None = None,
        *,
        release: bool = False,
    ) -> None:
        """See `build`, `load` and `IvfBuilder`.

        Args:
            stored: the index in the form of files, or one of a GPU.
            kind: index.kind.
            owner: an object that must exist as long as `stored`.
            list_N: int32, the list of each row, if known.
            release: it will only be searched, never saved or merged, which may save memory.
        """
        self._index, self._through = searchable(stored, release)
        self._stored = stored if self._through is stored or not release else None
        self._owner = owner
        self._list_N = list_N
        self.kind = kind
        self.nlist, self.size = int(self._index.nlist), int(self._index.ntotal)
        self.dim = int(self._index.d)

    @staticmethod
    def build(
        vectors_ND: Float32Array,
        config: IndexConfig,
        *,
        seed: int,
        warm_start_LD: Float32Array | None = None,
    ) -> IvfIndex:
        """Train the coarse quantizer on the items and add them.

        Args:
            vectors_ND: float32, C-contiguous.
            config: kind, nlist, iterations, device.
            seed: of k-means.
            warm_start_LD: centroids of an earlier version (index.warm_start_iterations).
        Raises:
            IndexInputError: there are no items, or numbers that are not finite.
            IndexDeviceError: index.device is cuda and Faiss has no GPU.
        """
        return build_on(_cpu_builder, vectors_ND, config, seed=seed, warm_start_LD=warm_start_LD)

    def centroids(self) -> Float32Array:
        """Centroids float32 (L, D)."""
        return np.asarray(self._index.quantizer.reconstruct_n(0, self.nlist), np.float32)

    def scanned(self, query_QD: Float32Array, nprobe: int) -> float:
        """Mean number of items that a search for one of these queries scans."""
        _, list_QP = self._index.quantizer.search(query_QD, max(1, min(nprobe, self.nlist)))
        return float(self.list_lengths()[list_QP].sum(axis=1).mean()) if query_QD.shape[0] else 0.0

    def list_lengths(self) -> Int64Array:
        """Items in each list, int64 (L,)."""
        return np.array([self._index.invlists.list_size(i) for i in range(self.nlist)], np.int64)

    def lists_of(self, rows: Int64Array) -> Int64Array:
        """The list of each row, int64 in the shape of `rows`; 0 for the -1 of a missing result.

        Only for an index that was built here; files do not have it.
        """
        assert self._list_N is not None, "an index that was read from a file does not know its rows' lists"
        return np.where(rows >= 0, self._list_N[rows], 0).astype(np.int64)

    def on_cpu(self) -> IvfIndex:
        """The index as read back from a file of this one."""
        return self

    def search(self, query_QD: Float32Array, k: int, nprobe: int) -> tuple[Int64Array, Float32Array]:
        """Row numbers int64 (Q, K), -1 padded, and inner products float32 (Q, K), best first."""
        if query_QD.ndim != 2 or query_QD.shape[1] != self.dim:
            raise IndexInputError(f"queries have shape {query_QD.shape}, the index has {self.dim} columns")
        if k < 1:
            raise IndexInputError(f"k must be at least 1, got {k}")
        return self._search(self._through, query_QD, k, nprobe)

    def nearest_lists(self, query_QD: Float32Array, nprobe: int) -> NearestLists:
        """The lists in which `search` looks for each query."""
        queries = np.ascontiguousarray(query_QD, np.float32)
        closeness, lists = self._index.quantizer.search(queries, max(1, min(nprobe, self.nlist)))
        return NearestLists(lists, closeness)

    def search_in(
        self, query_QD: Float32Array, k: int, nearest: NearestLists
    ) -> tuple[Int64Array, Float32Array]:
        """Like `search`, in lists of `nearest_lists`; packed lists choose theirs again."""
        if self._through is not self._index:
            return self.search(query_QD, k, nearest.list_QP.shape[1])
        queries = np.ascontiguousarray(query_QD, np.float32)
        return search_lists(self._index, queries, k, nearest.list_QP, nearest.closeness_QP)

    def lists(self) -> ChangedLists | None:
        """Its lists, to be changed in views; None for packed ones."""
        return ChangedLists.of(self._index) if self._through is self._index else None

    def as_stored(self, vectors_ND: Float32Array) -> Float32Array | None:
        """Vectors as searches compare them, float32 (N, D): after encoding; None for packed lists."""
        return as_stored(self._index, vectors_ND) if self._through is self._index else None

    def assigned(self, vectors_ND: Float32Array) -> Int64Array:
        """The list that each vector belongs to, int64 (N,), as `assign_lists` assigns it."""
        return assign_lists(np.ascontiguousarray(vectors_ND), self.centroids(), _ON_CPU)

    def beside(self, vectors_ND: Float32Array, assigned_N: Int64Array) -> Any:
        """Vectors float32 (N, D) in lists with the same centroids, as a Faiss index of the CPU for `search_lists`."""
        ivf = faiss.IndexIVFFlat(self._index.quantizer, self.dim, self.nlist, faiss.METRIC_INNER_PRODUCT)
        vectors, assigned = np.ascontiguousarray(vectors_ND), np.ascontiguousarray(assigned_N)
        add(ivf, vectors, assigned)
        return ivf

    def _search(
        self, through: Any, query_QD: Float32Array, k: int, nprobe: int
    ) -> tuple[Int64Array, Float32Array]:
        queries = np.ascontiguousarray(query_QD, np.float32)
        rows, scores = search(through, queries, k, max(1, min(nprobe, self.nlist)))
        return np.asarray(rows, np.int64), np.asarray(scores, np.float32)

    def save(self, path: Path) -> None:
        """Write it to a local file that only its owner can read.

        Raises:
            OSError: it could not be written completely. Faiss's own file writer only prints errors when it closes the
                file, so on a full disk a truncated index would be committed.
        """
        path.touch(PRIVATE_FILE)
        with naming(path), path.open("wb") as file:
            writer = faiss.PyCallbackIOWriter(file.write, _WRITE_BYTES)  # type: ignore[attr-defined]
            assert self._stored is not None, "an index that was loaded to be searched is not saved"
            faiss.write_index(self._stored, writer)

    @staticmethod
    def load(path: Path | Sequence[Path], kind: str, *, mapped: bool = False) -> IvfIndex:
        """Read files of `save`: one file, or all shards of an index, with row numbers continuing from shard to shard.

        Args:
            path: of the file or files.
            kind: index.kind.
            mapped: leave the lists of one file on the disk, and read from there during searches.
        Raises:
            ValueError: the shards are not of one index.
        """
        paths = [path] if isinstance(path, Path) else path
        # Lists of shards are copied from their files, so memory only holds the merged ones.
        flags = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY if mapped or len(paths) > 1 else 0
        owners = [faiss.read_index(str(one), flags) for one in paths]
        # The downcast is a view; the memory is freed with the object that was read.
        stored = merge_into_first([faiss.downcast_index(owner) for owner in owners])
        return IvfIndex(stored, kind, owners[0], release=True)


def empty_index(config: IndexConfig, centroid_LD: Float32Array, sample_SD: Float32Array) -> UInt8Array:
    """An index without items as bytes, uint8 (B,); shards that are built from the same bytes can be merged.

    Args:
        config: kind and its settings.
        centroid_LD: float32, see `train_centroids`.
        sample_SD: float32, items to train the codes on; at least one, and more than about 65,536 do not help.
    """
    return np.asarray(faiss.serialize_index(trained_empty(centroid_LD, sample_SD, config)), np.uint8)


class IvfBuilder:
    """Adds items to an index, or to one shard of it, in slices.

    Args:
        empty: from `empty_index`.
        kind: index.kind, of the same settings.
    Attributes:
        size: items so far.
    """

    def __init__(self, empty: UInt8Array, kind: str) -> None:
        self._owner = faiss.deserialize_index(empty)
        self._stored = faiss.downcast_index(self._owner)
        self._kind = kind
        self._lists: list[npt.NDArray[np.int32]] = []
        self.size = 0

    def reserve(self, length_L: Int64Array) -> None:
        """Make room for a number of items in each list, int64 (L,).

        Otherwise lists grow by doubling, which takes half as much memory again.
        """
        lists = ivf_of(self._stored).invlists
        for number, length in enumerate(length_L.tolist()):
            lists.resize(number, length)
            lists.resize(number, 0)  # keeps the reserved memory

    def add(self, vectors_ND: Float32Array, assigned_N: Int64Array) -> None:
        """Append items after the existing rows.

        Args:
            vectors_ND: float32, finite.
            assigned_N: int64, the list of each; see `assign_lists`.
        """
        vectors, assigned = np.ascontiguousarray(vectors_ND), np.ascontiguousarray(assigned_N)
        self._append(vectors, assigned)
        self._lists.append(assigned.astype(np.int32))
        self.size += vectors.shape[0]

    def _append(self, vectors_ND: Float32Array, assigned_N: Int64Array) -> None:
        add(self._stored, vectors_ND, assigned_N)

    def index(self) -> IvfIndex:
        """The index; nothing may be added afterwards."""
        return IvfIndex(self._stored, self._kind, self._owner, self._list_of_each())

    def _list_of_each(self) -> npt.NDArray[np.int32]:
        return np.concatenate([_NO_LISTS, *self._lists])


def build_on(
    builder_for: Callable[[UInt8Array, IndexConfig, int], IvfBuilder],
    vectors_ND: Float32Array,
    config: IndexConfig,
    *,
    seed: int,
    warm_start_LD: Float32Array | None = None,
) -> IvfIndex:
    """Like `IvfIndex.build`, with a builder created from an empty index, the settings and a number of items."""
    require_usable(vectors_ND)
    items = vectors_ND.shape[0]
    lists = lists_for(items, config)
    centroids = train_centroids(vectors_ND, lists, config, seed=seed, warm_start_LD=warm_start_LD)
    empty = empty_index(config, centroids, codec_sample(vectors_ND, config.kind))
    builder = builder_for(empty, config, items)
    builder.add(vectors_ND, assign_lists(vectors_ND, centroids, config))
    return builder.index()


def _cpu_builder(empty: UInt8Array, config: IndexConfig, items: int) -> IvfBuilder:
    return IvfBuilder(empty, config.kind)


def merged(shards: Sequence[IvfIndex]) -> IvfIndex:
    """One index of all items, with row numbers continuing from shard to shard; the first shard becomes part of it.

    Args:
        shards: built from the same `empty_index`, not loaded from files (`IvfIndex.load` takes several of these).
    Raises:
        ValueError: the shards are not of one index.
    """
    first = shards[0]
    lists = [shard._list_N for shard in shards if shard._list_N is not None]
    stored = merge_into_first([shard._stored for shard in shards])
    return IvfIndex(stored, first.kind, first._owner, np.concatenate(lists) if lists else None)


def require_usable(vectors_ND: Float32Array) -> None:
    """Check that an index can be built of these vectors.

    Raises:
        IndexInputError: there are no items, or numbers that are not finite.
    """
    if vectors_ND.shape[0] == 0:
        raise IndexInputError("there are no items to index")
    bad = int((~finite_rows(vectors_ND)).sum())
    if bad:
        raise IndexInputError(f"{bad} of {vectors_ND.shape[0]} item vectors are not finite")


def finite_rows(vectors_ND: Float32Array) -> npt.NDArray[np.bool_]:
    """Whether each row has only finite numbers, bool (N,)."""
    return np.asarray(np.isfinite(vectors_ND).all(axis=1), np.bool_)
