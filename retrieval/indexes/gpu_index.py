"""An IVF index on GPUs: built, tuned and searched there, and written in the CPU's form, so any machine can serve it.

Shape letters: N items, Q queries, K results, D columns, L lists.

Written against Faiss 1.15. `make test-gpu` runs it on a GPU, `make test` with a stand-in for Faiss's GPU classes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from retrieval.arrays import Float32Array, Int64Array, UInt8Array
from retrieval.config import IndexConfig
from retrieval.gpu import MOST_RESULTS, gpu_faiss, new_resources, require_gpu, resources
from retrieval.indexes.ivf import IvfBuilder, IvfIndex, NearestLists, build_on
from retrieval.indexes.kinds import GPU_KINDS, without_items
from retrieval.indexes.merging import merge_into_first

_log = logging.getLogger(__name__)


class GpuIvfIndex(IvfIndex):
    """The same index on one GPU, or with its items divided among several.

    Faiss's GPU indexes serve one thread at a time, so searches wait for each other. A search for more than 2,048
    results or in more than 2,048 lists goes to the copy on the CPU. Faiss ignores selectors on a GPU, so excluded items
    must be fetched and removed.
    """

    def __init__(
        self,
        parts: Sequence[Any],
        kind: str,
        scratch: Any,
        on_cpu: IvfIndex | None = None,
        list_N: npt.NDArray[np.int32] | None = None,
    ) -> None:
        super().__init__(
            parts[0], kind, scratch, list_N
        )  # parts use their resources for as long as they exist
        self._parts = list(parts)
        self.size = sum(int(part.ntotal) for part in parts)
        self._on_cpu = on_cpu
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(len(parts), "gpu") if len(parts) > 1 else None

    @staticmethod
    def copy_of(index: IvfIndex, gpus: int | Sequence[int]) -> GpuIvfIndex:
        """A CPU index copied to GPUs; the CPU's is kept for searches that a GPU cannot do.

        Raises:
            IndexDeviceError: Faiss has no such GPU.
        """
        cards = [gpus] if isinstance(gpus, int) else list(gpus)
        for card in cards:
            require_gpu(card)
        scratch = [new_resources() for _ in cards]
        sources = [index._index] if len(cards) == 1 else _divided(index._index, len(cards))
        parts = [
            _on_card(one, card, source) for one, card, source in zip(scratch, cards, sources, strict=True)
        ]
        return GpuIvfIndex(parts, index.kind, scratch, index)

    def on_cpu(self) -> IvfIndex:
        """See IvfIndex: copied once."""
        with self._lock:
            if self._on_cpu is None:
                owners = [gpu_faiss.index_gpu_to_cpu(part) for part in self._parts]
                stored = merge_into_first([faiss.downcast_index(owner) for owner in owners], renumber=False)
                self._on_cpu = IvfIndex(stored, self.kind, owners[0], self._list_N)
            return self._on_cpu

    def list_lengths(self) -> Int64Array:
        """See IvfIndex: a GPU index has no inverted lists to ask."""
        lengths = [[part.getListLength(i) for i in range(self.nlist)] for part in self._parts]
        return np.asarray(np.sum(lengths, axis=0), np.int64)

    def centroids(self) -> Float32Array:
        """See IvfIndex."""
        with self._lock:
            return super().centroids()

    def nearest_lists(self, query_QD: Float32Array, nprobe: int) -> NearestLists:
        """See IvfIndex: chosen on the CPU, for lists that are there."""
        return self.on_cpu().nearest_lists(query_QD, nprobe)

    def search_in(
        self, query_QD: Float32Array, k: int, nearest: NearestLists
    ) -> tuple[Int64Array, Float32Array]:
        """See IvfIndex: a GPU chooses its lists itself."""
        return self.search(query_QD, k, nearest.list_QP.shape[1])

    def lists(self) -> None:
        """See IvfIndex: a GPU's lists are its own."""

    def beside(self, vectors_ND: Float32Array, assigned_N: Int64Array) -> Any:
        """See IvfIndex."""
        return self.on_cpu().beside(vectors_ND, assigned_N)

    def scanned(self, query_QD: Float32Array, nprobe: int) -> float:
        """See IvfIndex."""
        if nprobe > MOST_RESULTS:
            return self.on_cpu().scanned(query_QD, nprobe)
        with self._lock:
            return super().scanned(query_QD, nprobe)

    def search(self, query_QD: Float32Array, k: int, nprobe: int) -> tuple[Int64Array, Float32Array]:
        """See IvfIndex; several GPUs search at once, and their results are merged."""
        if k > MOST_RESULTS or min(nprobe, self.nlist) > MOST_RESULTS:
            return self.on_cpu().search(query_QD, k, nprobe)
        with self._lock:
            if self._pool is None:
                return super().search(query_QD, k, nprobe)
            searches = [self._pool.submit(self._search, part, query_QD, k, nprobe) for part in self._parts]
            found = [search.result() for search in searches]
        rows_QF, scores_QF = (np.concatenate(side, axis=1) for side in zip(*found, strict=True))
        best_QK = np.argsort(np.where(rows_QF >= 0, -scores_QF, np.inf), axis=1, kind="stable")[:, :k]
        return np.take_along_axis(rows_QF, best_QK, 1), np.take_along_axis(scores_QF, best_QK, 1)

    def save(self, path: Path) -> None:
        """See IvfIndex: the file is the CPU's."""
        self.on_cpu().save(path)


class GpuIvfBuilder(IvfBuilder):
    """Like `IvfBuilder`, on the GPUs of the settings: each slice is divided among them.

    Args:
        empty: from `empty_index`.
        config: kind, gpu, gpus.
        items: approximate number that will be added.
    Raises:
        IndexDeviceError: Faiss has no such GPU.
    """

    def __init__(self, empty: UInt8Array, config: IndexConfig, items: int) -> None:
        super().__init__(empty, config.kind)
        cards = config.cards()
        for card in cards:
            require_gpu(card)
        # Several GPUs work at once, and threads must not share scratch memory.
        self._scratch = [resources()] if len(cards) == 1 else [new_resources() for _ in cards]
        self._parts = [
            _on_card(scratch, card, self._stored) for scratch, card in zip(self._scratch, cards, strict=True)
        ]
        for part in self._parts:
            part.reserveMemory(-(-items // len(cards)))  # otherwise lists would grow by copying

    def reserve(self, length_L: Int64Array) -> None:
        """See IvfBuilder; memory is already reserved."""

    def _append(self, vectors_ND: Float32Array, assigned_N: Int64Array) -> None:
        rows_N = np.arange(self.size, self.size + vectors_ND.shape[0])
        shares = (np.array_split(array, len(self._parts)) for array in (vectors_ND, rows_N, assigned_N))
        for part, vectors, rows, assigned in zip(self._parts, *shares, strict=True):
            if rows.shape[0]:
                ids, lists = faiss.swig_ptr(rows), faiss.swig_ptr(assigned)
                part.add_core(rows.shape[0], faiss.swig_ptr(vectors), ids, lists)

    def index(self) -> GpuIvfIndex:
        """See IvfBuilder."""
        return GpuIvfIndex(self._parts, self._kind, self._scratch, None, self._list_of_each())


def searched_on_gpu(kind: str) -> bool:
    """Whether Faiss has this kind on GPUs; if not, logs once per process that it is searched on the CPU."""
    if kind not in GPU_KINDS:
        _say_on_cpu(kind)
    return kind in GPU_KINDS


@cache
def _say_on_cpu(kind: str) -> None:
    _log.warning("Faiss has no index.kind=%s on GPUs: its lists are filled and searched on the CPU", kind)


def builder_for(empty: UInt8Array, config: IndexConfig, items: int) -> IvfBuilder:
    """A builder on the GPU with index.device=cuda, or `auto` if Faiss sees a GPU; otherwise on the CPU.

    Kinds that Faiss does not have on GPUs are always built on the CPU.

    Args:
        empty: from `empty_index`.
        config: kind, device, gpu, gpus.
        items: about how many will be added.
    Raises:
        IndexDeviceError: index.device is cuda and Faiss has no such GPU.
    """
    if config.on_gpu() and searched_on_gpu(config.kind):
        return GpuIvfBuilder(empty, config, items)
    return IvfBuilder(empty, config.kind)


def build_index(
    vectors_ND: Float32Array,
    config: IndexConfig,
    *,
    seed: int,
    warm_start_LD: Float32Array | None = None,
) -> IvfIndex:
    """Like `IvfIndex.build`, on the device that `builder_for` chooses."""
    return build_on(builder_for, vectors_ND, config, seed=seed, warm_start_LD=warm_start_LD)


def _on_card(scratch: Any, card: int, index: Any) -> Any:
    options = gpu_faiss.GpuClonerOptions()
    options.indicesOptions = gpu_faiss.INDICES_32_BIT
    return gpu_faiss.index_cpu_to_gpu(scratch, card, index, options)


def _divided(index: Any, parts: int) -> list[Any]:
    """Divides a CPU index by row number; each part has all centroids."""
    divided = [without_items(index) for _ in range(parts)]
    for number, part in enumerate(divided):
        index.copy_subset_to(part, gpu_faiss.InvertedLists.SUBSET_TYPE_ID_MOD, parts, number)
    return divided
