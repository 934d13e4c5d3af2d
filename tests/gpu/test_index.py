"""The index on a GPU: as good as the CPU's, written as the CPU's, searched by many threads.

A rehearsal runs them against the stand-in for Faiss's GPU classes that `make test` uses.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from retrieval import gpu
from retrieval.config import IndexConfig
from retrieval.indexes import gpu_index
from retrieval.indexes.coarse import assign_lists, train_centroids
from retrieval.indexes.exact import exact_top_k, recall_at_k
from retrieval.indexes.gpu_index import GpuIvfIndex, build_index, builder_for
from retrieval.indexes.ivf import IvfBuilder, IvfIndex, empty_index
from retrieval.indexes.kinds import codec_sample
from retrieval.versions.publish import publish
from retrieval.versions.searcher import Searcher
from retrieval.versions.store import VersionStore
from tests.gpu.conftest import REHEARSAL
from tests.unit.retrieval.conftest import clustered
from tests.unit.retrieval.indexes import fake_gpu_faiss

KINDS = ["ivf_flat", "ivf_fp16", "ivf_sq8"]
"""Those that Faiss has on GPUs."""


@pytest.fixture
def faiss_gpu(device, monkeypatch):
    """Faiss with a GPU."""
    if REHEARSAL:
        monkeypatch.setattr(gpu, "_of_thread", threading.local())
        fake_gpu_faiss.install(monkeypatch)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norms", ["unit", "uneven"])
def test_built_on_the_gpu_it_is_as_good_and_its_file_gives_the_same_neighbours(
    faiss_gpu, tmp_path, kind, norms
):
    vectors, queries = clustered(50_000, 64)
    if norms == "uneven":
        scale = np.random.default_rng(2).lognormal(0, 0.5, (vectors.shape[0], 1))
        vectors = np.ascontiguousarray(vectors * scale, np.float32)
    wanted = exact_top_k(queries, vectors, 10)
    assert recall_at_k(exact_top_k(queries, vectors, 10, [0]), wanted) > 0.999
    there = build_index(vectors, IndexConfig(kind=kind, device="cuda"), seed=1)
    assert isinstance(there, GpuIvfIndex)
    there.save(tmp_path / "index")
    here = IvfIndex.load(tmp_path / "index", kind)
    nprobe = there.nlist // 4
    (found, scores), (read, read_scores) = (index.search(queries, 10, nprobe) for index in (there, here))
    assert recall_at_k(found, wanted) >= 0.95
    assert recall_at_k(found, read) >= 0.99
    np.testing.assert_allclose(scores, read_scores, atol=2e-3 * np.abs(read_scores).max())
    np.testing.assert_array_equal(there.list_lengths(), here.list_lengths())
    assert there.scanned(queries, nprobe) == pytest.approx(here.scanned(queries, nprobe), rel=0.01)
    back = GpuIvfIndex.copy_of(here, 0)
    assert recall_at_k(back.search(queries, 10, nprobe)[0], found) > 0.999


def test_beyond_the_limits_of_a_gpu_the_cpu_answers(faiss_gpu):
    vectors, queries = clustered(20_000, 32)
    index = build_index(vectors, IndexConfig(device="cuda"), seed=1)
    assert (index.search(queries[:4], 3000, index.nlist)[0] >= 0).all()
    with pytest.raises(RuntimeError):
        index._index.search(queries[:4], 3000)


@pytest.mark.parametrize("kind", KINDS)
def test_a_version_is_tuned_gated_and_served_by_many_threads(faiss_gpu, tmp_path, kind):
    vectors, queries = clustered(20_000, 64)
    store, attempt = VersionStore(tmp_path / "index"), tmp_path / "attempt"
    attempt.mkdir()
    config = IndexConfig(kind=kind, device="cuda")
    items = iter([(np.arange(vectors.shape[0]) * 10, vectors)])
    report = publish(store, attempt, items, queries, config, metadata={}, seed=1)
    assert report.version is not None
    assert report.recall >= 0.95
    here, there = Searcher(store.root), Searcher(store.root, gpu=0)
    wanted = here.search(queries, 10)[0]
    unwanted = [row[:3] for row in wanted]
    start = threading.Barrier(4)

    def search(_: int) -> tuple:
        start.wait()
        return there.search(queries, 10)[0], there.search(queries, 10, exclude=unwanted)[0]

    with ThreadPoolExecutor(4) as pool:
        for found, without in pool.map(search, range(4)):
            assert recall_at_k(found, wanted) >= 0.99
            assert not any(np.isin(a, b).any() for a, b in zip(without, unwanted, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cards", [1, 2])
def test_shards_filled_in_slices_hold_what_the_cpus_hold_and_are_read_as_one(
    faiss_gpu, tmp_path, kind, cards
):
    """Two cards are the same one twice: what is divided and merged is the same."""
    vectors, queries = clustered(20_000, 64)
    here, there = IndexConfig(kind=kind, device="cpu"), IndexConfig(kind=kind, device="cuda")
    there.cards = lambda: (0,) * cards  # type: ignore[method-assign]
    centroids = train_centroids(vectors, 200, there, seed=1)
    assigned, on_cpu = (assign_lists(vectors, centroids, config) for config in (there, here))
    assert (assigned == on_cpu).mean() > 0.999
    empty = empty_index(there, centroids, codec_sample(vectors, kind))
    whole, files = IvfBuilder(empty, kind), []
    whole.add(vectors, assigned)
    for start, end in ((0, 12_000), (12_000, 20_000)):
        shard = builder_for(empty, there, end - start)
        for first in range(start, end, 3000):
            last = min(end, first + 3000)
            shard.add(vectors[first:last], assigned[first:last])
        files.append(tmp_path / str(start))
        shard.index().save(files[-1])
    wanted, scores = whole.index().search(queries, 10, 20)
    read = IvfIndex.load(files, kind)
    np.testing.assert_array_equal(read.list_lengths(), np.bincount(assigned, minlength=200))
    for index in (read, GpuIvfIndex.copy_of(read, [0] * cards)):
        found, found_scores = index.search(queries, 10, 20)
        assert recall_at_k(found, wanted) >= 0.99
        np.testing.assert_allclose(found_scores, scores, atol=2e-3)


def test_a_kind_that_faiss_has_on_the_cpu_only_is_searched_there(faiss_gpu, caplog):
    gpu_index._say_on_cpu.cache_clear()
    vectors, queries = clustered(20_000, 64)
    index = build_index(vectors, IndexConfig(kind="ivf_pqfs", device="cuda"), seed=1)
    assert not isinstance(index, GpuIvfIndex)
    assert (
        recall_at_k(index.search(queries, 10, index.nlist // 4)[0], exact_top_k(queries, vectors, 10)) > 0.95
    )
    assert [record.message for record in caplog.records] == [
        "Faiss has no index.kind=ivf_pqfs on GPUs: its lists are filled and searched on the CPU"
    ]
