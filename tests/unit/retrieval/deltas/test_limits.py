from types import SimpleNamespace

import numpy as np
import pytest

from retrieval.config import IndexConfig
from retrieval.deltas.base_vectors import BaseVectors
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
    stored = BaseVectors(paths)
    return SimpleNamespace(
        ids=ids,
        stored=stored,
        vectors=vectors,
        index=index,
        meter=ChangeMeter(index.list_lengths(), index.assigned, ids, stored),
    )


def test_vectors_of_rows_are_read_from_the_files_of_all_shards(base):
    rows = np.array([2999, 0, 999, 1000, 5])
    np.testing.assert_array_equal(base.stored.of_rows(rows), base.vectors[rows])
    assert base.stored.of_rows(NONE).shape == (0, 32)


def test_nothing_has_changed_before_the_first_delta(base):
    assert base.meter.add(NONE, np.empty((0, 32), np.float32), NONE) == STILL


def test_share_and_drift_are_those_of_the_items_of_the_deltas(base):
    rows = np.arange(0, 60)
    turned = base.vectors[rows].copy()
    turned[:30] *= -1
    new = np.arange(10) + 10_000
    ids, vectors = np.concatenate([base.ids[rows], new]), np.concatenate([turned, base.vectors[:10]])
    base.meter.add(ids, vectors, NONE)
    change = base.meter.add(NONE, np.empty((0, 32), np.float32), base.ids[100:103])
    assert change.share == pytest.approx(70 / ITEMS)
    assert change.drift == pytest.approx(1.0 * 60 / ITEMS, rel=1e-5)
    assert change.imbalance == pytest.approx(1.0, abs=0.2)


def test_items_that_come_again_or_are_deleted_count_once_or_not_at_all(base):
    new = np.arange(300) + 10_000
    base.meter.add(new, base.vectors[:300], NONE)
    once = base.meter.add(new[:150], base.vectors[:150], NONE)
    assert (once.share, base.meter.items) == (pytest.approx(300 / ITEMS), 300)
    back = base.meter.add(base.ids[:5], -base.vectors[:5], new)
    assert (back.share, base.meter.items) == (pytest.approx(5 / ITEMS), 5)
    assert back.drift == pytest.approx(2.0 * 5 / ITEMS, rel=1e-5)
    gone = base.meter.add(NONE, np.empty((0, 32), np.float32), base.ids[:5])
    assert (gone.drift, gone.imbalance, base.meter.items) == (0, pytest.approx(1.0), 0)
    assert gone.share == pytest.approx(5 / ITEMS)


def test_items_that_all_go_to_one_list_make_it_longer(base):
    same = np.repeat(base.vectors[:1], 600, axis=0)
    change = base.meter.add(np.arange(600) + 10_000, same, NONE)
    lengths = base.index.list_lengths().astype(float)
    longer = lengths.copy()
    longer[base.index.assigned(base.vectors[:1])] += 600
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
