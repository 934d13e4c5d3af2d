"""Embedding rows as Arrow files: written by bucket range, read by the ranks that own the buckets now.

| file | holds |
|---|---|
| `rows-LLLL-HHHH.arrow` | all rows of the range, copied in slices during training |
| `rows-LLLL-HHHH.baseN.arrow` | if many rows have changed, these rows, also copied in slices; N from 1 on |
| `rows-LLLL-HHHH.changes.arrow` | complete rows that are new or differ from the previous files |
| `rows-LLLL-HHHH.removed.arrow` | keys that no longer have a row |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from cluster.checkpoints.arrays import StoredContent, read_table, write_table
from cluster.checkpoints.attribute_change import UNCHANGED, AttributeChange
from cluster.checkpoints.manifest import START_ANEW, CheckpointError
from cluster.checkpoints.part import Part, Saved
from cluster.checkpoints.parts.row_copies import RowCopies
from cluster.tables.buckets import bucket_range, buckets_of
from cluster.tables.frozen_rows import REMOVED, FrozenRows, RowSettings, RowWidthError, Wanted
from cluster.tables.sharded_embedding import ShardedEmbedding
from model.key_index import KeyIndex
from retrieval.storage.durable import PRIVATE_FILE, FileEntry, naming
from streaming.arrays import Int16Array, Int64Array

PREFIX = "rows-"
_SLICE_BYTES, _LEAST_ROWS = 1 << 22, 256

RowFile = Path | StoredContent


class RowPart(Part):
    """The rows of one rank.

    Args:
        table: this rank's.
        rank: this rank.
        world: number of ranks.
    """

    names = (PREFIX,)
    learnt = True

    def __init__(self, table: ShardedEmbedding, rank: int, world: int) -> None:
        self._table, self._rank, self._world = table, rank, world
        low, high = bucket_range(rank, world)
        self._stem = f"{PREFIX}{low:04d}-{high:04d}"
        self._gone = KeyIndex()
        """Keys with a row in the parent but none when changes were last copied in slices."""

    def forget(self) -> None:
        """See Part."""
        self._table.take_changes()
        self._gone = KeyIndex()

    def base(self) -> Iterator[tuple[str, Callable[[], pa.Table]]]:
        """See Part. Keys are copied here, values and state when a slice is called, from rows that may be changing.

        Only rows that have not changed since `forget` are included. Changed rows are complete in `changes`, which also
        names rows removed since `forget`, and the same holds for rows that change or go after their keys were copied.
        """
        return self._slices(f"{self._stem}.arrow", self._table.rows())

    def changed_bytes(self) -> int:
        """See Part."""
        return self._table.changed_count * _row_bytes(self._table)

    def changes_in_slices(self, number: int) -> Iterator[tuple[str, Callable[[], pa.Table]]]:
        """See Part."""
        changed, gone = self._table.take_changes()
        self._gone.add(*gone)
        return self._slices(f"{self._stem}.base{number}.arrow", changed)

    def _slices(self, file: str, rows: Int64Array) -> Iterator[tuple[str, Callable[[], pa.Table]]]:
        at_once = max(_LEAST_ROWS, _SLICE_BYTES // _row_bytes(self._table))
        copies = RowCopies.beside_training(self._table.device, at_once * _row_bytes(self._table))
        for start in range(0, max(1, rows.shape[0]), at_once):
            some = rows[start : start + at_once]
            yield file, _later(self._table, some[self._table.untouched(some)], copies)

    def changes(self) -> dict[str, pa.Table]:
        """See Part."""
        changed, gone = self._table.take_changes()
        self._gone.add(*gone)
        tables, ids = self._gone.keys()
        away = self._table.index.find(tables, ids) < 0
        tables, ids = tables[away], ids[away]
        self._gone = KeyIndex()
        return {
            f"{self._stem}.changes.arrow": row_columns(self._table, changed),
            f"{self._stem}{REMOVED}.arrow": pa.table({"table": tables, "id": ids}),
        }

    def restore(self, saved: Saved) -> None:
        """See Part."""
        load_rows(
            saved.files(PREFIX),
            self._table,
            self._rank,
            self._world,
            attributes=saved.attributes,
            advice=saved.advice,
        )


def row_columns(table: ShardedEmbedding, local: Int64Array, *, state: bool = True) -> pa.Table:
    """Copies of rows with their frequency, last-seen time and, with `state`, their optimizer state."""
    tables, ids = table.keys_of(local)
    return _columns(table, local, pa.array(tables), pa.array(ids), RowCopies(None, 0), state)


def _later(table: ShardedEmbedding, local: Int64Array, copies: RowCopies) -> Callable[[], pa.Table]:
    """The same; the keys are copied now, the values when it is called."""
    tables, ids = table.keys_of(local)
    return partial(_columns, table, local, pa.array(tables), pa.array(ids), copies)


def _columns(
    table: ShardedEmbedding,
    local: Int64Array,
    tables: pa.Array,
    ids: pa.Array,
    copies: RowCopies,
    state: bool = True,
) -> pa.Table:
    tensors = {"value": table.values_CD}
    if state:
        tensors |= {f"state.{name}": tensor for name, tensor in table.state.items()}
    found = dict(zip(tensors, map(_column, copies.read(list(tensors.values()), local)), strict=True))
    return pa.table(
        {
            "table": tables,
            "id": ids,
            "value": found.pop("value"),
            "frequency": pa.array(table.frequency_C[local]),
            "last_seen_ms": pa.array(table.last_seen_ms_C[local]),
            **found,
        }
    )


def save_rows(
    directory: Path, table: ShardedEmbedding, rank: int, world: int, *, state: bool = True
) -> FileEntry:
    """Write every row of this rank into a folder; without `state`, training cannot continue from them."""
    low, high = bucket_range(rank, world)
    return write_table(
        directory / f"{PREFIX}{low:04d}-{high:04d}.arrow", row_columns(table, table.rows(), state=state)
    )


def load_rows(
    files: Sequence[RowFile],
    table: ShardedEmbedding,
    rank: int,
    world: int,
    *,
    attributes: AttributeChange = UNCHANGED,
    advice: str = START_ANEW,
    state: bool = True,
) -> None:
    """Read the rows whose buckets this rank owns, from files written by any number of ranks.

    Args:
        files: of a folder or of a chain of checkpoints, the full one's first.
        table: gets the rows; the last file with a key wins.
        rank: this rank.
        world: number of ranks.
        attributes: a change of the user attributes since the files were written; their rows get other keys.
        advice: what can be done about rows that do not fit, for the error.
        state: whether the optimizer's state is read; without it, it is zero.
    Raises:
        CheckpointError: rows of another dimension or row optimizer; ends with `advice`.
    """
    low, high = bucket_range(rank, world)
    moved = attributes.changed
    # A changed key is in another bucket, so rows that move may come from any file.
    mine = [file for file in files if moved or _overlaps(file, low, high)]
    gone = _gone(mine)
    for file in mine:
        if file.stem.endswith(REMOVED):
            continue
        for rows in read_table(file).to_batches():
            tables, ids = _keys(rows)
            wanted = np.ones(rows.num_rows, np.bool_)
            if file in gone:
                wanted = gone[file].find(tables, ids) < 0
            if moved:
                tables, kept = attributes.tables_now(tables)
                wanted &= kept
                rows = rows.set_column(rows.column_names.index("table"), "table", pa.array(tables))
            buckets = buckets_of(tables, ids)
            wanted &= (buckets >= low) & (buckets < high)
            _insert(rows if wanted.all() else rows.filter(pa.array(wanted)), table, file, advice, state)


def frozen_rows(saved: Saved, settings: RowSettings, *, wanted: Wanted | None = None) -> FrozenRows:
    """The rows of a checkpoint's chain or of an index version, mapped and read-only.

    Args:
        saved: their location, and how the user attributes have changed since.
        settings: current ones of the model and its tables.
        wanted: see `FrozenRows`.
    Raises:
        CheckpointError: rows of another dimension, or a file is missing or damaged.
    """
    rekey = saved.attributes.tables_now if saved.attributes.changed else None
    try:
        return FrozenRows(saved.here(PREFIX), settings, rekey=rekey, wanted=wanted)
    except RowWidthError as error:
        raise CheckpointError(f"{error}; set it back or {saved.advice}") from error


def write_frozen_rows(folder: Path, rows: FrozenRows, rank: int, world: int) -> None:
    """Write the rows of this rank's buckets into an index version that is being built, in slices.

    They have only what a query needs (table, id, and value), so training cannot continue from them.
    """
    low, high = bucket_range(rank, world)
    value = pa.list_(pa.float32(), rows.dim)
    schema = pa.schema([("table", pa.int16()), ("id", pa.int64()), ("value", value)])
    path = folder / f"{PREFIX}{low:04d}-{high:04d}.arrow"
    path.touch(PRIVATE_FILE)
    with naming(path), pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for tables, ids, values_KD in rows.slices((low, high)):
            column = pa.FixedSizeListArray.from_arrays(pa.array(values_KD.reshape(-1)), rows.dim)
            writer.write_batch(
                pa.RecordBatch.from_arrays([pa.array(tables), pa.array(ids), column], schema=schema)
            )


def merged_rows(files: Sequence[RowFile]) -> pa.Table:
    """All rows of a chain in one table, by table and id, each from the last file that has it."""
    gone, later, parts = _gone(files), KeyIndex(), []
    for file in reversed(files):
        if file.stem.endswith(REMOVED):
            continue
        rows = read_table(file).combine_chunks()
        tables, ids = _keys(rows)
        once = np.zeros(rows.num_rows, np.bool_)
        # A key that is in two slices of a base has changed in between, so a later file has it too.
        once[np.unique(KeyIndex().add(tables, ids), return_index=True)[1]] = True
        wanted = once & (later.find(tables, ids) < 0)
        if file in gone:
            wanted &= gone[file].find(tables, ids) < 0
        later.add(tables[wanted], ids[wanted])
        parts.append(rows.filter(pa.array(wanted)))
    return pa.concat_tables(parts).sort_by([("table", "ascending"), ("id", "ascending")])


def _gone(files: Sequence[RowFile]) -> dict[RowFile, KeyIndex]:
    """For each file with rows, the keys whose rows a later file removes, unless a file in between has them again."""
    if not any(file.stem.endswith(REMOVED) for file in files):
        return {}
    removed, found = KeyIndex(), {}
    later: list[tuple[Int16Array, Int64Array]] = []
    for file in reversed(files):
        keys = _keys(read_table(file).select(["table", "id"]))
        if file.stem.endswith(REMOVED):
            removed.add(*_without(keys, later))
        else:
            found[file] = _copy(removed)
            later.append(keys)
    return found


def _without(
    keys: tuple[Int16Array, Int64Array], later: Iterable[tuple[Int16Array, Int64Array]]
) -> tuple[Int16Array, Int64Array]:
    present = KeyIndex()
    for tables, ids in later:
        present.add(tables, ids)
    away = present.find(*keys) < 0
    return keys[0][away], keys[1][away]


def _copy(index: KeyIndex) -> KeyIndex:
    copied = KeyIndex()
    tables, ids = index.keys()
    copied.add(tables.copy(), ids.copy())
    return copied


def _overlaps(file: RowFile, low: int, high: int) -> bool:
    first, last = (int(part) for part in file.stem.removeprefix(PREFIX).partition(".")[0].split("-"))
    return last > low and first < high


def _keys(rows: pa.Table | pa.RecordBatch) -> tuple[Int16Array, Int64Array]:
    return (
        np.ascontiguousarray(rows["table"].to_numpy(), np.int16),
        np.ascontiguousarray(rows["id"].to_numpy(), np.int64),
    )


def _insert(rows: pa.RecordBatch, table: ShardedEmbedding, file: RowFile, advice: str, state: bool) -> None:
    if rows.num_rows == 0:
        return
    width = rows.schema.field("value").type.list_size
    if width != table.dim:
        raise CheckpointError(
            f"{file} holds rows of dimension {width}, but model.dim is {table.dim}; set it back or {advice}"
        )
    missing = [name for name in table.state if f"state.{name}" not in rows.schema.names]
    if missing and state:
        raise CheckpointError(
            f"{file} has no optimizer state {missing[0]!r}: it was written with another "
            f"train.row_optimizer; set it back or {advice}"
        )
    table.load(
        *_keys(rows),
        _tensor(rows["value"]),
        {name: _state(rows, name, tensor, state) for name, tensor in table.state.items()},
        rows["frequency"].to_numpy(),
        rows["last_seen_ms"].to_numpy(),
    )


def _state(rows: pa.RecordBatch, name: str, like: torch.Tensor, read: bool) -> torch.Tensor:
    if read:
        return _tensor(rows[f"state.{name}"])
    return torch.zeros(rows.num_rows, *like.shape[1:], dtype=like.dtype)


def _row_bytes(table: ShardedEmbedding) -> int:
    tensors = [table.values_CD, *table.state.values()]
    return 26 + sum(t[:1].numel() * t.element_size() if t.shape[0] else table.dim * 4 for t in tensors)


def _column(rows: torch.Tensor) -> pa.Array:
    host = rows.contiguous()
    if host.dim() == 1:
        return pa.array(host.numpy())
    return pa.FixedSizeListArray.from_arrays(pa.array(host.numpy().reshape(-1)), host.shape[1])


def _tensor(array: pa.Array) -> torch.Tensor:
    if pa.types.is_fixed_size_list(array.type):
        values: npt.NDArray[np.float32] = array.flatten().to_numpy()
        return torch.from_numpy(values.reshape(-1, array.type.list_size).copy())
    return torch.from_numpy(array.to_numpy().copy())
