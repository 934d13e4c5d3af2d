"""On one process a sharded table is the unsharded reference of `model.embedding`."""

import numpy as np
import torch

from cluster.collectives import Collectives
from cluster.tables.row_optimizer import row_optimizer
from cluster.tables.sharded_embedding import ShardedEmbedding
from tests.support.embedding_rows import EmbeddingRows

DIM = 6


def _table(kind="adam"):
    return ShardedEmbedding(DIM, Collectives(), row_optimizer(kind), seed=4, device=torch.device("cpu"))


def _keys(rng, count):
    pairs = np.unique(rng.integers(0, 60, (count, 2)) % [4, 60], axis=0)
    rng.shuffle(pairs)
    return pairs[:, 0].astype(np.int16), pairs[:, 1].astype(np.int64) - 30


def test_rows_and_moments_follow_the_unsharded_reference_step_by_step():
    rng = np.random.default_rng(5)
    table, reference = _table(), EmbeddingRows(DIM, seed=4)
    for step in range(6):
        tables, ids = _keys(rng, 40)
        lookup, (rows_UD, index_U) = table.lookup(tables, ids), reference.lookup(tables, ids)
        torch.testing.assert_close(lookup.rows_UD.detach(), rows_UD.detach(), atol=1e-6, rtol=1e-5)
        assert not lookup.rows_UD[0].any()
        weight = torch.from_numpy(rng.normal(size=(ids.shape[0] + 1, 1)).astype(np.float32))
        for rows in (lookup.rows_UD, rows_UD):
            (rows.square() * weight + rows * 3).sum().backward()
        table.apply_gradients(lookup, 0.05 + step / 100)
        reference.apply_gradients(index_U, rows_UD.grad, 0.05 + step / 100)
    where = torch.from_numpy(reference.index.find(*table.index.keys()))
    size = len(table)
    assert size == len(reference) > 100
    for mine, theirs in (
        (table.values_CD, reference.values_CD),
        (table.state["first_moment"], reference.first_moment_CD),
        (table.state["updates"], reference.updates_C),
    ):
        torch.testing.assert_close(mine[:size], theirs[where], atol=1e-6, rtol=1e-5)


def test_the_padding_row_gets_no_update_whatever_its_gradient():
    table = _table()
    lookup = table.lookup(np.zeros(2, np.int16), np.array([1, 2]))
    before = table.values_CD[:2].clone()
    lookup.rows_UD[0].sum().backward()
    table.apply_gradients(lookup, 0.1)
    assert torch.equal(table.values_CD[:2], before)


def test_a_step_whose_rows_nothing_depends_on_is_a_step_with_zero_gradients():
    table = _table("adagrad")
    lookup = table.lookup(np.zeros(2, np.int16), np.array([1, 2]))
    before = table.values_CD[:2].clone()
    table.apply_gradients(lookup, 0.1)
    assert torch.equal(table.values_CD[:2], before)


def test_frequencies_add_up_and_a_key_without_a_row_has_none():
    table = _table()
    tables = np.zeros(2, np.int16)
    assert table.frequencies(tables, np.array([5, 6])).tolist() == [0.0, 0.0]
    table.count(tables, np.array([5, 6]), np.array([1.5, 2.0]), 100)
    table.count(tables[:1], np.array([5]), np.array([1.0]), 90)
    assert table.frequencies(np.zeros(3, np.int16), np.array([6, 7, 5])).tolist() == [2.0, 0.0, 2.5]
    assert table.last_seen_ms_C[:2].tolist() == [100, 100]


def _changed_keys(table):
    rows, removed = table.take_changes()
    assert (np.diff(rows) > 0).all()
    keys = zip(*(part.tolist() for part in table.keys_of(rows)), strict=True)
    return set(keys), set(zip(*(part.tolist() for part in removed), strict=True))


def test_changes_are_what_was_made_trained_or_counted_since_they_were_last_taken():
    table, zeros = _table(), np.zeros(3000, np.int16)
    table.lookup(zeros[:3], np.array([1, 2, 3]))
    assert _changed_keys(table) == ({(0, 1), (0, 2), (0, 3)}, set())
    assert _changed_keys(table) == (set(), set())
    table.lookup(zeros[:2], np.array([1, 2]))
    table.lookup(zeros[:2], np.array([1, 77]), create=False)
    assert _changed_keys(table) == (set(), set()), "a lookup alone changes nothing"
    lookup = table.lookup(zeros[:2], np.array([1, 2]))
    lookup.rows_UD.sum().backward()
    table.apply_gradients(lookup, 0.1)
    table.count(zeros[:1], np.array([3]), np.ones(1), 5)
    table.lookup(zeros, np.arange(10_000, 13_000))  # grows
    keys, _ = _changed_keys(table)
    assert keys == {(0, 1), (0, 2), (0, 3)} | {(0, k) for k in range(10_000, 13_000)}
    table.mark_changed(table.rows())
    assert len(_changed_keys(table)[0]) == len(table) == 3003


def test_rows_that_are_loaded_are_not_marked_as_changed():
    table, loaded = _table(), _table()
    table.lookup(np.zeros(3, np.int16), np.array([1, 2, 3]))
    rows = table.rows()
    state = {name: tensor[rows] for name, tensor in table.state.items()}
    columns = table.values_CD[rows], state, table.frequency_C[rows], table.last_seen_ms_C[rows]
    loaded.load(*table.keys_of(rows), *columns)
    assert torch.equal(loaded.values_CD[:3], table.values_CD[:3])
    assert _changed_keys(loaded) == (set(), set())
