"""Frozen rows of any chain of checkpoints are bit for bit those of a table that was restored from it."""

from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import torch
from hypothesis import given
from hypothesis import strategies as st

from cluster.checkpoints.arrays import write_table
from cluster.checkpoints.attribute_change import UNCHANGED, AttributeChange
from cluster.checkpoints.parts.rows import RowPart, load_rows, write_frozen_rows
from cluster.collectives import Collectives
from cluster.tables.buckets import bucket_range, in_range
from cluster.tables.config import TableConfig
from cluster.tables.frozen_rows import FrozenRows, RowSettings, of_buckets, of_keys
from cluster.tables.row_optimizer import row_optimizer
from cluster.tables.sharded_embedding import ShardedEmbedding
from model.features import ITEM, attribute_table

DIM, SEED, STD = 5, 3, 0.1
TABLES = np.array([0, 1, 2, 4, attribute_table(0), attribute_table(1), attribute_table(2)], np.int16)
CHANGE = AttributeChange(["a", "b", "c"], ["c", "new", "a"])


def _table(admit_after):
    return ShardedEmbedding(
        DIM,
        Collectives(),
        row_optimizer("adagrad"),
        seed=SEED,
        device=torch.device("cpu"),
        init_std=STD,
        limits=TableConfig(admit_after=admit_after),
    )


def _keys(rng, count):
    tables, ids = TABLES[rng.integers(0, len(TABLES), count)], rng.integers(1, 40, count)
    first = np.unique(tables.astype(np.int64) * 1000 + ids, return_index=True)[1]
    return tables[first], ids[first]


def _disturb(table, rng):
    """A step, an event count, and removals."""
    tables, ids = _keys(rng, 60)
    lookup = table.lookup(tables, ids)
    (lookup.rows_UD[1:] * torch.from_numpy(rng.random((len(ids), DIM), np.float32))).sum().backward()
    table.apply_gradients(lookup, 0.1)
    items = tables == ITEM
    table.count(tables[items], ids[items], rng.random(items.sum()), 1000)
    table.forget(*_keys(rng, 12))


def _write(folder, content, world):
    """The files of one checkpoint as `world` ranks would have written them."""
    folder.mkdir()
    for name, table in sorted(content.items()):
        kind = name.partition(".")[2]
        tables, ids = (np.ascontiguousarray(table[column].to_numpy()) for column in ("table", "id"))
        for rank in range(world):
            low, high = bucket_range(rank, world)
            mine = table.filter(pa.array(in_range(tables, ids, (low, high))))
            write_table(folder / f"rows-{low:04d}-{high:04d}.{kind}", mine)
    return sorted(folder.iterdir())


def _chain(folder, table, rng, worlds):
    part, files = RowPart(table, 0, 1), []
    for number, world in enumerate(worlds):
        _disturb(table, rng)
        if number == 0:
            part.forget()
            pieces = [(name, piece) for name, piece in part.base()]
            _disturb(table, rng)  # between the keys of a base and its copy
            written = {pieces[0][0]: pa.concat_tables(piece() for _, piece in pieces)}
        else:
            written = {}
        files += _write(folder / str(number), written | part.changes(), world)
    return files


def _frozen(files, admit_after, **arguments):
    settings = RowSettings(DIM, SEED, STD, admit_after > 1)
    return FrozenRows([SimpleNamespace(stem=f.stem, path=f) for f in files], settings, **arguments)


def _every_key():
    tables, ids = np.meshgrid(TABLES, np.arange(1, 60))
    return np.ascontiguousarray(tables.ravel()), np.ascontiguousarray(ids.ravel())


@given(
    seed=st.integers(0, 2**32),
    worlds=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    admit_after=st.sampled_from([1.0, 2.0]),
    changed=st.booleans(),
    readers=st.integers(1, 3),
)
def test_frozen_rows_are_those_of_a_restored_table(seed, worlds, admit_after, changed, readers):
    rng, change = np.random.default_rng(seed), CHANGE if changed else UNCHANGED
    rekey = change.tables_now if changed else None
    keys = _every_key()
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = _chain(folder, _table(admit_after), rng, worlds)
        restored = _table(admit_after)
        load_rows(files, restored, 0, 1, attributes=change)
        wanted = restored.lookup(*keys, create=False).rows_UD
        whole = _frozen(files, admit_after, rekey=rekey)
        assert len(whole) == len(restored)
        assert torch.equal(whole.rows_of(*keys), wanted)
        some = rng.permutation(len(keys[0]))[:20]
        chosen = keys[0][some], keys[1][some]
        few = _frozen(files, admit_after, rekey=rekey, wanted=of_keys(*chosen))
        assert len(few) <= 40
        assert torch.equal(few.rows_of(*chosen), restored.lookup(*chosen, create=False).rows_UD)
        (folder / "version").mkdir()
        for rank in range(readers):
            buckets = bucket_range(rank, readers)
            share = _frozen(files, admit_after, rekey=rekey, wanted=of_buckets(buckets))
            mine = in_range(keys[0], keys[1], buckets)
            rows = share.rows_of(keys[0][mine], keys[1][mine])
            assert torch.equal(rows[1:], wanted[1:][torch.from_numpy(mine)])
            write_frozen_rows(folder / "version", share, rank, readers)
        published = _frozen(sorted((folder / "version").iterdir()), admit_after)
        assert len(published) == len(restored)
        assert torch.equal(published.rows_of(*keys), wanted)
