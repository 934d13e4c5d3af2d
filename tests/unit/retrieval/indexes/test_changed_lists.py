import numpy as np
import pytest

from retrieval.config import IndexConfig
from retrieval.indexes.changed_lists import ChangedLists, Members
from retrieval.indexes.ivf import IvfIndex
from tests.unit.retrieval.conftest import clustered

ITEMS, LISTS = 600, 12
NONE = Members(np.empty(0, np.int64), np.empty(0, np.int64))


@pytest.fixture(params=["ivf_flat", "ivf_fp16", "ivf_sq8"])
def index(request):
    vectors, _ = clustered(ITEMS)
    return IvfIndex.build(vectors, IndexConfig(kind=request.param, nlist=LISTS, device="cpu"), seed=1)


@pytest.fixture
def lists(index) -> ChangedLists:
    lists = index.lists()
    assert lists is not None
    return lists


def members(lists, rows):
    rows = np.asarray(rows, np.int64)
    return Members(rows, lists.list_of_each()[rows].astype(np.int64))


def found(lists, query, k=ITEMS):
    rows, scores = lists.search(query, k, LISTS)
    return [row[np.isfinite(of_row)].tolist() for row, of_row in zip(rows, scores, strict=True)]


def test_unchanged_lists_are_those_of_the_index(index, lists):
    query = clustered(ITEMS)[1][:5]
    rows, scores = lists.search(query, 20, 3)
    expected = index.search(query, 20, 3)
    assert (rows == expected[0]).all()
    assert (scores == expected[1]).all()
    assert (lists.list_of_each() == index.lists_of(np.arange(ITEMS))).all()
    assert (lists.lengths() == index.list_lengths()).all()


def test_rows_that_left_are_not_found_and_rows_that_came_have_the_scores_of_the_index(index, lists):
    vectors, query = clustered(ITEMS)
    new = Members(np.arange(ITEMS, ITEMS + 40), index.assigned(vectors[:40]))
    changed = lists.changed(members(lists, range(40)), new, vectors[:40])
    rows, scores = changed.search(query[:5], ITEMS, LISTS)
    before_rows, before_scores = index.search(query[:5], ITEMS, LISTS)
    moved = np.where(before_rows < 40, before_rows + ITEMS, before_rows)
    for q in range(5):
        assert dict(zip(rows[q], scores[q], strict=True)) == dict(
            zip(moved[q], before_scores[q], strict=True)
        )
    assert (changed.lengths() == lists.lengths()).all()


def test_a_list_can_become_empty_and_fill_again(lists):
    vectors, query = clustered(ITEMS)
    all_of_one = np.flatnonzero(lists.list_of_each() == 3)
    emptied = lists.changed(members(lists, all_of_one), NONE, vectors[:0])
    assert emptied.lengths()[3] == 0
    for rows in found(emptied, query[:3]):
        assert sorted(rows) == sorted(set(range(ITEMS)) - set(all_of_one.tolist()))
    still = emptied.changed(NONE, Members(np.array([9000]), np.array([4])), vectors[:1])
    assert still.empty == 1
    filled = still.changed(NONE, Members(np.array([9001]), np.array([3])), vectors[:1])
    assert filled.empty == 0
    for rows in found(filled, query[:3], ITEMS + 2):
        assert sorted(rows) == sorted({*range(ITEMS), 9000, 9001} - set(all_of_one.tolist()))


def test_everything_can_leave(lists):
    vectors, query = clustered(ITEMS)
    nothing = lists.changed(members(lists, range(ITEMS)), NONE, vectors[:0])
    assert found(nothing, query[:2], 5) == [[], []]
    one = nothing.changed(NONE, Members(np.array([7000]), np.array([0])), vectors[:1])
    assert found(one, query[:2], 5) == [[7000], [7000]]


def test_views_share_what_did_not_change_between_them(lists):
    vectors, query = clustered(ITEMS)
    first = lists.changed(members(lists, [0, 1]), NONE, vectors[:0])
    before = found(first, query[:3])
    second = first.changed(members(lists, [2]), NONE, vectors[:0])
    touched = lists.list_of_each()[2]
    for number in range(LISTS):
        assert (first.blocks[number] is second.blocks[number]) == (number != touched)
    assert found(first, query[:3]) == before
    assert not any({0, 1, 2} & set(rows) for rows in found(second, query[:3]))


def test_an_index_of_packed_lists_has_none():
    vectors, _ = clustered(ITEMS)
    config = IndexConfig(kind="ivf_pqfs", nlist=LISTS, device="cpu")
    assert IvfIndex.build(vectors, config, seed=1).lists() is None
