"""Rows written by one number of ranks are re-read by another: each row once, with everything it carries."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from cluster.checkpoints.arrays import write_table
from cluster.checkpoints.manifest import CheckpointError
from cluster.checkpoints.parts.rows import RowPart, load_rows, merged_rows, row_columns, save_rows
from cluster.collectives import Collectives
from cluster.tables.row_optimizer import row_optimizer
from cluster.tables.sharded_embedding import ShardedEmbedding

ROWS = 300


def _table(kind="adam", dim=6):
    return ShardedEmbedding(dim, Collectives(), row_optimizer(kind), seed=4, device=torch.device("cpu"))


def _trained(kind="adam", dim=6):
    rng = np.random.default_rng(0)
    table = _table(kind, dim)
    tables, ids = (np.arange(ROWS) % 5).astype(np.int16), rng.integers(-(2**62), 2**62, ROWS)
    for step in range(3):
        some = rng.permutation(ROWS)[: 100 * (step + 1)]
        lookup = table.lookup(tables[some], ids[some])
        lookup.rows_UD[1:].square().sum().backward()
        table.apply_gradients(lookup, 0.1)
        table.count(tables[some], ids[some], rng.random(some.shape[0]), 1000 + step)
    return table


def _content(table):
    """Everything that each row carries, by key."""
    size = len(table)
    tables, ids = table.index.keys()
    columns = [table.values_CD, *table.state.values()]
    parts = [column[:size].numpy().reshape(size, -1).astype(np.float64) for column in columns]
    parts += [table.frequency_C[:size, None], table.last_seen_ms_C[:size, None]]
    return dict(
        zip(
            zip(tables.tolist(), ids.tolist(), strict=True),
            np.concatenate(parts, axis=1).tolist(),
            strict=True,
        )
    )


@pytest.mark.parametrize("kind", ["adam", "adagrad"])
@pytest.mark.parametrize(("written_by", "read_by"), [(1, 1), (1, 2), (1, 3), (3, 2), (2, 1)])
def test_each_row_arrives_on_exactly_one_rank_with_optimizer_state_and_frequency(
    tmp_path, kind, written_by, read_by
):
    whole = _trained(kind)
    (tmp_path / "first").mkdir()
    files = [tmp_path / "first" / save_rows(tmp_path / "first", whole, 0, 1).name]
    if written_by > 1:
        files = _rewrite(files, tmp_path, kind, written_by)
    shares = [_table(kind) for _ in range(read_by)]
    for rank, share in enumerate(shares):
        load_rows(files, share, rank, read_by)
    assert sum(len(share) for share in shares) == ROWS
    assert all(len(share) > 0 for share in shares)
    together = {key: row for share in shares for key, row in _content(share).items()}
    assert together == _content(whole)


@pytest.mark.parametrize("seed", range(3))
def test_a_base_whose_slices_are_copied_late_or_early_is_with_its_changes_the_table_as_it_ends(
    tmp_path, monkeypatch, seed
):
    """Rows are trained on, removed, added in the place of others, and removed again between the keys and the copy."""
    monkeypatch.setattr("cluster.checkpoints.parts.rows._SLICE_BYTES", 1)
    monkeypatch.setattr("cluster.checkpoints.parts.rows._LEAST_ROWS", 16)
    rng, table = np.random.default_rng(seed), _trained()
    part = RowPart(table, 0, 1)
    part.forget()

    def disturb():
        tables, ids = table.keys_of(table.rows())
        gone = rng.permutation(len(ids))[:20]
        table.remove(tables[gone], ids[gone])
        fresh = rng.integers(1, 60, 12)  # keys that come, go and come back
        some = rng.permutation(np.setdiff1d(np.arange(len(ids)), gone))[:30]
        keys = np.append(tables[some], np.zeros(12, np.int16)), np.append(ids[some], fresh)
        first = np.unique(np.stack(keys), axis=1, return_index=True)[1]
        lookup = table.lookup(keys[0][first], keys[1][first])
        lookup.rows_UD[1:].square().sum().backward()
        table.apply_gradients(lookup, 0.1)
        table.count(keys[0][first], keys[1][first], rng.random(first.shape[0]), 2000)

    waiting, copied = [], []
    for file, piece in part.base():
        waiting.append((file, piece))
        while waiting and rng.random() < 0.4:
            copied.append((waiting[0][0], waiting.pop(0)[1]()))
        if rng.random() < 0.6:
            disturb()
    copied += [(file, piece()) for file, piece in waiting]
    disturb()
    (base_name,) = {name for name, _ in copied}
    written = {base_name: pa.concat_tables(piece for _, piece in copied), **part.changes()}
    assert all(content.num_rows for content in written.values())
    files = [tmp_path / write_table(tmp_path / name, content).name for name, content in written.items()]
    loaded = _table()
    load_rows(files, loaded, 0, 1)
    expected = row_columns(table, table.rows()).sort_by([("table", "ascending"), ("id", "ascending")])
    assert (
        row_columns(loaded, loaded.rows())
        .sort_by([("table", "ascending"), ("id", "ascending")])
        .equals(expected)
    )
    assert merged_rows(files).equals(expected)


def _rewrite(files, folder, kind, world):
    out = []
    for rank in range(world):
        share = _table(kind)
        load_rows(files, share, rank, world)
        out.append(folder / save_rows(folder, share, rank, world).name)
    assert len(set(out)) == world
    return out


def test_a_row_goes_on_training_as_if_it_had_not_been_saved(tmp_path):
    whole, loaded = _trained(), _table()
    load_rows([tmp_path / save_rows(tmp_path, whole, 0, 1).name], loaded, 0, 1)
    tables, ids = whole.index.keys()
    for table in (whole, loaded):
        lookup = table.lookup(tables, ids)
        (lookup.rows_UD[1:] * torch.arange(6.0)).sum().backward()
        table.apply_gradients(lookup, 0.05)
    assert _content(loaded) == _content(whole)


def test_a_table_without_rows_is_saved_and_loaded(tmp_path):
    loaded = _table()
    load_rows([tmp_path / save_rows(tmp_path, _table(), 0, 1).name], loaded, 0, 1)
    assert len(loaded) == 0


def test_rows_of_another_dimension_are_refused_in_one_line_that_names_the_setting(tmp_path):
    file = tmp_path / save_rows(tmp_path, _trained(dim=6), 0, 1).name
    with pytest.raises(CheckpointError, match=r"dimension 6, but model.dim is 8") as refused:
        load_rows([file], _table(dim=8), 0, 1)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("written", "wanted"), [("adam", "adagrad"), ("adagrad", "adam")])
def test_rows_of_another_row_optimizer_are_refused_by_the_settings_name(tmp_path, written, wanted):
    file = tmp_path / save_rows(tmp_path, _trained(written), 0, 1).name
    with pytest.raises(CheckpointError, match=r"train\.row_optimizer"):
        load_rows([file], _table(wanted), 0, 1)


def test_a_versions_rows_are_read_without_what_their_optimizer_knew(tmp_path):
    whole, loaded = _trained(), _table()
    file = tmp_path / save_rows(tmp_path, whole, 0, 1, state=False).name
    load_rows([file], loaded, 0, 1, state=False)
    keys = whole.keys_of(whole.rows())
    assert torch.equal(loaded.values_CD[loaded.index.find(*keys)], whole.values_CD[whole.index.find(*keys)])
    assert not any(tensor.any() for tensor in loaded.state.values())
    with_state = row_columns(whole, whole.rows())
    assert file.stat().st_size < 0.6 * with_state.nbytes
    with pytest.raises(CheckpointError, match="no optimizer state"):
        load_rows([file], _table(), 0, 1)
