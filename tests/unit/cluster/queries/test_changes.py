"""A query side that took the changes of deltas equals one that was loaded whole from the state after them."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

from cluster.queries.changes import Changes, read_changes, write_changes
from cluster.queries.query_batch import query_batch
from cluster.queries.query_side import QuerySide
from cluster.tables.frozen_rows import RowWidthError
from streaming.catalogue.records import CatalogueUpdate
from streaming.events.schema import ITEM_SCHEMA, USER_SCHEMA
from tests.support.index_versions import publish_run
from tests.support.unit_runs import open_run, small_config, train_steps

pytestmark = pytest.mark.usefixtures("one_thread")


def _rows(table):
    local = table.rows()
    return (*table.keys_of(local), table.values_CD[local].numpy().copy())


def _since(table, before):
    """The rows that differ from an earlier copy, and the keys that have gone since, of one rank."""
    tables, ids, values = _rows(table)
    known = {(t, i): v for t, i, v in zip(before[0].tolist(), before[1].tolist(), before[2], strict=True)}
    now = list(zip(tables.tolist(), ids.tolist(), strict=True))
    differs = [k for k, key in enumerate(now) if key not in known or (known[key] != values[k]).any()]
    gone = sorted(set(known) - set(now))
    removed = np.array([t for t, _ in gone], np.int16), np.array([i for _, i in gone], np.int64)
    return (tables[differs], ids[differs], values[differs]), removed


def _deletion():
    items = pa.table([[3], pa.array([None], pa.string()), [[]], [True]], schema=ITEM_SCHEMA)
    users = pa.table([[5], [[0]], [True]], schema=USER_SCHEMA)
    return CatalogueUpdate(items, users)


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    """The first version's query side, changes of two deltas, and the query side of a version after them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    config = replace(small_config(), storage_path=str(tmp_path_factory.mktemp("run")))
    run = open_run(config)
    train_steps(run, 2)
    first = QuerySide.load(publish_run(run, config).version, config.stream)
    before, changes = _rows(run.table), []
    for update in (None, _deletion()):
        train_steps(run, 1)
        if update is not None:
            run.catalogue.apply(update)
            run.table.forget(np.array([0, 1], np.int16), np.array([3, 5]))
        rows, removed = _since(run.table, before)
        changes.append(Changes.of(rows, removed, update))
        before = _rows(run.table)
    after = QuerySide.load(publish_run(run, config).version, config.stream)
    torch.set_num_threads(threads)
    return SimpleNamespace(run=run, first=first, changes=changes, after=after, keys=before[:2])


def test_rows_catalogue_and_query_vectors_are_bit_for_bit_those_of_the_state_after(sides):
    advanced = sides.first
    for changes in sides.changes:
        advanced = advanced.advance(changes)
    keys = sides.keys
    assert torch.equal(advanced.rows.rows_of(*keys), sides.after.rows.rows_of(*keys))
    assert not torch.equal(sides.first.rows.rows_of(*keys), sides.after.rows.rows_of(*keys))
    ids = np.arange(60)
    for name in ("categories", "knows", "is_deleted", "user_attributes", "titles"):
        found, wanted = (getattr(side.catalogue, name)(ids) for side in (advanced, sides.after))
        assert np.asarray(found).tolist() == np.asarray(wanted).tolist()
    run, users = sides.run, np.arange(1, 31)
    batch = query_batch(users, run.users, advanced.catalogue, run.config.stream.history_length)
    wanted = replace(sides.after, model=sides.first.model).encode(batch)
    np.testing.assert_array_equal(advanced.encode(batch), wanted)
    assert advanced.model is sides.first.model


def test_a_new_view_leaves_the_old_one_as_it_was(sides):
    keys = sides.keys
    before = sides.first.rows.rows_of(*keys), sides.first.catalogue.knows(np.arange(60)).tolist()
    one = sides.first.advance(sides.changes[0])
    of_one = one.rows.rows_of(*keys)
    one.advance(sides.changes[1])
    assert torch.equal(sides.first.rows.rows_of(*keys), before[0])
    assert sides.first.catalogue.knows(np.arange(60)).tolist() == before[1]
    assert torch.equal(one.rows.rows_of(*keys), of_one)


def test_a_deleted_item_and_a_deleted_user_are_gone(sides):
    advanced = sides.first.advance(sides.changes[0])
    gone = np.array([3]), np.array([5])
    assert advanced.catalogue.knows(gone[0]).tolist() == [True]
    assert advanced.catalogue.user_attributes(gone[1]).tolist() != [[0]]
    advanced = advanced.advance(sides.changes[1])
    assert advanced.catalogue.knows(gone[0]).tolist() == [False]
    assert advanced.catalogue.titles(gone[0]) == [""]
    assert advanced.catalogue.is_deleted_user(gone[1]).tolist() == [True]
    assert advanced.catalogue.user_attributes(gone[1]).tolist() == [[0]]


def _delta(folder):
    names = sorted(path.name for path in folder.iterdir())
    return SimpleNamespace(
        files=lambda prefix: [name for name in names if name.startswith(prefix)], file=folder.__truediv__
    )


def test_changes_of_several_ranks_are_read_as_they_were_written(sides, tmp_path):
    for rank, changes in enumerate(sides.changes):
        write_changes(tmp_path, rank, changes)
        assert (tmp_path / f"changes-{rank:04d}.arrow").stat().st_mode & 0o777 == 0o600
    (tmp_path / "items-0000.arrow").touch()
    found, wanted = read_changes(_delta(tmp_path)), Changes.joined(sides.changes)
    for name, value in vars(wanted.rows).items():
        assert getattr(found.rows, name).dtype == value.dtype
        np.testing.assert_array_equal(getattr(found.rows, name), value)
    assert found.catalogue.items.equals(wanted.catalogue.items)
    assert found.catalogue.users.equals(wanted.catalogue.users)


def test_a_delta_without_changes_has_no_file_or_an_empty_one(tmp_path):
    assert read_changes(_delta(tmp_path)) is None
    rows = np.zeros(0, np.int16), np.zeros(0, np.int64), np.zeros((0, 8), np.float32)
    write_changes(tmp_path, 0, Changes.of(rows))
    assert read_changes(_delta(tmp_path)).rows.values.shape == (0, 8)


def test_rows_of_another_model_are_refused(sides):
    rows = np.zeros(1, np.int16), np.ones(1, np.int64), np.zeros((1, 9), np.float32)
    with pytest.raises(RowWidthError, match="dimension 9, but the version's have 8"):
        sides.first.advance(Changes.of(rows))
