"""Initial rows and the unsharded reference of the tables."""

import numpy as np
import torch

from model.embedding import initial_rows
from tests.support.embedding_rows import EmbeddingRows


def _keys(*pairs):
    return np.array([t for t, _ in pairs], np.int16), np.array([i for _, i in pairs], np.int64)


def test_an_initial_row_is_a_function_of_seed_table_and_id_alone():
    tables, ids = np.repeat(np.arange(3, dtype=np.int16), 50), np.tile(np.arange(50), 3)
    rows = initial_rows(tables, ids, 16, 7)
    order = np.random.default_rng(0).permutation(150)
    np.testing.assert_array_equal(initial_rows(tables[order], ids[order], 16, 7), rows[order])
    assert np.unique(rows, axis=0).shape[0] == 150
    assert not np.array_equal(initial_rows(tables, ids, 16, 8), rows)


def test_the_number_of_threads_changes_no_row():
    tables, ids = np.zeros(9000, np.int16), np.arange(9000)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(initial_rows(tables, ids, 5, 7))
    finally:
        torch.set_num_threads(before)
    assert np.unique(found[0], axis=0).shape[0] == 9000
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])


def test_initial_rows_are_normal_with_the_given_deviation_and_uncorrelated():
    rows = initial_rows(np.zeros(20_000, np.int16), np.arange(20_000), 6, -3, 0.5)
    assert rows.dtype == np.float32
    assert np.abs(rows.mean(0)).max() < 0.015
    assert np.abs(rows.std(0) - 0.5).max() < 0.01
    assert abs(float((np.abs(rows) < 0.5).mean()) - 0.6827) < 0.005
    assert np.abs(np.corrcoef(rows.T) - np.eye(6)).max() < 0.03


def test_an_odd_width_is_filled_and_shares_its_columns_with_the_next_even_one():
    tables, ids = _keys((0, 1), (1, 2))
    np.testing.assert_array_equal(initial_rows(tables, ids, 5, 1), initial_rows(tables, ids, 6, 1)[:, :5])


def test_rows_come_back_in_key_order_after_a_zero_row_and_keep_what_they_learnt():
    table = EmbeddingRows(4, seed=1)
    rows, index = table.lookup(*_keys((0, 5), (1, 5)))
    assert rows[0].tolist() == [0.0] * 4
    table.apply_gradients(index, torch.ones_like(rows), 0.1)
    again, _ = table.lookup(*_keys((2, 9), (1, 5), (0, 5)))
    assert torch.allclose(again[2], rows[2] - 0.1, atol=1e-6)
    assert torch.equal(again[3], table.values_CD[0])
    np.testing.assert_array_equal(again[1].detach().numpy(), initial_rows(*_keys((2, 9)), 4, 1)[0])  # type: ignore[call-arg]
    assert len(table) == 3


def test_a_row_that_every_step_touches_is_trained_as_torch_adam_would():
    table = EmbeddingRows(3, seed=1)
    reference = torch.nn.Parameter(torch.from_numpy(initial_rows(*_keys((0, 1), (0, 2)), 3, 1)))  # type: ignore[call-arg]
    adam = torch.optim.Adam([reference], lr=0.01)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        gradient = torch.randn(2, 3, generator=generator)
        _, index = table.lookup(*_keys((0, 1), (0, 2)))
        table.apply_gradients(index, torch.cat([torch.full((1, 3), 9.0), gradient]), 0.01)
        reference.grad = gradient
        adam.step()
    assert torch.allclose(table.values_CD, reference.detach(), atol=1e-6)
