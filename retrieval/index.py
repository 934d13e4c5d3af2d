"""A Faiss IVF index over item vectors, by inner product.

Shape letters: N items, Q queries, K results, D columns.

Never searched while it is added to, and nprobe travels with each search, so an index is read by any number of threads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from retrieval.config import IndexConfig

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

_ITEMS_PER_LIST = 30


class IndexInputError(ValueError):
    """Vectors or ids that cannot be indexed; says which and why."""


def lists_for(items: int, config: IndexConfig) -> int:
    """index.nlist, or about 4·√N lists of at least some 30 items each."""
    wanted = config.nlist or int(4 * np.sqrt(items))
    return max(1, min(wanted, items // _ITEMS_PER_LIST if not config.nlist else items))


class IvfIndex:
    """Rows of a matrix of item vectors behind inverted lists.

    Results are row numbers, not item ids: Faiss marks a missing result with -1, which is an id like any other to us.
    """

    def __init__(self, index: Any, kind: str) -> None:
        self._index = index
        self.kind = kind

    @staticmethod
    def build(vectors_ND: Float32Array, config: IndexConfig, *, seed: int) -> IvfIndex:
        """Train the coarse quantizer on the items and add them.

        Args:
            vectors_ND: float32; unit vectors get spherical k-means, others plain k-means.
            config: kind, nlist, device.
            seed: of k-means.
        Raises:
            IndexInputError: there are no items.
        """
        if vectors_ND.shape[0] == 0:
            raise IndexInputError("there are no items to index")
        items, dim = vectors_ND.shape
        nlist = lists_for(items, config)
        quantizer = faiss.IndexFlatIP(dim)
        index = _empty_ivf(quantizer, dim, nlist, config.kind)
        index.cp.seed = seed
        index.cp.niter = config.build_iterations
        index.cp.min_points_per_centroid = 1
        index.cp.spherical = bool(np.allclose(np.einsum("nd,nd->n", vectors_ND, vectors_ND), 1.0, atol=1e-3))
        on_gpu = config.device != "cpu" and _gpus() > 0
        worker: Any = faiss.index_cpu_to_all_gpus(index) if on_gpu else index
        worker.train(vectors_ND)
        worker.add(vectors_ND)
        return IvfIndex(faiss.index_gpu_to_cpu(worker) if on_gpu else index, config.kind)

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

    @property
    def imbalance(self) -> float:
        """Faiss' imbalance factor: 1 with lists of equal length, nlist with everything in one."""
        return float(self._index.invlists.imbalance_factor())

    def search(self, query_QD: Float32Array, k: int, nprobe: int) -> tuple[Int64Array, Float32Array]:
        """Row numbers int64 (Q, K), -1 padded, and inner products float32 (Q, K), best first."""
        if query_QD.shape[1] != self.dim:
            raise IndexInputError(f"queries have {query_QD.shape[1]} columns, the index has {self.dim}")
        probes = faiss.SearchParametersIVF()
        probes.nprobe = max(1, min(nprobe, self.nlist))
        scores, rows = self._index.search(np.ascontiguousarray(query_QD, np.float32), k, params=probes)
        return np.asarray(rows, np.int64), np.asarray(scores, np.float32)

    def save(self, path: Path) -> None:
        """Write it to a local file."""
        faiss.write_index(self._index, str(path))

    @staticmethod
    def load(path: Path, kind: str) -> IvfIndex:
        """Read what `save` wrote."""
        return IvfIndex(faiss.downcast_index(faiss.read_index(str(path))), kind)


def _empty_ivf(quantizer: faiss.Index, dim: int, nlist: int, kind: str) -> faiss.IndexIVF:
    if kind == "ivf_flat":
        return faiss.IndexIVFFlat(quantizer, dim, nlist, faiss.METRIC_INNER_PRODUCT)
    half = faiss.ScalarQuantizer.QT_fp16
    return faiss.IndexIVFScalarQuantizer(quantizer, dim, nlist, half, faiss.METRIC_INNER_PRODUCT, False)


def _gpus() -> int:
    return int(faiss.get_num_gpus()) if hasattr(faiss, "get_num_gpus") else 0


def check_items(item_ids: Int64Array, vectors_ND: Float32Array) -> None:
    """Refuse what no index should hold.

    Raises:
        IndexInputError: ids twice, another number of ids than vectors, or numbers that are not finite.
    """
    if item_ids.shape[0] != vectors_ND.shape[0]:
        raise IndexInputError(f"{item_ids.shape[0]} item ids for {vectors_ND.shape[0]} vectors")
    finite = np.isfinite(vectors_ND).all(axis=1)
    if not finite.all():
        first = item_ids[~finite][0]
        raise IndexInputError(f"{int((~finite).sum())} item vectors are not finite, first of item {first}")
    unique, counts = np.unique(item_ids, return_counts=True)
    if unique.shape[0] != item_ids.shape[0]:
        raise IndexInputError(
            f"item {unique[counts > 1][0]} has {counts.max()} vectors; ids must be distinct"
        )
