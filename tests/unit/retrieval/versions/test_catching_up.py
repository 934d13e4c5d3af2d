"""A thread that follows changes to a newer version with its first delta: before that, the version is behind the old."""

import threading

import numpy as np
import pytest

from retrieval.deltas.chain import DeltaChain
from retrieval.versions import follower
from retrieval.versions.searcher import Searcher
from tests.unit.retrieval.conftest import clustered
from tests.unit.retrieval.deltas.conftest import append

ITEMS, DELETED = 50, 70


@pytest.fixture
def vectors():
    return clustered(ITEMS)[0]


@pytest.fixture
def searcher(store, put, vectors):
    """At the first delta of the first version, which deletes an item."""
    put(vectors)
    append(DeltaChain(store, store.current()), deleted=[DELETED])
    searcher = Searcher(store.root)
    assert _place(searcher) == ("v00000001", 1)
    yield searcher
    searcher.close()


@pytest.fixture
def waiting(monkeypatch):
    """Set once a thread waits for the first delta of a version; it would wait for ever."""
    waiting, real = threading.Event(), follower.VersionFollower._caught_up

    def caught_up(of, place):
        waiting.set()
        return real(of, place)

    monkeypatch.setattr(follower.VersionFollower, "_caught_up", caught_up)
    monkeypatch.setattr(follower, "_CATCH_UP_S", 1e6)
    monkeypatch.setattr(follower, "_CATCH_UP_LOOK_S", 0.001)
    return waiting


def _place(searcher):
    return searcher.loaded.version.name, searcher.loaded.delta_number


def _changes_to(searcher, place):
    ended = threading.Event()
    for _ in range(60_000):
        if _place(searcher) == place:
            return True
        ended.wait(0.001)
    return False


def _finds_the_deleted(searcher, vectors):
    ids, _ = searcher.search(vectors, ITEMS)
    return bool((ids == DELETED).any())


def test_what_was_deleted_never_returns_while_the_next_version_catches_up(
    store, put, vectors, searcher, waiting
):
    with searcher.following(every_s=0.001):
        put(vectors)
        assert waiting.wait(60)
        assert _place(searcher) == ("v00000001", 1)
        assert not _finds_the_deleted(searcher, vectors)
        append(DeltaChain(store, store.current()), deleted=[DELETED])
        assert _changes_to(searcher, ("v00000002", 1))
    assert not _finds_the_deleted(searcher, vectors)


def test_a_version_that_gets_no_delta_is_served_after_a_while(put, vectors, searcher, waiting, monkeypatch):
    monkeypatch.setattr(follower, "_CATCH_UP_S", 0.01)
    with searcher.following(every_s=0.001):
        put(vectors)
        assert _changes_to(searcher, ("v00000002", 0))


def test_a_rollback_and_a_version_after_one_without_deltas_are_followed_at_once(
    store, put, vectors, searcher, waiting
):
    put(vectors)
    searcher.refresh()
    assert _place(searcher) == ("v00000002", 0)
    with searcher.following(every_s=0.001):
        put(vectors)
        assert _changes_to(searcher, ("v00000003", 0))
        append(DeltaChain(store, store.current()), [5], np.ones((1, vectors.shape[1]), np.float32))
        assert _changes_to(searcher, ("v00000003", 1))
        store.rollback("v00000001")
        assert _changes_to(searcher, ("v00000001", 0))


def test_a_version_that_is_rolled_back_while_it_is_waited_for_is_never_served(
    store, put, vectors, searcher, waiting
):
    served = []
    place = searcher._follower._after_deltas
    searcher._follower._after_deltas = lambda *a, **o: (served.append(_place(searcher)), place(*a, **o))[1]
    with searcher.following(every_s=0.001):
        put(vectors)
        assert waiting.wait(60)
        store.rollback("v00000001")
        assert _changes_to(searcher, ("v00000001", 0))
    assert {name for name, _ in served} == {"v00000001"}


def test_the_end_does_not_wait_for_a_delta(put, vectors, searcher, waiting):
    with searcher.following(every_s=0.001):
        put(vectors)
        assert waiting.wait(60)
        searcher.close()
    assert searcher.loaded is None
