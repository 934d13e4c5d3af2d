"""Item vectors as Arrow files: what each rank adds to a version, written and read in slices.

Shape letters: N items, S items of a slice, D columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from retrieval.arrays import Float32Array, Int64Array
from retrieval.indexes.ivf import IndexInputError
from retrieval.storage.durable import PRIVATE_FILE, naming

_SLICE_BYTES = 16 << 20
"""Size of the vectors that a reader has in memory at a time."""


def write_part(path: Path, item_ids: Int64Array, vectors_ND: Float32Array) -> None:
    """Write items as a private Arrow file: item_id int64, vector fixed-size list of float32.

    Raises:
        IndexInputError: another number of ids than vectors.
    """
    write_slices(path, [(item_ids, vectors_ND)])


def write_slices(path: Path, slices: Iterable[tuple[Int64Array, Float32Array]]) -> None:
    """Like `write_part`, for items in slices: ids int64 (S,), vectors float32 (S, D); at least one slice.

    Raises:
        IndexInputError: another number of ids than vectors, or slices of different widths.
    """
    path.touch(PRIVATE_FILE)
    writer = None
    with naming(path), pa.OSFile(str(path), "wb") as sink:
        for item_ids, vectors_SD in slices:
            if vectors_SD.ndim != 2 or item_ids.shape != vectors_SD.shape[:1]:
                raise IndexInputError(
                    f"item ids of shape {item_ids.shape} for vectors of shape {vectors_SD.shape}"
                )
            schema = _schema(vectors_SD.shape[1])
            if writer is None:
                writer, first = pa.ipc.new_file(sink, schema), schema
            if schema != first:
                raise IndexInputError(f"{path} has vectors of different widths: {first} and {schema}")
            writer.write_table(_table(item_ids, vectors_SD, schema), _rows_of_slice(vectors_SD.shape[1]))
        assert writer is not None, "a part has at least one slice, perhaps of no items"
        writer.close()


class Part:
    """Reads a file of `write_part` or `write_slices` in slices, without mapping it.

    Args:
        path: of the file.
    Raises:
        IndexInputError: it is not a part.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = pa.OSFile(str(path))
            self._reader = pa.ipc.open_file(self._file)
        except pa.ArrowInvalid as error:
            raise IndexInputError(f"{path} is not a part that can be read: {error}") from error
        schema = self._reader.schema
        vectors = schema.names == ["item_id", "vector"] and pa.types.is_fixed_size_list(schema.types[1])
        if not vectors or schema != _schema(schema.types[1].list_size):
            held = str(schema).replace("\n", ", ")
            raise IndexInputError(
                f"{path} holds {held}; a part holds item_id: int64, vector: float32 of fixed size"
            )
        self.width = int(schema.types[1].list_size)

    def slices(self) -> Iterator[tuple[Int64Array, Float32Array]]:
        """Ids int64 (S,) and vectors float32 (S, D), in the order of the file."""
        rows, waiting = 0, list[pa.RecordBatch]()
        for number in range(self._reader.num_record_batches):
            batch = self._reader.get_batch(number)
            if waiting and rows + batch.num_rows > _rows_of_slice(self.width):
                yield self._arrays(waiting)
                rows, waiting = 0, []
            rows, waiting = rows + batch.num_rows, [*waiting, batch]
        if rows:
            yield self._arrays(waiting)

    def _arrays(self, batches: list[pa.RecordBatch]) -> tuple[Int64Array, Float32Array]:
        ids = [batch.column(0).to_numpy() for batch in batches]
        vectors = [batch.column(1).flatten().to_numpy().reshape(-1, self.width) for batch in batches]
        if len(batches) == 1:
            return ids[0], vectors[0]
        return np.concatenate(ids), np.concatenate(vectors)


def read_parts(paths: Sequence[Path]) -> tuple[Int64Array, Float32Array]:
    """Ids int64 (N,), ascending, and vectors float32 (N, D) of all parts.

    Raises:
        IndexInputError: no part, a file that is not one, parts of different widths, or an item in two of them.
        OSError: a part cannot be read.
    """
    if not paths:
        raise IndexInputError("there are no parts to publish")
    parts = [Part(path) for path in paths]
    widths = {part.width for part in parts}
    if len(widths) > 1:
        raise IndexInputError(f"the parts in {paths[0].parent} have vectors of widths {sorted(widths)}")
    ids = np.concatenate([read_ids(path) for path in paths])
    order = np.argsort(ids, kind="stable")
    refuse_twins(ids[order])
    place = np.empty_like(order)
    place[order] = np.arange(order.shape[0])
    vectors, start = np.empty((ids.shape[0], parts[0].width), np.float32), 0
    for part in parts:
        for _, vectors_SD in part.slices():
            vectors[place[start : start + vectors_SD.shape[0]]] = vectors_SD
            start += vectors_SD.shape[0]
    return ids[order], vectors


def read_ids(path: Path) -> Int64Array:
    """The ids of one part, int64 (N,), without reading its vectors into memory."""
    with pa.memory_map(str(path)) as source:
        # Not `included_fields`: with it pyarrow 26 reads whole batches into memory.
        reader = pa.ipc.open_file(source)
        batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        return np.concatenate([np.zeros(0, np.int64), *(batch.column(0).to_numpy() for batch in batches)])


def refuse_twins(ascending: Int64Array) -> None:
    """Check that ids are distinct.

    Raises:
        IndexInputError: an id occurs twice; names it.
    """
    twin = np.flatnonzero(ascending[1:] == ascending[:-1])
    if twin.shape[0]:
        raise IndexInputError(
            f"{twin.shape[0]} items have more than one vector, first item {ascending[twin[0]]}; "
            "ids must be distinct"
        )


def _schema(width: int) -> pa.Schema:
    return pa.schema({"item_id": pa.int64(), "vector": pa.list_(pa.float32(), width)})


def _table(item_ids: Int64Array, vectors_SD: Float32Array, schema: pa.Schema) -> pa.Table:
    flat = pa.array(np.ascontiguousarray(vectors_SD, np.float32).reshape(-1))
    vectors = pa.FixedSizeListArray.from_arrays(flat, vectors_SD.shape[1])
    return pa.table({"item_id": pa.array(item_ids, pa.int64()), "vector": vectors}, schema=schema)


def _rows_of_slice(width: int) -> int:
    return max(1, _SLICE_BYTES // (4 * max(1, width)))
