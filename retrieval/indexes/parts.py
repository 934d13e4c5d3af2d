"""Item vectors as Arrow files: what each rank writes and the builder reads.

Shape letters: N items, D columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from retrieval.arrays import Float32Array, Int64Array
from retrieval.indexes.ivf import IndexInputError
from retrieval.storage.durable import PRIVATE_FILE


def write_part(path: Path, item_ids: Int64Array, vectors_ND: Float32Array) -> None:
    """Write one rank's items as a private Arrow file: id int64, vector fixed-size list of float32.

    Raises:
        IndexInputError: another number of ids than vectors.
    """
    if vectors_ND.ndim != 2 or item_ids.shape != vectors_ND.shape[:1]:
        raise IndexInputError(f"item ids of shape {item_ids.shape} for vectors of shape {vectors_ND.shape}")
    flat = pa.array(np.ascontiguousarray(vectors_ND, np.float32).reshape(-1))
    vectors = pa.FixedSizeListArray.from_arrays(flat, vectors_ND.shape[1])
    table = pa.table({"item_id": pa.array(item_ids, pa.int64()), "vector": vectors})
    path.touch(PRIVATE_FILE)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def read_parts(paths: Sequence[Path]) -> tuple[Int64Array, Float32Array]:
    """Ids int64 (N,), ascending, and vectors float32 (N, D) of all parts.

    Raises:
        IndexInputError: no part, a file that is not one, parts of different widths, or an item in two of them.
        OSError: a part cannot be read.
    """
    if not paths:
        raise IndexInputError("there are no parts to publish")
    tables = [_read(path) for path in paths]
    widths = {table.schema.field("vector").type.list_size for table in tables}
    if len(widths) > 1:
        raise IndexInputError(f"the parts in {paths[0].parent} have vectors of widths {sorted(widths)}")
    table = pa.concat_tables(tables)
    ids = table["item_id"].to_numpy()
    flat = table["vector"].combine_chunks().flatten().to_numpy()
    vectors = flat.reshape(ids.shape[0], table.schema.field("vector").type.list_size)
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    _refuse_twins(ids)
    return ids, np.ascontiguousarray(vectors[order])


def read_ids(path: Path) -> Int64Array:
    """The ids of one part, int64 (N,), without reading its vectors into memory."""
    only_ids = pa.ipc.IpcReadOptions(included_fields=[0])
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source, options=only_ids).read_all()
        return np.array(table["item_id"].to_numpy(), np.int64)


def _read(path: Path) -> pa.Table:
    try:
        table = pa.ipc.open_file(pa.py_buffer(path.read_bytes())).read_all()
    except (pa.ArrowInvalid, FileNotFoundError) as error:
        raise IndexInputError(f"{path} is not a part that can be read: {error}") from error
    names, types = table.schema.names, table.schema.types
    vectors = names == ["item_id", "vector"] and pa.types.is_fixed_size_list(types[1])
    if not vectors or types[0] != pa.int64() or types[1].value_type != pa.float32():
        held = str(table.schema).replace("\n", ", ")
        raise IndexInputError(
            f"{path} holds {held}; a part holds item_id: int64, vector: float32 of fixed size"
        )
    return table


def _refuse_twins(ascending: Int64Array) -> None:
    twin = np.flatnonzero(ascending[1:] == ascending[:-1])
    if twin.shape[0]:
        raise IndexInputError(
            f"{twin.shape[0]} items have more than one vector, first item {ascending[twin[0]]}; "
            "ids must be distinct"
        )
