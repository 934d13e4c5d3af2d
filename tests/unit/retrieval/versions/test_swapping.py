"""Writers, pruners and readers at the same time: a reader gets one whole version, always."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import numpy as np
import pytest

from retrieval.config import IndexConfig
from retrieval.versions.searcher import Searcher
from retrieval.versions.store import VersionError, VersionStore
from tests.unit.retrieval.conftest import clustered

ITEMS = 100


@contextmanager
def running(readers, work):
    """Call `work(n)` forever in `readers` threads while the block runs; then raise what one of them raised."""
    done = threading.Event()

    def loop(n):
        while not done.is_set():
            work(n)

    with ThreadPoolExecutor(readers) as pool:
        loops = [pool.submit(loop, n) for n in range(readers)]
        try:
            yield
        finally:
            done.set()
        for each in loops:
            each.result()


def commit(store):
    building = store.begin()
    (building.path / "file").write_bytes(b"data")
    return store.commit(building, {})


def test_readers_that_refresh_at_any_moment_see_one_whole_version_while_others_are_removed(store, put):
    """Version n has n items less than the first and the ids n·1000 + row: index and ids of two would not fit."""
    vectors, queries = clustered(ITEMS)
    config = IndexConfig(kind="ivf_flat", versions_to_keep=1)

    def put_version(n):
        left = ITEMS - n
        put(vectors[:left], ids=1000 * n + np.arange(left), config=config)

    put_version(1)
    shared, seen, wrong = Searcher(store.root), set(), []

    def read(n):
        if n:
            shared.refresh()
        searcher = shared if n else Searcher(store.root)
        ids, _ = searcher.search(queries, ITEMS)
        version = int(ids[0, 0]) // 1000
        expected = np.append(1000 * version + np.arange(ITEMS - version), np.full(version, -1))
        seen.add(version)
        if not (np.sort(ids, axis=1) == np.sort(expected)).all():
            wrong.append(ids)

    with running(4, read):
        for n in range(2, 14):
            put_version(n)
            time.sleep(0.02)
    assert wrong == []
    assert len(seen) > 3
    assert store.names() == ["v00000013"]


def test_the_pointer_names_a_whole_version_while_one_writer_removes_what_another_promotes(store):
    store.promote(commit(store).name)
    rolled_back = []

    def roll_back(n):
        live = VersionStore(store.root).current()
        assert live.manifest["version"] == live.name
        for oldest in store.names()[:1] if n == 0 else []:
            with suppress(VersionError):  # it may be gone since it was listed
                rolled_back.append(VersionStore(store.root).promote(oldest).name)

    with running(3, roll_back):
        for _ in range(15):
            store.promote(commit(store).name)
            store.prune(1)
    store.verify(store.current().name)
    assert rolled_back
    assert [path.name for path in store.root.iterdir() if path.name.startswith((".C", ".r"))] == []


def test_of_many_promotions_at_once_one_wins(store):
    names = [commit(store).name for _ in range(3)]
    with ThreadPoolExecutor(6) as pool:
        promoted = list(pool.map(lambda n: VersionStore(store.root).promote(names[n % 3]).name, range(30)))
    assert sorted(set(promoted)) == names
    assert store.current().name in names
    assert sorted(path.name for path in store.root.iterdir()) == [".lock", "CURRENT", *names]


def test_a_pointer_to_nothing_is_told_and_the_next_version_heals_it(store, put):
    put(clustered(30)[0])
    (store.root / "CURRENT").write_text("v00000009")
    for look in (store.current, lambda: Searcher(store.root)):
        with pytest.raises(VersionError, match=r"no index version 'v00000009' in .*there are: v00000001"):
            look()
    put(clustered(30)[0], config=IndexConfig(min_overlap=0.5))
    assert store.current().name == "v00000002"


def test_a_folder_without_versions_is_told_and_not_made(store):
    assert (store.current(), store.names()) == (None, [])
    for change in (store.promote, store.rollback):
        with pytest.raises(VersionError, match=r"no index version 'v00000001' in .*there are: none"):
            change("v00000001")
    assert not store.root.exists()


def test_a_k_below_one_is_refused_also_with_exclusions(store, put):
    put(clustered(30)[0])
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        Searcher(store.root).search(clustered(30)[1][:1], 0, exclude=[np.array([10, 20])])
