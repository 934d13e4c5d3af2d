"""Embedding rows as Arrow files: written by bucket range, re-read by whoever owns the buckets now."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from cluster.buckets import bucket_range, buckets_of
from cluster.checkpoint import START_ANEW, CheckpointError, read_table, write_table
from cluster.sharded_embedding import ShardedEmbedding
from retrieval.durable_files import FileEntry

PREFIX = "rows-"


def save_rows(directory: Path, table: ShardedEmbedding, rank: int, world: int) -> FileEntry:
    """Write every row of this rank with its optimizer state, frequency and last-seen time."""
    low, high = bucket_range(rank, world)
    size = len(table)
    tables, ids = table.index.keys()
    columns: dict[str, pa.Array] = {
        "table": pa.array(tables),
        "id": pa.array(ids),
        "value": _matrix(table.values_CD[:size]),
        "frequency": pa.array(table.frequency_C[:size]),
        "last_seen_ms": pa.array(table.last_seen_ms_C[:size]),
    }
    for name, tensor in table.state.items():
        part = tensor[:size]
        columns[f"state.{name}"] = _matrix(part) if part.dim() == 2 else pa.array(part.cpu().numpy())
    return write_table(directory / f"{PREFIX}{low:04d}-{high:04d}.arrow", pa.table(columns))


def load_rows(
    files: Iterable[Path], table: ShardedEmbedding, rank: int, world: int, *, advice: str = START_ANEW
) -> None:
    """Read the rows whose buckets this rank owns, from files written by any number of ranks.

    Raises:
        CheckpointError: rows of another dimension or row optimizer; ends with `advice`.
    """
    low, high = bucket_range(rank, world)
    for file in files:
        first, last = (int(part) for part in file.stem.removeprefix(PREFIX).split("-"))
        if last <= low or first >= high:
            continue
        rows = read_table(file)
        buckets = buckets_of(rows["table"].to_numpy(), rows["id"].to_numpy())
        _insert(rows.filter(pa.array((buckets >= low) & (buckets < high))), table, file, advice)


def _insert(rows: pa.Table, table: ShardedEmbedding, file: Path, advice: str) -> None:
    if rows.num_rows == 0:
        return
    width = rows.schema.field("value").type.list_size
    if width != table.dim:
        raise CheckpointError(
            f"{file} holds rows of dimension {width}, but model.dim is {table.dim}; set it back or {advice}"
        )
    missing = [name for name in table.state if f"state.{name}" not in rows.column_names]
    if missing:
        raise CheckpointError(
            f"{file} has no optimizer state {missing[0]!r}: it was written with another "
            f"train.row_optimizer; set it back or {advice}"
        )
    local = table.add(rows["table"].to_numpy(), rows["id"].to_numpy())
    where = torch.from_numpy(local).to(table.device)
    table.values_CD[where] = _tensor(rows["value"]).to(table.device)
    for name, tensor in table.state.items():
        tensor[where] = _tensor(rows[f"state.{name}"]).to(table.device)
    table.frequency_C[local] = rows["frequency"].to_numpy()
    table.last_seen_ms_C[local] = rows["last_seen_ms"].to_numpy()


def _matrix(rows: torch.Tensor) -> pa.FixedSizeListArray:
    flat = pa.array(rows.detach().cpu().contiguous().numpy().reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, rows.shape[1])


def _tensor(column: pa.ChunkedArray) -> torch.Tensor:
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0)
    if pa.types.is_fixed_size_list(array.type):
        values: npt.NDArray[np.float32] = array.flatten().to_numpy()
        return torch.from_numpy(values.reshape(-1, array.type.list_size).copy())
    return torch.from_numpy(array.to_numpy().copy())
