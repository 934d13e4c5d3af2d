"""Faiss's GPU classes on the CPU, with their limits: what the code calls, in what order, and what it must not ask."""

import threading
from types import SimpleNamespace
from typing import Any, ClassVar

import faiss
import pytest


class Resources:
    """Counts itself: each takes memory of the GPU."""

    made: ClassVar[list["Resources"]] = []

    def __init__(self):
        self.scratch = self.pinned = None
        Resources.made.append(self)

    def setTempMemory(self, size):
        self.scratch = size

    def setPinnedMemory(self, size):
        self.pinned = size


class GpuFlat:
    def __init__(self, resources, dim, config=None, inner=None):
        self.inner, self.gpu = inner or faiss.IndexFlatIP(dim), config.device if config else 0

    def __getattr__(self, name):
        return getattr(self.inner, name)


class GpuIvf:
    """No `invlists`, no selectors, at most 2,048 results and lists, no file, and no attributes of the caller's."""

    __slots__ = ("gpu", "inner", "owner", "quantizer", "reserved", "searching")

    def __init__(self, index, gpu):
        if not isinstance(index, faiss.IndexIVFFlat | faiss.IndexIVFScalarQuantizer):
            raise RuntimeError(f"Faiss has no {type(index).__name__} on GPUs")
        owner = faiss.clone_index(index)
        inner: Any = faiss.downcast_index(owner)
        self.owner, self.inner, self.gpu, self.reserved = owner, inner, gpu, 0
        self.quantizer, self.searching = GpuFlat(None, index.d, None, inner.quantizer), threading.Lock()

    nlist = property(lambda self: self.inner.nlist)
    ntotal = property(lambda self: self.inner.ntotal)
    d = property(lambda self: self.inner.d)

    def reserveMemory(self, items):
        self.reserved = items

    def add_core(self, count, vectors, ids, lists):
        assert ids is not None, "Faiss on a GPU wants ids"
        assert self.reserved >= self.inner.ntotal + count
        self.inner.add_core(count, vectors, ids, lists)

    def getListLength(self, number):
        return self.inner.invlists.list_size(number)

    def search(self, queries, k, params=None):
        if k > 2048 or (params is not None and params.nprobe > 2048):
            raise RuntimeError("GPU index only supports min/max-K selection up to 2048")
        assert self.searching.acquire(blocking=False), "a GPU index serves one thread at a time"
        try:
            return self.inner.search(queries, k, params=params)
        finally:
            self.searching.release()


def _to_gpu(resources, gpu, index, options=None):
    if not hasattr(index, "nlist"):
        return GpuFlat(resources, index.d, SimpleNamespace(device=gpu), index)
    assert options.indicesOptions == faiss.INDICES_32_BIT  # type: ignore[attr-defined]
    return GpuIvf(index, gpu)


def _to_gpus(resources, index, co=None, gpus=None):
    """Faiss's own replicas, which divide the vectors of a search."""
    assert len({id(one) for one in resources}) == len(gpus), "cards that work at once share no scratch memory"
    replicas = faiss.IndexReplicas(index.d)
    copies = [faiss.clone_index(index) for _ in gpus]
    for gpu, copy in zip(gpus, copies, strict=True):
        replicas.addIndex(copy)
        copied_to.append(gpu)
    replicas.referenced_objects = copies  # type: ignore[attr-defined]
    return replicas


copied_to: list[int] = []
"""Cards that got a copy of some centroids."""
scanned_by: list[tuple[int, int]] = []
"""Cards that answered exactly, and the number of queries."""


def _knn(resources, queries, vectors, k, metric, device, vectorsMemoryLimit):
    scanned_by.append((device, queries.shape[0]))
    return faiss.knn(queries, vectors, k, metric=metric)


def install(monkeypatch: pytest.MonkeyPatch, gpus: int = 1) -> None:
    """Let `faiss` have so many GPUs."""
    Resources.made = []
    copied_to.clear()
    scanned_by.clear()
    settings = lambda: SimpleNamespace(device=0, indicesOptions=None)  # noqa: E731
    for name, value in {
        "get_num_gpus": lambda: gpus,
        "StandardGpuResources": Resources,
        "GpuClonerOptions": settings,
        "INDICES_32_BIT": 7,
        "index_cpu_to_gpu": _to_gpu,
        "index_cpu_to_gpu_multiple_py": _to_gpus,
        "index_gpu_to_cpu": lambda index: faiss.clone_index(index.inner),
        "knn_gpu": _knn,
    }.items():
        monkeypatch.setattr(faiss, name, value, raising=False)
    train = faiss.Clustering.train
    monkeypatch.setattr(
        faiss.Clustering, "train", lambda self, x, index: train(self, x, getattr(index, "inner", index))
    )
