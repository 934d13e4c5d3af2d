import numpy as np
import pytest

from retrieval.config import IndexConfig
from retrieval.deltas.base_vectors import BaseVectors
from retrieval.deltas.changed_items import ChangedItems
from retrieval.deltas.limits import Change, ChangeMeter, refresh_due
from retrieval.indexes.ivf import IvfIndex
from retrieval.indexes.parts import write_part
from tests.unit.retrieval.conftest import clustered

ITEMS = 3000
NONE = np.empty(0, np.int64)
STILL = Change(0.0, 0.0, 1.0)


@pytest.fixture
def base(tmp_path):
    """A version's items, in two shards, and its vectors."""
    vectors, _ = clustered(ITEMS)
    ids = np.random.default_rng(3).permutation(ITEMS) - 50
    paths = [tmp_path / "items-0000.arrow", tmp_path / "items-0001.arrow"]
    for path, rows in zip(paths, (slice(0, 1000), slice(1000, None)), strict=True):
        write_part(path, ids[rows], vectors[rows])
    index = IvfIndex.build(vectors, IndexConfig(nlist=50, device="cpu"), seed=1)
    return ChangedItems.none(index, ids), BaseVectors(paths), vectors


def test_vectors_of_rows_are_read_from_the_files_of_all_shards(base):
    _, stored, vectors = base
    rows = np.array([2999, 0, 999, 1000, 5])
    np.testing.assert_array_equal(stored.of_rows(rows), vectors[rows])
    assert stored.of_rows(NONE).shape == (0, 32)


def test_nothing_has_changed_before_the_first_delta(base):
    items, stored, _ = base
    assert ChangeMeter(items.index, stored).measure(items) == STILL


@pytest.mark.parametrize("listed", [False, True])
def test_share_and_drift_are_those_of_the_items_of_the_deltas(base, monkeypatch, listed):
    monkeypatch.setattr("retrieval.deltas.new_items._FEW", 0 if listed else 1024)
    items, stored, vectors = base
    rows = np.arange(0, 60)
    turned = vectors[rows].copy()
    turned[:30] *= -1
    new = np.arange(10) + 10_000
    changed = items.changed(
        np.concatenate([items.ids[rows], new]), np.concatenate([turned, vectors[:10]]), NONE
    ).changed(NONE, np.empty((0, 32), np.float32), items.ids[100:103])
    change = ChangeMeter(items.index, stored).measure(changed)
    assert change.share == pytest.approx(70 / ITEMS)
    assert change.drift == pytest.approx(1.0 * 60 / ITEMS, rel=1e-5)
    assert change.imbalance == pytest.approx(1.0, abs=0.2)


def test_items_that_all_go_to_one_list_make_it_longer(base, monkeypatch):
    monkeypatch.setattr("retrieval.deltas.new_items._FEW", 0)
    items, stored, vectors = base
    meter = ChangeMeter(items.index, stored)
    same = np.repeat(vectors[:1], 600, axis=0)
    change = meter.measure(items.changed(np.arange(600) + 10_000, same, NONE))
    lengths = items.index.list_lengths().astype(float)
    longer = lengths.copy()
    longer[items.index.assigned(vectors[:1])] += 600
    assert change.imbalance == pytest.approx(
        (longer**2).sum() / longer.sum() ** 2 / ((lengths**2).sum() / lengths.sum() ** 2)
    )
    assert change.imbalance > 1.5


@pytest.mark.parametrize(
    ("change", "limit", "words"),
    [
        (Change(0.021, 0.9, 9.0), "share", "share of the deltas is 0.021 (index.max_delta_share=0.02)"),
        (Change(0.02, 0.006, 9.0), "drift", "drift of the deltas is 0.006 (index.max_delta_drift=0.005)"),
        (
            Change(0.0, 0.0, 1.6),
            "imbalance",
            "imbalance of the deltas is 1.6 (index.max_delta_imbalance=1.5)",
        ),
    ],
)
def test_a_refresh_is_due_by_the_first_limit_that_is_passed(change, limit, words):
    due = refresh_due(change, IndexConfig())
    assert (due.limit, due.in_words()) == (limit, words)


def test_no_refresh_is_due_within_the_limits():
    assert refresh_due(Change(0.02, 0.005, 1.5), IndexConfig()) is None
    assert refresh_due(STILL, IndexConfig(max_delta_imbalance=1.0)) is None
