"""A searcher is at (version, delta): it applies deltas as they come, and stays at the last whole one."""

import logging
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from retrieval.deltas.chain import DeltaChain
from retrieval.versions.searcher import Searcher
from tests.unit.retrieval.conftest import clustered, unit
from tests.unit.retrieval.deltas.conftest import append

ITEMS = 50


@pytest.fixture
def vectors(put):
    vectors, _ = clustered(ITEMS)
    put(vectors)
    return vectors


@pytest.fixture
def chain(store, vectors):
    return DeltaChain(store, store.current())


def first_of(searcher, query):
    ids, _ = searcher.search(query[None], 1)
    return int(ids[0, 0])


def place_of(searcher):
    return searcher.loaded.version.name, searcher.loaded.delta_number


def opposite(vectors, row):
    """A query that no item but one in this direction answers best."""
    return unit(-vectors[row : row + 1])


def test_new_moved_and_deleted_items_are_searched_from_the_next_look_on(store, vectors, chain):
    searcher = Searcher(store.root)
    before = searcher.loaded
    query = vectors[3]
    assert first_of(searcher, query) == 30
    append(chain, [30, 7], np.concatenate([opposite(vectors, 3), vectors[3:4]]), events=12)
    assert searcher.refresh()
    assert first_of(searcher, query) == 7
    assert first_of(searcher, opposite(vectors, 3)[0]) == 30
    assert place_of(searcher) == ("v00000001", 1)
    assert searcher.loaded.delta.manifest["events"] == 12
    asked = np.array([7, 30, 0, 999])
    assert before.holds(asked).tolist() == [False, True, True, False]
    assert searcher.loaded.holds(asked).tolist() == [True, True, True, False]
    append(chain, deleted=[7, 999])
    assert searcher.refresh()
    assert first_of(searcher, query) not in (7, 30)
    assert searcher.loaded.holds(asked).tolist() == [False, True, True, False]
    assert searcher.loaded.size == ITEMS
    assert not searcher.refresh()
    assert int(before.search(query[None], 1)[0][0, 0]) == 30
    assert before.size == ITEMS


def test_everything_can_be_deleted(store, vectors, chain):
    searcher = Searcher(store.root)
    append(chain, deleted=np.arange(ITEMS) * 10)
    searcher.refresh()
    ids, scores = searcher.search(vectors[:2], 3)
    assert (ids == -1).all()
    assert np.isneginf(scores).all()
    assert searcher.loaded.size == 0


def test_a_view_shares_the_full_version(store, vectors, chain):
    searcher = Searcher(store.root)
    full = searcher.loaded
    append(chain, [1], vectors[:1])
    append(chain, [2], vectors[:1])
    searcher.refresh()
    assert searcher.loaded.index is full.index
    assert searcher.loaded.item_ids is full.item_ids


def test_a_reader_that_was_away_applies_all_deltas_before_it_answers(store, vectors, chain):
    for n in range(5):
        append(chain, [1000 + n], unit(np.eye(32)[n : n + 1]))
    append(chain, deleted=[1001])
    searcher = Searcher(store.root)
    assert place_of(searcher) == ("v00000001", 6)
    assert searcher.loaded.size == ITEMS + 4


def test_a_new_version_is_taken_with_its_deltas(store, put, vectors, chain):
    searcher = Searcher(store.root)
    append(chain, [1000], vectors[:1])
    searcher.refresh()
    put(vectors)
    append(DeltaChain(store, store.current()), deleted=[0])
    assert searcher.refresh()
    assert place_of(searcher) == ("v00000002", 1)
    assert searcher.loaded.size == ITEMS - 1


def test_a_rollback_serves_the_full_version(store, put, vectors, chain):
    searcher = Searcher(store.root)
    append(chain, [1000], vectors[:1])
    searcher.refresh()
    put(vectors)
    store.rollback("v00000001")
    assert searcher.refresh()
    assert place_of(searcher) == ("v00000001", 0)
    assert searcher.loaded.size == ITEMS


def test_deltas_that_others_follow_up_differently_are_dropped_too(store, put, vectors, chain):
    searcher = Searcher(store.root)
    append(chain, [1000], vectors[:1])
    searcher.refresh()
    put(vectors)
    store.rollback("v00000001")
    again = DeltaChain(store, store.current())
    append(again, [2000], vectors[:1])
    append(again, [2001], vectors[:1])
    assert searcher.refresh()
    assert place_of(searcher) == ("v00000001", 2)
    assert searcher.loaded.changed.new.items().ids.tolist() == [2000, 2001]


def said_by_retrieval(caplog):
    """A Kafka client of another test in this process may log meanwhile."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("retrieval.")]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_delta_leaves_the_reader_at_the_last_whole_one(store, put, vectors, chain, damage, caplog):
    searcher = Searcher(store.root)
    for n in range(3):
        append(chain, [1000 + n], vectors[:1])
    path = store.root / "deltas" / "v00000001" / "d00000002" / "items-0000.arrow"
    whole = bytearray(path.read_bytes())
    if damage == "missing":
        shutil.rmtree(path.parent)
    else:
        whole[len(whole) // 2] ^= 1
        path.write_bytes(whole[:-9] if damage == "truncated" else whole)
    for _ in range(2):
        searcher.refresh()
        assert place_of(searcher) == ("v00000001", 1)
    [said] = said_by_retrieval(caplog)
    assert "stays at delta 1: delta d00000002 of index version v00000001 is damaged" in said
    assert place_of(Searcher(store.root)) == ("v00000001", 1)
    put(vectors)
    assert searcher.refresh()
    assert place_of(searcher) == ("v00000002", 0)


def test_a_thread_that_follows_says_once_that_a_delta_is_damaged(store, vectors, chain, caplog):
    append(chain, [1000], vectors[:1])
    searcher = Searcher(store.root)
    with caplog.at_level(logging.WARNING), searcher.following(every_s=0.001):
        looks = searcher._follower
        append(chain, [1001], vectors[:1])
        wait_for(lambda: place_of(searcher) == ("v00000001", 2))
        broken = chain.begin()
        (broken.path / "items-0000.arrow").write_bytes(b"no arrow file")
        chain.commit(broken, {})
        before = looks._looks
        wait_for(lambda: looks._looks > before + 20)
    said = said_by_retrieval(caplog)
    assert len(said) == 1
    assert (
        "the served index stays at delta 2: delta d00000003 of index version v00000001 is damaged" in said[0]
    )
    assert place_of(searcher) == ("v00000001", 2)


def test_a_thread_that_follows_notices_that_its_deltas_were_dropped(store, vectors, chain):
    append(chain, [1000], vectors[:1])
    searcher = Searcher(store.root)
    with searcher.following(every_s=0.001):
        chain.remove()
        wait_for(lambda: place_of(searcher) == ("v00000001", 0))


@pytest.mark.parametrize(
    ("ids", "new", "problem"),
    [([1], np.ones((1, 3)), "the index has 32 columns"), ([1, 1], np.ones((2, 32)), "more than one vector")],
)
def test_a_delta_that_does_not_fit_its_version_is_not_applied(store, vectors, chain, ids, new, problem):
    searcher = Searcher(store.root)
    append(chain, ids, unit(new))
    assert not searcher.refresh()
    assert re.search(f"delta d00000001 .*{problem}", searcher._follower.problem)
    assert place_of(searcher) == ("v00000001", 0)


def test_an_idle_look_reads_the_pointer_and_two_manifests(store, vectors, chain, monkeypatch):
    append(chain, [1000], vectors[:1])
    searcher = Searcher(store.root)
    opened = []
    real = Path.lstat
    monkeypatch.setattr(Path, "lstat", lambda path: (opened.append(path.name), real(path))[1])
    assert not searcher._follower.refresh(thorough=False)
    assert len(opened) <= 2


def wait_for(happened):
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.001)
