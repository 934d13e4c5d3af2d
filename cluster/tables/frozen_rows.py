"""Read-only embedding rows in files on this machine: keys are indexed, values stay in the mapped files.

Shape letters: K keys of a call, C keys of the index, D columns.

A chain of files is read in order. A file of rows replaces earlier rows of its keys; a file of removed keys removes
them.
Memory: 40 to 60 bytes per key in the index, for any number of columns. No optimizer state is read. Every process can
open every file, so a lookup needs no messages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch
from numba import njit
from torch import Tensor

from cluster.tables.buckets import ENDLESS, are_endless, in_range, shared_keys
from model.embedding import initial_rows
from model.key_index import KeyIndex
from model.reserved_memory import GrowingArray, machine_bytes
from streaming.arrays import BoolArray, Float32Array, Int16Array, Int64Array

REMOVED = ".removed"
"""End of the stem of a file with removed keys."""
_OFFSET_BITS = 44
_SLICE_ROWS = 16_384

Wanted = Callable[[Int16Array, Int64Array], BoolArray]
"""Returns whether each key (tables int16, ids int64) is indexed, bool (K,)."""
Rekey = Callable[[Int16Array], tuple[Int16Array, BoolArray]]
"""Returns the new table of each key, int16 (K,), and whether it still has one, bool (K,)."""


class RowWidthError(ValueError):
    """Rows have another number of columns than the model; names the file and both numbers."""


class RowFile(Protocol):
    """An Arrow file of rows or of removed keys."""

    @property
    def stem(self) -> str:
        """Its name without the last suffix."""

    @property
    def path(self) -> Path:
        """Its path on this machine, valid while this object exists."""


@dataclass(frozen=True)
class RowSettings:
    """The values of rows that are not in the files.

    Attributes:
        dim: columns.
        seed: of the initial rows.
        init_std: of the initial rows.
        has_shared_rows: whether users and items without a row of their own use their bucket's
            (`TableConfig.has_shared_rows`).
    """

    dim: int
    seed: int
    init_std: float
    has_shared_rows: bool


class PlacedRows(Protocol):
    """Rows of their own that some keys have: `FrozenRows`, or rows laid over them."""

    @property
    def settings(self) -> RowSettings:
        """The values of the other keys."""

    def find(self, tables: Int16Array, ids: Int64Array) -> Int64Array:
        """The place of the own row of each key, int64 (K,), -1 without one."""

    def gather(self, place_K: Int64Array, out_KD: Float32Array) -> None:
        """Copy the rows at places from `find` into their rows of `out_KD`; -1 leaves its row as it is."""


@dataclass
class _Index:
    """Location of each key's row: the file above `_OFFSET_BITS`, below it the first float32 in the file."""

    keys: KeyIndex = field(default_factory=KeyIndex)
    _room: GrowingArray = field(default_factory=lambda: GrowingArray(machine_bytes() // 8, (), np.int64))

    def put(self, tables: Int16Array, ids: Int64Array, place_K: Int64Array) -> None:
        rows = self.keys.add(tables, ids)
        self._room.first(self.keys.top)[rows] = place_K

    def find(self, tables: Int16Array, ids: Int64Array) -> Int64Array:
        """int64 (K,), -1 without a row."""
        rows = self.keys.find(tables, ids)
        if self.keys.top == 0:
            return rows
        return np.where(rows >= 0, self._room.first(self.keys.top)[np.maximum(rows, 0)], -1)


class FrozenRows:
    """The rows of a checkpoint or of an index version; any number of threads may read them.

    A key without a row gets the values that training would give it: the shared row of its bucket, or its initial row.
    The values are bit-identical to those of `ShardedEmbedding.lookup(create=False)` on the same rows.

    Args:
        files: of the chain, the full checkpoint's first; they stay open while this object exists.
        settings: of the rows.
        rekey: a change of the user attributes since the files were written; None for none.
        wanted: which keys are indexed, so that they can be looked up; None for all.
    Raises:
        RowWidthError: a file has rows of another dimension.
    """

    def __init__(
        self,
        files: Sequence[RowFile],
        settings: RowSettings,
        *,
        rekey: Rekey | None = None,
        wanted: Wanted | None = None,
    ) -> None:
        self.settings, self._rekey, self._wanted = settings, rekey, wanted
        self._index = _Index()
        self._files = list(files)
        self._floats: list[Float32Array] = []
        self._sources: list[pa.ipc.RecordBatchFileReader] = []
        for file in files:
            self._read(file)

    def __len__(self) -> int:
        return len(self._index.keys)

    @property
    def dim(self) -> int:
        """Columns."""
        return self.settings.dim

    def rows_of(self, tables: Int16Array, ids: Int64Array) -> Tensor:
        """The rows of unique keys, float32 (1 + K, D), on the CPU; row 0 is the zero padding row.

        Args:
            tables: int16 (K,).
            ids: int64 (K,).
        """
        return rows_or_defaults(self, tables, ids)

    def find(self, tables: Int16Array, ids: Int64Array) -> Int64Array:
        """The place of the own row of each key, int64 (K,), -1 without one."""
        assert self._covers(tables, ids).all(), "keys that were not wanted when the files were opened"
        return self._index.find(tables, ids)

    def gather(self, place_K: Int64Array, out_KD: Float32Array) -> None:
        """Copy the rows at places from `find` into their rows of `out_KD`; -1 leaves its row as it is."""
        file_K = place_K >> _OFFSET_BITS
        for number in np.unique(file_K):
            if number >= 0:
                at = np.flatnonzero(file_K == number)
                _copy_rows(self._floats[number], place_K[at] & ((1 << _OFFSET_BITS) - 1), at, out_KD)

    def slices(self, buckets: tuple[int, int]) -> Iterator[tuple[Int16Array, Int64Array, Float32Array]]:
        """The distinct rows of a range of buckets, in the order of the files: tables (n,), ids (n,), values (n, D).

        Args:
            buckets: half-open range; all its keys were wanted.
        """
        for number, source in enumerate(self._sources):
            for batch in _batches(source):
                tables, ids = _keys(batch)
                place_K = self._places(number, batch)
                tables, mine = self._present(tables)
                mine &= in_range(tables, ids, buckets)
                mine[mine] = self._index.find(tables[mine], ids[mine]) == place_K[mine]
                for start in range(0, ids.shape[0], _SLICE_ROWS):
                    some = start + np.flatnonzero(mine[start : start + _SLICE_ROWS])
                    if some.shape[0]:
                        values_KD = np.empty((some.shape[0], self.dim), np.float32)
                        self.gather(place_K[some], values_KD)
                        yield tables[some], ids[some], values_KD

    def _read(self, file: RowFile) -> None:
        with pa.memory_map(str(file.path)) as source:
            whole = source.read_buffer()
        if file.stem.endswith(REMOVED):
            for batch in _batches(pa.ipc.open_file(whole)):
                tables, ids = _keys(batch)
                tables, kept = self._present(tables)
                self._index.keys.remove(tables[kept], ids[kept])
            return
        reader = pa.ipc.open_file(whole)  # with a choice of columns it would copy them
        self._require_width(file, reader.schema)
        self._floats.append(np.frombuffer(whole, np.float32, whole.size // 4))
        self._sources.append(reader)
        for batch in _batches(reader):
            tables, ids = _keys(batch)
            place_K = self._places(len(self._floats) - 1, batch)
            tables, kept = self._present(tables)
            kept &= self._covers(tables, ids)
            self._index.put(tables[kept], ids[kept], place_K[kept])

    def _present(self, tables: Int16Array) -> tuple[Int16Array, BoolArray]:
        if self._rekey is None:
            return tables, np.ones(tables.shape[0], np.bool_)
        return self._rekey(tables)

    def _covers(self, tables: Int16Array, ids: Int64Array) -> BoolArray:
        return np.ones(ids.shape[0], np.bool_) if self._wanted is None else self._wanted(tables, ids)

    def _places(self, number: int, batch: pa.RecordBatch) -> Int64Array:
        """Location of each row of a batch, int64 (n,)."""
        values = batch.column("value").flatten().to_numpy()
        floats = self._floats[number]
        start, unaligned = divmod(_address(values) - _address(floats), floats.itemsize)
        assert batch.num_rows == 0 or (unaligned == 0 and 0 <= start < floats.shape[0]), (
            "values are not mapped"
        )
        return (np.int64(number) << _OFFSET_BITS) + start + self.dim * np.arange(batch.num_rows)

    def _require_width(self, file: RowFile, schema: pa.Schema) -> None:
        width = schema.field("value").type.list_size
        if width != self.dim:
            raise RowWidthError(f"{file} holds rows of dimension {width}, but model.dim is {self.dim}")


def rows_or_defaults(rows: PlacedRows, tables: Int16Array, ids: Int64Array) -> Tensor:
    """The rows of unique keys as training would see them, float32 (1 + K, D); row 0 is the zero padding row."""
    settings, place_K = rows.settings, rows.find(tables, ids)
    if settings.has_shared_rows:
        waits = np.flatnonzero((place_K < 0) & np.isin(tables, ENDLESS))
        if waits.shape[0]:
            tables, ids = tables.copy(), ids.copy()
            tables[waits], ids[waits] = shared_keys(tables[waits], ids[waits])
            place_K[waits] = rows.find(tables[waits], ids[waits])
    out = np.empty((1 + ids.shape[0], settings.dim), np.float32)
    out[0] = 0
    missing = np.flatnonzero(place_K < 0)
    if missing.shape[0]:
        out[1 + missing] = initial_rows(
            tables[missing], ids[missing], settings.dim, settings.seed, settings.init_std
        )
    rows.gather(place_K, out[1:])
    return torch.from_numpy(out)


def of_buckets(buckets: tuple[int, int]) -> Wanted:
    """Selects the users, items, and sources of a half-open range of buckets, and all keys of the other tables."""

    def wanted(tables: Int16Array, ids: Int64Array) -> BoolArray:
        return ~are_endless(tables) | in_range(tables, ids, buckets)

    return wanted


def of_keys(tables: Int16Array, ids: Int64Array) -> Wanted:
    """Selects some keys, and the shared rows of their buckets."""
    chosen = KeyIndex()
    chosen.add(tables, ids)
    chosen.add(*shared_keys(tables, ids))
    return lambda tables, ids: chosen.find(tables, ids) >= 0


@njit(cache=True, nogil=True)
def _copy_rows(floats: Float32Array, start_K: Int64Array, at_K: Int64Array, out_KD: Float32Array) -> None:
    for k in range(start_K.shape[0]):
        for d in range(out_KD.shape[1]):
            out_KD[at_K[k], d] = floats[start_K[k] + d]


def _batches(reader: pa.ipc.RecordBatchFileReader) -> Iterator[pa.RecordBatch]:
    return (reader.get_batch(k) for k in range(reader.num_record_batches))


def _keys(batch: pa.RecordBatch) -> tuple[Int16Array, Int64Array]:
    return (
        np.ascontiguousarray(batch.column("table").to_numpy(), np.int16),
        np.ascontiguousarray(batch.column("id").to_numpy(), np.int64),
    )


def _address(array: Float32Array) -> int:
    return int(array.__array_interface__["data"][0])
