"""Where lists cannot be replaced (packed, or a GPU's), new items are searched beside the version's: equal results."""

import threading

import numpy as np
import pytest

from retrieval import gpu
from retrieval.config import IndexConfig
from retrieval.deltas.changed_items import ChangedItems
from retrieval.indexes.exact import exact_top_k, recall_at_k
from retrieval.indexes.gpu_index import GpuIvfIndex
from retrieval.indexes.ivf import IvfIndex
from tests.unit.retrieval.conftest import clustered
from tests.unit.retrieval.indexes import fake_gpu_faiss

ITEMS, K = 3000, 20
NONE = np.empty(0, np.int64)


def after_deltas(index, vectors, drawn):
    """Items after three deltas, and ids and vectors of all that is left."""
    items, left = ChangedItems.none(index, np.arange(ITEMS)), dict(enumerate(vectors))
    for n in range(3):
        ids = np.concatenate([np.arange(n * 40, n * 40 + 80), np.arange(5000 + 10 * n, 5020 + 10 * n)])
        new, deleted = drawn[n * 100 : n * 100 + 100], np.arange(1000 + n * 30, 1030 + n * 30)
        items = items.changed(ids, new, deleted)
        left.update(zip(ids.tolist(), new, strict=True))
        for item in deleted.tolist():
            del left[item]
    return items, np.array([*left]), np.stack([*left.values()])


def recall_of(items, queries, ids, vectors):
    assert items.size == ids.shape[0]
    found, scores = items.search(queries, K, items.index.nlist // 2)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert np.isin(found, ids).all()
    return recall_at_k(found, ids[exact_top_k(queries, vectors, K)])


@pytest.fixture(params=[0, 1024])
def few(request, monkeypatch):
    monkeypatch.setattr("retrieval.deltas.new_items._FEW", request.param)


@pytest.mark.parametrize("kind", ["ivf_flat", "ivf_fp16", "ivf_sq8", "ivf_pqfs"])
def test_every_kind_finds_what_is_left(few, kind):
    vectors, queries = clustered(ITEMS)
    index = IvfIndex.build(vectors, IndexConfig(kind=kind, device="cpu"), seed=1)
    items, ids, left = after_deltas(index, vectors, clustered(400, seed=9)[0])
    assert (items.lists is None) == (kind == "ivf_pqfs")
    assert recall_of(items, queries, ids, left) >= 0.97


def test_a_gpu_finds_what_the_cpu_does(few, monkeypatch):
    monkeypatch.setattr(gpu, "_of_thread", threading.local())
    fake_gpu_faiss.install(monkeypatch)
    vectors, queries = clustered(ITEMS)
    index = IvfIndex.build(vectors, IndexConfig(device="cpu"), seed=1)
    there = GpuIvfIndex.copy_of(index, 0)
    drawn = clustered(400, seed=9)[0]
    on_cpu, ids, left = after_deltas(index, vectors, drawn)
    on_gpu = after_deltas(there, vectors, drawn)[0]
    assert on_gpu.lists is None
    assert recall_of(on_gpu, queries, ids, left) >= 0.97
    np.testing.assert_allclose(
        on_gpu.search(queries, K, index.nlist)[1], on_cpu.search(queries, K, index.nlist)[1], atol=1e-3
    )
