import threading
import time
import weakref

import numpy as np
import pytest

from retrieval.config import IndexConfig
from retrieval.indexes.exact import exact_top_k, recall_at_k
from retrieval.indexes.ivf import IndexInputError
from retrieval.versions.searcher import LoadedVersion, Searcher
from retrieval.versions.store import VersionCorrupt, VersionError
from tests.unit.retrieval.conftest import clustered, unit


def test_results_are_item_ids_best_first(store, put):
    vectors, queries = clustered(1500)
    put(vectors, queries)
    ids, scores = Searcher(store.root).search(queries, 10)
    assert recall_at_k(ids, exact_top_k(queries, vectors, 10) * 10) >= 0.97
    assert (np.diff(scores, axis=1) <= 0).all()
    np.testing.assert_allclose(scores, np.einsum("qd,qkd->qk", queries, vectors[ids // 10]), atol=2e-3)


@pytest.mark.parametrize("excluded", [50, 300, 1000])
def test_the_nearest_items_excluded_the_next_ones_are_found(store, put, excluded):
    vectors, queries = clustered(1700, dim=64)
    put(vectors, queries)
    nearest = exact_top_k(queries[:100], vectors, excluded + 10)
    ids, scores = Searcher(store.root).search(queries[:100], 10, exclude=list(nearest[:, :excluded] * 10))
    assert np.isfinite(scores).all()
    assert recall_at_k(ids, nearest[:, excluded:] * 10) >= 0.9
    assert not (ids[:, :, None] == nearest[:, None, :excluded] * 10).any()


def test_each_query_has_its_own_exclusions_and_repeats_do_no_harm(store, put):
    vectors = unit(np.array([[1, 0], [1, 0.1], [1, 0.2]]))
    put(vectors)
    queries = np.repeat(vectors[:1], 3, axis=0)
    exclude = [np.array([], np.int64), np.array([0, 0, 0, 77]), np.array([0, 10, 20])]
    ids, scores = Searcher(store.root).search(queries, 2, exclude)
    assert ids.tolist() == [[0, 10], [10, 20], [-1, -1]]
    assert np.isneginf(scores[2]).all()


def test_more_wanted_than_there_are_is_padded(store, put):
    put(clustered(3)[0])
    ids, scores = Searcher(store.root).search(clustered(3)[1][:2], 5)
    assert (np.sort(ids[:, :3], axis=1) == [0, 10, 20]).all()
    assert (ids[:, 3:] == -1).all()
    assert np.isneginf(scores[:, 3:]).all()


def test_the_item_minus_one_is_an_item_like_any_other(store, put):
    vectors = unit(np.array([[1, 0], [0, 1]]))
    put(vectors, ids=np.array([-1, 4]))
    ids, scores = Searcher(store.root).search(vectors, 1)
    assert ids.tolist() == [[-1], [4]]
    np.testing.assert_allclose(scores, 1.0, atol=1e-3)


def test_ids_at_both_ends_of_int64_come_back_unchanged(store, put):
    ids = np.array([np.iinfo(np.int64).max, np.iinfo(np.int64).min, 0])
    vectors = unit(np.eye(3))
    put(vectors, ids=ids)
    searcher = Searcher(store.root)
    assert searcher.search(vectors, 1)[0][:, 0].tolist() == ids.tolist()
    assert ids[1] not in searcher.search(vectors, 2, exclude=[ids[1:2]] * 3)[0]


def test_no_queries_have_no_results(store, put):
    put(clustered(3)[0])
    ids, scores = Searcher(store.root).search(np.zeros((0, 32), np.float32), 4, exclude=[])
    assert ids.shape == scores.shape == (0, 4)


def test_a_search_that_makes_no_sense_is_refused(store, put):
    put(clustered(30)[0])
    searcher = Searcher(store.root)
    with pytest.raises(IndexInputError, match="k must be at least 1, got 0"):
        searcher.search(np.zeros((1, 32), np.float32), 0)
    with pytest.raises(IndexInputError, match="2 sets of excluded ids for 1 queries"):
        searcher.search(np.zeros((1, 32), np.float32), 1, exclude=[np.array([1]), np.array([2])])


def test_before_the_first_version_a_search_says_so(store):
    searcher = Searcher(store.root)
    assert searcher.version is None
    with pytest.raises(VersionError, match="no index version is live"):
        searcher.search(np.zeros((1, 2), np.float32), 1)


def test_refresh_follows_the_pointer_forwards_and_back(store, put):
    searcher = Searcher(store.root)
    assert not searcher.refresh()
    put(clustered(30)[0])
    assert searcher.refresh()
    assert not searcher.refresh()
    put(clustered(40)[0])
    assert searcher.version.name == "v00000001"
    assert searcher.refresh()
    assert searcher.version.name == "v00000002"
    store.rollback("v00000001")
    assert searcher.refresh()
    assert searcher.version.name == "v00000001"


def test_a_damaged_version_is_refused_and_the_loaded_one_goes_on(store, put):
    put(clustered(30)[0])
    searcher = Searcher(store.root)
    damaged = put(clustered(40)[0]).version
    (damaged.path / "items-0000.arrow").write_bytes(b"")
    with pytest.raises(VersionCorrupt, match=r"v00000002.*items-0000\.arrow"):
        searcher.refresh()
    assert searcher.search(clustered(30)[1], 1)[0].shape == (300, 1)
    assert searcher.version.name == "v00000001"


def test_a_version_pruned_while_it_is_loaded_gives_way_to_its_successor(store, put, monkeypatch):
    put(clustered(30)[0])
    load = LoadedVersion.load

    def load_after_a_successor(version):
        monkeypatch.setattr(LoadedVersion, "load", staticmethod(load))
        put(clustered(40)[0], config=IndexConfig(versions_to_keep=1))
        return load(version)

    monkeypatch.setattr(LoadedVersion, "load", staticmethod(load_after_a_successor))
    assert Searcher(store.root).version.name == "v00000002"


def test_searches_go_on_while_versions_are_swapped(store, put):
    """Version n holds the same vectors under ids n·1000 + row: a mixture of two versions would show."""
    vectors, queries = clustered(200)
    rows = np.arange(200)
    put(vectors, ids=rows + 1000)
    searcher = Searcher(store.root)
    wanted = searcher.search(queries, 3)[0] % 1000
    done, wrong, seen = threading.Event(), [], set()

    def search():
        while not done.is_set():
            ids, _ = searcher.search(queries, 3)
            versions = set((ids // 1000).ravel().tolist())
            seen.update(versions)
            if len(versions) != 1 or recall_at_k(ids % 1000, wanted) < 0.99:
                wrong.append(versions)

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for version in range(2, 10):
        put(vectors, ids=rows + 1000 * version, config=IndexConfig(versions_to_keep=1))
        assert searcher.refresh()
    done.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(seen) >= 2


def test_a_searcher_follows_from_a_thread_until_it_is_closed(store, put):
    put(clustered(30)[0])
    with Searcher(store.root) as searcher:
        searcher.following(every_s=0.001).__enter__()
        put(clustered(40)[0])
        deadline = time.monotonic() + 60
        while searcher.version.name != "v00000002" and time.monotonic() < deadline:
            time.sleep(0.001)
        assert searcher.version.name == "v00000002"
    assert "following index versions" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(VersionError, match="closed"):
        searcher.search(clustered(30)[1], 1)
    with pytest.raises(VersionError, match="closed"):
        searcher.refresh()


def test_a_closed_searcher_releases_the_version_once_no_search_uses_it(store, put):
    put(clustered(30)[0])
    searcher = Searcher(store.root)
    begun, released = searcher.loaded, threading.Event()
    weakref.finalize(begun, released.set)
    searcher.close()
    assert searcher.version is None
    assert begun.search(clustered(30)[1], 1)[0].shape == (300, 1)
    assert not released.is_set()
    del begun
    assert released.is_set()
