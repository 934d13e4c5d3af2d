"""What a delta changes on the query side, and its file in the delta: `changes-RRRR.arrow`, one of each rank.

A file holds four Arrow streams, one after the other: rows (`table`, `id`, `value`), removed keys (`table`, `id`), and
the records of items and users. One file, because each one costs a delta an fsync or a request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from cluster.tables.overlaid_rows import RowChanges
from retrieval.storage.durable import PRIVATE_FILE, naming
from streaming.arrays import Float32Array, Int16Array, Int64Array
from streaming.catalogue.records import CatalogueUpdate
from streaming.events.schema import ITEM_SCHEMA, USER_SCHEMA

PREFIX = "changes-"
_KEYS = pa.schema([("table", pa.int16()), ("id", pa.int64())])


class FilesOfDelta(Protocol):
    """The part of `retrieval.deltas` that is read here."""

    def files(self, prefix: str = "") -> list[str]:
        """The names of its files with this prefix, sorted."""

    def file(self, name: str) -> Path:
        """Its path on this machine."""


@dataclass(frozen=True)
class Changes:
    """Rows and records that are new or differ from those of the state before.

    Attributes:
        rows: changed and removed rows.
        catalogue: items and users; an item that is known only from events has a record without a title.
    """

    rows: RowChanges
    catalogue: CatalogueUpdate

    @staticmethod
    def of(
        rows: tuple[Int16Array, Int64Array, Float32Array],
        removed: tuple[Int16Array, Int64Array] | None = None,
        catalogue: CatalogueUpdate | None = None,
    ) -> Changes:
        """Changes from rows (tables (n,), ids (n,), values (n, D)), removed keys, and records; by default none."""
        nothing = CatalogueUpdate(ITEM_SCHEMA.empty_table(), USER_SCHEMA.empty_table())
        gone = removed or (np.zeros(0, np.int16), np.zeros(0, np.int64))
        return Changes(RowChanges(*rows, *gone), catalogue or nothing)

    @staticmethod
    def joined(parts: Sequence[Changes]) -> Changes:
        """One object from those of all ranks, of which one at least must be given."""
        return Changes(
            RowChanges.joined([part.rows for part in parts]),
            CatalogueUpdate(
                pa.concat_tables([part.catalogue.items for part in parts]),
                pa.concat_tables([part.catalogue.users for part in parts]),
            ),
        )


def write_changes(folder: Path, rank: int, changes: Changes) -> None:
    """Write one rank's changes into a delta that is being built; its commit fsyncs the file.

    Args:
        folder: of the delta.
        rank: of the writer; no two write the same row or record.
        changes: of this rank.
    """
    path = folder / f"{PREFIX}{rank:04d}.arrow"
    path.touch(PRIVATE_FILE)
    with naming(path), pa.OSFile(str(path), "wb") as sink:
        for table in _tables(changes):
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)


def read_changes(delta: FilesOfDelta) -> Changes | None:
    """The changes of all ranks; None if the delta has no such file."""
    parts = [_read(delta.file(name)) for name in delta.files(PREFIX)]
    return Changes.joined(parts) if parts else None


def _tables(changes: Changes) -> list[pa.Table]:
    rows = changes.rows
    width = rows.values.shape[1]
    values = np.ascontiguousarray(rows.values, np.float32).reshape(-1)
    value = pa.FixedSizeListArray.from_arrays(pa.array(values), width)
    schema = _KEYS.append(pa.field("value", pa.list_(pa.float32(), width)))
    return [
        pa.table([pa.array(rows.tables), pa.array(rows.ids), value], schema=schema),
        pa.table([pa.array(rows.removed_tables), pa.array(rows.removed_ids)], schema=_KEYS),
        changes.catalogue.items,
        changes.catalogue.users,
    ]


def _read(path: Path) -> Changes:
    source = pa.BufferReader(path.read_bytes())
    rows, removed, items, users = (pa.ipc.open_stream(source).read_all() for _ in range(4))
    width = rows.schema.field("value").type.list_size
    value = rows["value"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return Changes(
        RowChanges(*_keys(rows), value.reshape(-1, width), *_keys(removed)), CatalogueUpdate(items, users)
    )


def _keys(table: pa.Table) -> tuple[Int16Array, Int64Array]:
    return (
        np.ascontiguousarray(table["table"].to_numpy(), np.int16),
        np.ascontiguousarray(table["id"].to_numpy(), np.int64),
    )
