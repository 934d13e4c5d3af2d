"""KeyIndex against a Python dict."""

import numpy as np

from model.key_index import KeyIndex


def test_keys_get_dense_indices_in_order_of_arrival_as_a_dict_would_give():
    rng = np.random.default_rng(0)
    index, expected = KeyIndex(4), {}
    for _ in range(20):
        tables = rng.integers(0, 3, 500).astype(np.int16)
        ids = rng.integers(-(2**62), 2**62, 500) % 997 - 300
        got = index.add(tables, ids)
        want = [
            expected.setdefault((t, i), len(expected))
            for t, i in zip(tables.tolist(), ids.tolist(), strict=True)
        ]
        assert got.tolist() == want
    assert len(index) == len(expected)
    tables, ids = index.keys()
    assert list(zip(tables.tolist(), ids.tolist(), strict=True)) == list(expected)


def test_a_key_that_was_never_added_is_not_found_and_the_same_id_of_another_table_is_another_key():
    index = KeyIndex()
    index.add(np.array([0, 1], np.int16), np.array([7, 7], np.int64))
    found = index.find(np.array([0, 1, 2, 0], np.int16), np.array([7, 7, 7, 8], np.int64))
    assert found.tolist() == [0, 1, -1, -1]


def test_extreme_ids_are_ordinary_keys():
    ids = np.array([0, -1, np.iinfo(np.int64).min, np.iinfo(np.int64).max], np.int64)
    index = KeyIndex(1)
    assert index.add(np.zeros(4, np.int16), ids).tolist() == [0, 1, 2, 3]
    assert index.find(np.zeros(4, np.int16), ids).tolist() == [0, 1, 2, 3]


def test_a_map_that_outgrows_its_first_memory_keeps_every_key():
    # Past 65,536 entries slots and keys move, once, to memory that grows in place.
    ids, tables = (
        np.random.default_rng(1).permutation(300_000) * 7919,
        (np.arange(300_000) % 3).astype(np.int16),
    )
    index = KeyIndex()
    for start in range(0, 300_000, 20_000):
        added = slice(start, start + 20_000)
        assert index.add(tables[added], ids[added]).tolist() == list(range(start, start + 20_000))
        assert (index.keys()[0] == tables[: added.stop]).all()
        assert (index.keys()[1] == ids[: added.stop]).all()
        assert (index.find(tables[: added.stop], ids[: added.stop]) == np.arange(added.stop)).all()
    assert (index.find(tables, ids + 1) == -1).all()
