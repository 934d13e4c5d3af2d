"""The index on a GPU, with a stand-in for Faiss's GPU classes: what is chosen, the limits, the file, the fallback."""

import threading

import numpy as np
import pytest

from retrieval import gpu
from retrieval.config import IndexConfig
from retrieval.gpu import IndexDeviceError
from retrieval.indexes import gpu_index
from retrieval.indexes.coarse import assign_lists, train_centroids
from retrieval.indexes.exact import exact_top_k
from retrieval.indexes.gpu_index import GpuIvfIndex, build_index
from retrieval.indexes.ivf import IndexInputError, IvfIndex
from retrieval.versions.searcher import Searcher
from tests.unit.retrieval.conftest import clustered
from tests.unit.retrieval.indexes import fake_gpu_faiss


@pytest.fixture
def one_gpu(monkeypatch):
    monkeypatch.setattr(gpu, "_of_thread", threading.local())
    fake_gpu_faiss.install(monkeypatch)


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(gpu, "_of_thread", threading.local())
    fake_gpu_faiss.install(monkeypatch, gpus=2)


@pytest.mark.parametrize("device", ["cpu", "cuda", "auto"])
def test_the_setting_and_the_gpus_decide_where_an_index_is_built(one_gpu, device):
    built = build_index(clustered(500)[0], IndexConfig(device=device), seed=1)
    assert isinstance(built, GpuIvfIndex) == (device != "cpu")


def test_auto_takes_the_cpu_where_faiss_has_no_gpu(monkeypatch):
    fake_gpu_faiss.install(monkeypatch, gpus=0)
    assert not isinstance(build_index(clustered(500)[0], IndexConfig(), seed=1), GpuIvfIndex)


def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    for gpus, settings, setting in (
        (0, {}, r"index\.device"),
        (2, {"gpu": 2}, r"index\.gpu .* GPU 2"),
        (2, {"gpu": 1, "gpus": 2}, r"index\.gpus ask for GPU 2, but Faiss sees 2"),
    ):
        fake_gpu_faiss.install(monkeypatch, gpus)
        with pytest.raises(IndexDeviceError, match=setting):
            build_index(clustered(10)[0], IndexConfig(device="cuda", **settings), seed=1)


@pytest.mark.parametrize("kind", ["ivf_flat", "ivf_fp16", "ivf_sq8"])
def test_it_finds_and_scans_what_the_cpus_does_and_its_file_is_the_cpus(one_gpu, kind, tmp_path):
    vectors, queries = clustered(3000)
    here = IvfIndex.build(vectors, IndexConfig(kind=kind, device="cpu"), seed=1)
    there = build_index(vectors, IndexConfig(kind=kind, device="cuda"), seed=1)
    assert (there.size, there.nlist, there.dim) == (here.size, here.nlist, here.dim)
    np.testing.assert_array_equal(there.centroids(), here.centroids())
    assert there.scanned(queries, 5) == here.scanned(queries, 5) > 0
    there.save(tmp_path / "there")
    here.save(tmp_path / "here")
    assert (tmp_path / "there").stat().st_size == (tmp_path / "here").stat().st_size
    loaded = IvfIndex.load(tmp_path / "there", kind)
    for index in (there, loaded, there.on_cpu()):
        np.testing.assert_array_equal(index.search(queries, 10, 5)[0], here.search(queries, 10, 5)[0])


def test_what_a_gpu_cannot_search_the_copy_on_the_cpu_does(one_gpu):
    vectors, queries = clustered(3000)
    there = build_index(vectors, IndexConfig(device="cuda", nlist=2500), seed=1)
    rows, scores = there.search(queries[:2], 2500, 2500)
    assert rows.shape == (2, 2500)
    assert (np.diff(scores) <= 0).all()
    assert there.scanned(queries[:2], 2500) == 3000


def test_scratch_memory_is_made_once_in_a_thread_and_kept_small(one_gpu):
    for seed in range(3):
        build_index(clustered(500)[0], IndexConfig(device="cuda"), seed=seed)
    [made] = fake_gpu_faiss.Resources.made
    assert (made.scratch, made.pinned) == (256 << 20, 64 << 20)


def test_the_card_that_is_set_is_used(two_gpus):
    built = build_index(clustered(500)[0], IndexConfig(device="cuda", gpu=1), seed=1)
    assert (built._index.gpu, GpuIvfIndex.copy_of(built.on_cpu(), 1)._index.gpu) == (1, 1)


@pytest.mark.parametrize("kind", ["ivf_flat", "ivf_fp16", "ivf_sq8"])
def test_divided_among_cards_it_finds_what_one_index_does_and_its_file_is_the_cpus(two_gpus, kind, tmp_path):
    vectors, queries = clustered(3000)
    here = IvfIndex.build(vectors, IndexConfig(kind=kind, device="cpu"), seed=1)
    there = build_index(vectors, IndexConfig(kind=kind, device="cuda", gpus=2), seed=1)
    assert isinstance(there, GpuIvfIndex)
    assert [(part.gpu, part.ntotal) for part in there._parts] == [(0, 1500), (1, 1500)]
    there.save(tmp_path / "there")
    loaded = IvfIndex.load(tmp_path / "there", kind)
    back = GpuIvfIndex.copy_of(here, [0, 1])
    assert [(part.gpu, part.ntotal) for part in back._parts] == [(0, 1500), (1, 1500)]
    wanted, wanted_scores = here.search(queries, 10, 5)
    for index in (there, loaded, back, there.on_cpu()):
        rows, scores = index.search(queries, 10, 5)
        np.testing.assert_array_equal(rows, wanted)
        np.testing.assert_array_equal(scores, wanted_scores)
        np.testing.assert_array_equal(index.list_lengths(), here.list_lengths())
        assert (index.size, index.scanned(queries, 5)) == (3000, here.scanned(queries, 5))
    np.testing.assert_array_equal(there.lists_of(np.arange(3000)), here.lists_of(np.arange(3000)))


def test_several_cards_share_the_work_of_k_means_of_lists_and_of_exact_answers(two_gpus):
    vectors, queries = clustered(3000)
    here, there = IndexConfig(device="cpu"), IndexConfig(device="cuda", gpus=2)
    centroids = train_centroids(vectors, 50, there, seed=1)
    np.testing.assert_allclose(centroids, train_centroids(vectors, 50, here, seed=1), atol=1e-6)
    np.testing.assert_array_equal(
        assign_lists(vectors, centroids, there), assign_lists(vectors, centroids, here)
    )
    assert fake_gpu_faiss.copied_to == [0, 1] * 2
    np.testing.assert_array_equal(
        exact_top_k(queries[:101], vectors, 10, [0, 1]), exact_top_k(queries[:101], vectors, 10)
    )
    assert sorted(fake_gpu_faiss.scanned_by) == [(0, 51), (1, 50)]
    np.testing.assert_array_equal(
        exact_top_k(queries[:1], vectors, 10, [1, 0]), exact_top_k(queries[:1], vectors, 10)
    )
    assert fake_gpu_faiss.scanned_by[2:] == [(1, 1)]
    assert len(fake_gpu_faiss.Resources.made) == 2


def test_cards_with_fewer_items_than_are_wanted_fill_each_other_up(two_gpus):
    vectors, queries = clustered(3)
    there = build_index(vectors, IndexConfig(device="cuda", gpus=2), seed=1)
    rows, scores = there.search(queries, 5, 1)
    assert (np.sort(rows[:, :3], axis=1) == [0, 1, 2]).all()
    assert (rows[:, 3:] == -1).all()
    assert (np.diff(scores[:, :3], axis=1) <= 0).all()


def test_a_kind_that_no_gpu_has_is_filled_and_searched_on_the_cpu_with_one_line(one_gpu, put, store, caplog):
    gpu_index._say_on_cpu.cache_clear()
    vectors, queries = clustered(2000)
    report = put(vectors, queries, IndexConfig(kind="ivf_pqfs", device="cuda"), known_items=2000)
    assert report.version is not None
    here, there = Searcher(store.root), Searcher(store.root, gpu=0)
    assert not isinstance(there.loaded.index, GpuIvfIndex)
    [said] = [record.message for record in caplog.records if "on GPUs" in record.message]
    assert "index.kind=ivf_pqfs" in said
    np.testing.assert_array_equal(there.search(queries, 10)[0], here.search(queries, 10)[0])


def test_unusable_vectors_are_refused_as_on_the_cpu(one_gpu):
    for vectors in (np.zeros((0, 4), np.float32), np.full((3, 4), np.nan, np.float32)):
        with pytest.raises(IndexInputError):
            build_index(vectors, IndexConfig(device="cuda"), seed=1)


def test_a_version_is_built_gated_committed_and_searched_on_the_gpu(one_gpu, put, store):
    vectors, queries = clustered(3000)
    report = put(vectors, queries, IndexConfig(device="cuda"), known_items=3000)
    assert report.version is not None
    assert report.recall >= 0.95
    here, there = Searcher(store.root), Searcher(store.root, gpu=0)
    assert isinstance(there.loaded.index, GpuIvfIndex)
    np.testing.assert_array_equal(there.search(queries, 10)[0], here.search(queries, 10)[0])
    unwanted = [here.search(queries[:3], 5)[0][q] for q in range(3)]
    found, _ = there.search(queries[:3], 10, exclude=unwanted)
    assert not any(np.isin(found[q], unwanted[q]).any() for q in range(3))
