"""An IVF index on a GPU: built, tuned and searched there, written as the CPU's, so that a version serves anywhere.

Shape letters: N items, Q queries, K results, D columns, L lists.

Written against Faiss 1.15. `make test-gpu` runs it on a GPU, `make test` with a stand-in for Faiss's GPU classes.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from retrieval.arrays import Float32Array, Int64Array
from retrieval.config import IndexConfig
from retrieval.gpu import MOST_RESULTS, gpu_faiss, new_resources, require_gpu, resources
from retrieval.indexes.coarse import assign_lists, train_centroids
from retrieval.indexes.ivf import CODES, IvfIndex, lists_for, require_usable, sample_for_codes


class GpuIvfIndex(IvfIndex):
    """The same index on a GPU. Faiss's GPU indexes serve one thread at a time, so searches wait for each other.

    A search for more than 2,048 results or in more than 2,048 lists goes to the copy on the CPU. Faiss ignores
    selectors on a GPU: what is excluded must be fetched and left out.
    """

    def __init__(
        self,
        index: Any,
        kind: str,
        scratch: Any,
        on_cpu: IvfIndex | None = None,
        list_N: npt.NDArray[np.int32] | None = None,
    ) -> None:
        super().__init__(index, kind, scratch, list_N)  # the index uses its resources for as long as it lives
        self._on_cpu = on_cpu
        self._lock = threading.Lock()

    @staticmethod
    def build(
        vectors_ND: Float32Array,
        config: IndexConfig,
        *,
        seed: int,
        warm_start_LD: Float32Array | None = None,
    ) -> GpuIvfIndex:
        """As `IvfIndex.build`, on GPU `index.gpu`.

        Raises:
            IndexInputError: there are no items, or numbers that are not finite.
            IndexDeviceError: Faiss has no such GPU.
        """
        require_usable(vectors_ND)
        require_gpu(config.gpu)
        items, dim = vectors_ND.shape
        lists = lists_for(items, config)
        centroids = train_centroids(vectors_ND, lists, config, seed=seed, warm_start_LD=warm_start_LD)
        assigned = assign_lists(vectors_ND, centroids, config)
        scratch = resources()
        index = _empty(scratch, centroids, dim, lists, config)
        index.train(sample_for_codes(vectors_ND, config.kind))
        index.reserveMemory(items)  # or its lists would grow by copies
        numbers = np.arange(items, dtype=np.int64)
        ids, lists_of = faiss.swig_ptr(numbers), faiss.swig_ptr(assigned)
        index.add_core(items, faiss.swig_ptr(vectors_ND), ids, lists_of)
        return GpuIvfIndex(index, config.kind, scratch, None, assigned.astype(np.int32))

    @staticmethod
    def copy_of(index: IvfIndex, gpu: int) -> GpuIvfIndex:
        """An index of the CPU, copied to a GPU; the CPU's stays for searches that a GPU cannot do.

        Raises:
            IndexDeviceError: Faiss has no such GPU.
        """
        require_gpu(gpu)
        options = gpu_faiss.GpuClonerOptions()
        options.indicesOptions = gpu_faiss.INDICES_32_BIT
        scratch = new_resources()
        copied = gpu_faiss.index_cpu_to_gpu(scratch, gpu, index._index, options)
        return GpuIvfIndex(copied, index.kind, scratch, index)

    def on_cpu(self) -> IvfIndex:
        """See IvfIndex: copied once."""
        with self._lock:
            if self._on_cpu is None:
                owner = gpu_faiss.index_gpu_to_cpu(self._index)
                self._on_cpu = IvfIndex(faiss.downcast_index(owner), self.kind, owner)
            return self._on_cpu

    def list_lengths(self) -> Int64Array:
        """See IvfIndex: a GPU index has no inverted lists to ask."""
        return np.array([self._index.getListLength(i) for i in range(self.nlist)], np.int64)

    def centroids(self) -> Float32Array:
        """See IvfIndex."""
        with self._lock:
            return super().centroids()

    def scanned(self, query_QD: Float32Array, nprobe: int) -> float:
        """See IvfIndex."""
        if nprobe > MOST_RESULTS:
            return self.on_cpu().scanned(query_QD, nprobe)
        with self._lock:
            return super().scanned(query_QD, nprobe)

    def search(self, query_QD: Float32Array, k: int, nprobe: int) -> tuple[Int64Array, Float32Array]:
        """See IvfIndex."""
        if k > MOST_RESULTS or min(nprobe, self.nlist) > MOST_RESULTS:
            return self.on_cpu().search(query_QD, k, nprobe)
        with self._lock:
            return super().search(query_QD, k, nprobe)

    def save(self, path: Path) -> None:
        """See IvfIndex: the file is the CPU's."""
        self.on_cpu().save(path)


def build_index(
    vectors_ND: Float32Array,
    config: IndexConfig,
    *,
    seed: int,
    warm_start_LD: Float32Array | None = None,
) -> IvfIndex:
    """On the GPU with index.device=cuda, and with `auto` where Faiss sees one; else on the CPU. As `IvfIndex.build`."""
    builder = GpuIvfIndex if config.on_gpu() else IvfIndex
    return builder.build(vectors_ND, config, seed=seed, warm_start_LD=warm_start_LD)


def _empty(scratch: Any, centroid_LD: Float32Array, dim: int, lists: int, config: IndexConfig) -> Any:
    flat_settings = gpu_faiss.GpuIndexFlatConfig()
    flat_settings.device = config.gpu
    quantizer = gpu_faiss.GpuIndexFlatIP(scratch, dim, flat_settings)
    quantizer.add(centroid_LD)
    by_inner_product = faiss.METRIC_INNER_PRODUCT
    flat = config.kind == "ivf_flat"
    settings = gpu_faiss.GpuIndexIVFFlatConfig() if flat else gpu_faiss.GpuIndexIVFScalarQuantizerConfig()
    settings.device = config.gpu
    settings.indicesOptions = gpu_faiss.INDICES_32_BIT
    if flat:
        index = gpu_faiss.GpuIndexIVFFlat(scratch, quantizer, dim, lists, by_inner_product, settings)
    else:
        codes = CODES[config.kind]
        index = gpu_faiss.GpuIndexIVFScalarQuantizer(
            scratch, quantizer, dim, lists, codes, by_inner_product, False, settings
        )
    # The index points to it and does not own it; Faiss lets no other attribute be added.
    index.referenced_objects = [*getattr(index, "referenced_objects", ()), quantizer]
    return index
