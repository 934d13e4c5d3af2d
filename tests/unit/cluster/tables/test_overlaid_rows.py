"""Rows after any sequence of changes are those of files with all of them, and no view changes an earlier one."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

from cluster.checkpoints.arrays import write_table
from cluster.tables.buckets import shared_keys
from cluster.tables.frozen_rows import FrozenRows, RowSettings, RowWidthError
from cluster.tables.overlaid_rows import OverlaidRows, RowChanges
from model.features import ITEM, USER

DIM = 4
TABLES = np.array([ITEM, USER, 2], np.int16)


def _table(tables, ids, values=None):
    columns = {"table": pa.array(tables, pa.int16()), "id": pa.array(ids, pa.int64())}
    if values is not None:
        columns["value"] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    return pa.table(columns)


def _frozen(files, shared):
    settings = RowSettings(DIM, 3, 0.1, shared)
    return FrozenRows([SimpleNamespace(stem=f.stem, path=f) for f in files], settings)


def _every_key():
    tables, ids = np.meshgrid(TABLES, np.arange(1, 80))
    return np.ascontiguousarray(tables.ravel()), np.ascontiguousarray(ids.ravel())


def _some_keys(rng, count):
    tables, ids = _every_key()
    some = rng.choice(len(ids), count, replace=False)
    tables, ids = tables[some], ids[some]
    endless = np.isin(tables, [ITEM, USER]) & (rng.random(count) < 0.3)
    shared = shared_keys(tables, ids)
    tables, ids = np.where(endless, shared[0], tables), np.where(endless, shared[1], ids)
    first = np.unique(tables.astype(np.int64) * 10_000 + ids, return_index=True)[1]
    return tables[first], ids[first]


def _changes(rng, rows=30, removed=8):
    tables, ids = _some_keys(rng, rows)
    return RowChanges(tables, ids, rng.random((len(ids), DIM), np.float32), *(_some_keys(rng, removed)))


@pytest.mark.parametrize("shared", [False, True])
def test_rows_after_changes_are_bit_for_bit_those_of_files_with_all_of_them(tmp_path, shared):
    rng, keys = np.random.default_rng(5), _every_key()
    first = _changes(rng, 100)
    files = [tmp_path / "rows-0000-4096.arrow"]
    write_table(files[0], _table(first.tables, first.ids, first.values))
    views = [OverlaidRows(_frozen(files, shared))]
    wanted = [views[0].rows_of(*keys)]
    for number in range(12):
        changes = _changes(rng, int(rng.integers(1, 60)), int(rng.integers(0, 10)))
        views.append(views[-1].with_changes(changes))
        gone, rows = tmp_path / f"rows-{number}.removed.arrow", tmp_path / f"rows-{number}.changes.arrow"
        write_table(gone, _table(changes.removed_tables, changes.removed_ids))
        write_table(rows, _table(changes.tables, changes.ids, changes.values))
        files += [gone, rows]
        wanted.append(_frozen(files, shared).rows_of(*keys))
    for view, expected in zip(views, wanted, strict=True):
        assert torch.equal(view.rows_of(*keys), expected)
    assert not torch.equal(wanted[-1], wanted[0])
    assert all(view._base is views[0]._base for view in views)


def test_what_a_change_costs_follows_the_change_and_not_what_is_below(tmp_path):
    path = tmp_path / "rows-0000-4096.arrow"
    ids = np.arange(1, 200_001)
    write_table(path, _table(np.full(len(ids), ITEM), ids, np.ones((len(ids), DIM), np.float32)))
    view, copied, changed = OverlaidRows(_frozen([path], False)), 0, 0
    nothing = np.zeros(0, np.int16), np.zeros(0, np.int64)
    for number in range(256):
        some = 1 + (np.arange(20) + 20 * number)
        before = {id(level) for level in view._levels}
        view = view.with_changes(
            RowChanges(np.full(20, ITEM, np.int16), some, np.zeros((20, DIM), np.float32), *nothing)
        )
        copied += sum(len(level) for level in view._levels if id(level) not in before)
        changed += 20
        assert len(view._levels) <= 9
    assert copied <= 9 * changed
    found = view.rows_of(np.full(3, ITEM, np.int16), np.array([1, changed, changed + 1]))
    assert found[1:].sum(1).tolist() == [0, 0, DIM]


def test_hot_rows_that_change_each_time_are_held_a_few_times_at_most(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "rows-0000-4096.arrow"
    write_table(path, _table(np.zeros(0), np.zeros(0), np.zeros((0, DIM), np.float32)))
    view = OverlaidRows(_frozen([path], False))
    for _ in range(100):
        view = view.with_changes(_changes(rng))
    assert sum(len(level) for level in view._levels) <= 2 * 3 * 80


def test_changes_of_another_width_are_refused_and_none_keep_the_view(tmp_path):
    path = tmp_path / "rows-0000-4096.arrow"
    write_table(path, _table(np.zeros(0), np.zeros(0), np.zeros((0, DIM), np.float32)))
    view = OverlaidRows(_frozen([path], False))
    one, nothing = (
        (np.zeros(1, np.int16), np.zeros(1, np.int64)),
        (np.zeros(0, np.int16), np.zeros(0, np.int64)),
    )
    with pytest.raises(RowWidthError, match="dimension 7, but the version's have 4"):
        view.with_changes(RowChanges(*one, np.zeros((1, 7), np.float32), *nothing))
    assert view.with_changes(RowChanges(*nothing, np.zeros((0, DIM), np.float32), *nothing)) is view
