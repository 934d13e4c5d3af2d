"""A Faiss IVF index over item vectors, by inner product.

Shape letters: N items, Q queries, K results, D columns, P probed lists, L lists.

Never searched while it is added to, and nprobe travels with each search, so an index is read by any number of threads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from retrieval.arrays import Float32Array, Int64Array
from retrieval.config import IndexConfig
from retrieval.indexes.coarse import assign_lists, train_centroids
from retrieval.storage.durable import PRIVATE_FILE

_ITEMS_PER_LIST = 30
_WRITE_BYTES = 1 << 20
# A scan of so few costs no more than choosing lists does, and cannot miss anything.
_TOO_FEW_FOR_LISTS = 1000
_MOST_FOR_CODES = 65_536

CODES = {"ivf_fp16": faiss.ScalarQuantizer.QT_fp16, "ivf_sq8": faiss.ScalarQuantizer.QT_8bit}
"""How Faiss stores a number, of the kinds that do not keep it."""


class IndexInputError(ValueError):
    """Vectors, ids or queries that cannot be used; says which and why."""


def lists_for(items: int, config: IndexConfig) -> int:
    """index.nlist, or about 4·√N lists of at least some 30 items each, one list for a small catalogue."""
    if config.nlist:
        return max(1, min(config.nlist, items))
    if items < _TOO_FEW_FOR_LISTS:
        return 1
    return min(int(4 * np.sqrt(items)), items // _ITEMS_PER_LIST)


class IvfIndex:
    """Rows of a matrix of item vectors behind inverted lists.

    Results are row numbers, not item ids: Faiss marks a missing result with -1, which is an id like any other to us.
    """

    def __init__(
        self, index: Any, kind: str, owner: Any = None, list_N: npt.NDArray[np.int32] | None = None
    ) -> None:
        self._index = index
        self._owner = owner
        self._list_N = list_N
        self.kind = kind

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
        require_usable(vectors_ND)
        items, dim = vectors_ND.shape
        lists = lists_for(items, config)
        centroids = train_centroids(vectors_ND, lists, config, seed=seed, warm_start_LD=warm_start_LD)
        quantizer = faiss.IndexFlatIP(dim)
        quantizer.add(centroids)
        index = _empty_ivf(quantizer, dim, lists, config.kind)
        index.train(sample_for_codes(vectors_ND, config.kind))
        assigned = assign_lists(vectors_ND, centroids, config)
        index.add_core(items, faiss.swig_ptr(vectors_ND), None, faiss.swig_ptr(assigned))
        return IvfIndex(index, config.kind, None, assigned.astype(np.int32))

    @property
    def nlist(self) -> int:
        """Inverted lists."""
        return int(self._index.nlist)

    @property
    def size(self) -> int:
        """Items."""
        return int(self._index.ntotal)

    @property
    def dim(self) -> int:
        """Columns of a vector."""
        return int(self._index.d)

    def centroids(self) -> Float32Array:
        """Centroids float32 (L, D)."""
        return np.asarray(self._index.quantizer.reconstruct_n(0, self.nlist), np.float32)

    def scanned(self, query_QD: Float32Array, nprobe: int) -> float:
        """Items that a search of one of these queries compares with, on average."""
        _, list_QP = self._index.quantizer.search(query_QD, max(1, min(nprobe, self.nlist)))
        return float(self.list_lengths()[list_QP].sum(axis=1).mean()) if query_QD.shape[0] else 0.0

    def list_lengths(self) -> Int64Array:
        """Items in each list, int64 (L,)."""
        return np.array([self._index.invlists.list_size(i) for i in range(self.nlist)], np.int64)

    def lists_of(self, rows: Int64Array) -> Int64Array:
        """The list of each row, int64 in the shape of `rows`; 0 for the -1 of a missing result.

        Only of an index as it was built: a file does not say it.
        """
        assert self._list_N is not None, "an index that was read from a file does not know its rows' lists"
        return np.where(rows >= 0, self._list_N[rows], 0).astype(np.int64)

    def on_cpu(self) -> IvfIndex:
        """The index that a file of this one gives."""
        return self

    def search(self, query_QD: Float32Array, k: int, nprobe: int) -> tuple[Int64Array, Float32Array]:
        """Row numbers int64 (Q, K), -1 padded, and inner products float32 (Q, K), best first."""
        if query_QD.ndim != 2 or query_QD.shape[1] != self.dim:
            raise IndexInputError(f"queries have shape {query_QD.shape}, the index has {self.dim} columns")
        if k < 1:
            raise IndexInputError(f"k must be at least 1, got {k}")
        probes = faiss.SearchParametersIVF()
        probes.nprobe = max(1, min(nprobe, self.nlist))
        scores, rows = self._index.search(np.ascontiguousarray(query_QD, np.float32), k, params=probes)
        return np.asarray(rows, np.int64), np.asarray(scores, np.float32)

    def save(self, path: Path) -> None:
        """Write it to a local file that only its owner can read.

        Raises:
            OSError: it could not be written whole. Faiss's own file writer only prints what goes wrong when it closes
                the file, so a full disk would leave an index cut short, sealed as if it were whole.
        """
        path.touch(PRIVATE_FILE)
        with path.open("wb") as file:
            writer = faiss.PyCallbackIOWriter(file.write, _WRITE_BYTES)  # type: ignore[attr-defined]
            faiss.write_index(self._index, writer)

    @staticmethod
    def load(path: Path, kind: str) -> IvfIndex:
        """Read what `save` wrote."""
        owner = faiss.read_index(str(path))
        # The downcast is a view: the memory goes with the object that was read.
        return IvfIndex(faiss.downcast_index(owner), kind, owner)


def require_usable(vectors_ND: Float32Array) -> None:
    """See that an index can be built of these.

    Raises:
        IndexInputError: there are no items, or numbers that are not finite.
    """
    if vectors_ND.shape[0] == 0:
        raise IndexInputError("there are no items to index")
    bad = int((~finite_rows(vectors_ND)).sum())
    if bad:
        raise IndexInputError(f"{bad} of {vectors_ND.shape[0]} item vectors are not finite")


def finite_rows(vectors_ND: Float32Array) -> npt.NDArray[np.bool_]:
    """Which rows hold only finite numbers, bool (N,)."""
    return np.asarray(np.isfinite(vectors_ND).all(axis=1), np.bool_)


def sample_for_codes(vectors_ND: Float32Array, kind: str) -> Float32Array:
    """What to train an index with whose coarse quantizer is full: 8 bits need the range of each column."""
    step = max(1, vectors_ND.shape[0] // _MOST_FOR_CODES) if kind == "ivf_sq8" else vectors_ND.shape[0]
    return np.ascontiguousarray(vectors_ND[::step])


def _empty_ivf(quantizer: faiss.Index, dim: int, nlist: int, kind: str) -> faiss.IndexIVF:
    if kind == "ivf_flat":
        return faiss.IndexIVFFlat(quantizer, dim, nlist, faiss.METRIC_INNER_PRODUCT)
    codes = CODES[kind]
    return faiss.IndexIVFScalarQuantizer(quantizer, dim, nlist, codes, faiss.METRIC_INNER_PRODUCT, False)
