"""The state in a checkpoint, independent of its files: the result of its whole chain, its digest, and differences.

Rows and users are sorted, so the state does not depend on the number of ranks, on deltas, or on the time of writing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from cluster.checkpoints.arrays import read_table, read_tensors
from cluster.checkpoints.checkpoint import Checkpoint
from cluster.checkpoints.parts.baselines import FILE as BASELINES
from cluster.checkpoints.parts.catalogue import CataloguePart, merged_catalogue
from cluster.checkpoints.parts.ledger import LedgerPart, merged_ledger
from cluster.checkpoints.parts.pairs import PairPart, merged_pairs
from cluster.checkpoints.parts.rows import PREFIX as ROWS
from cluster.checkpoints.parts.rows import RowPart, merged_rows
from cluster.checkpoints.parts.towers import FILE as TOWERS
from cluster.checkpoints.parts.users import UserPart, merged_users, partitions_in
from cluster.ledger import PartitionLedger
from model.key_index import KeyIndex

# Properties of the writing, not of the state.
_NOT_STATE = ("format", "kind", "follows", "written_ms", "chain", "checksum", "files", "config", "workers")
_IDENTITIES = ("topic_ids", "catalogue_ids")
# Files of parts of which a delta has only changes. All other parts are complete, so they are read without their names.
_READ_THROUGH_THE_CHAIN = (
    *RowPart.names,
    *UserPart.names,
    *LedgerPart.names,
    *PairPart.names,
    *CataloguePart.names,
)


@dataclass(frozen=True)
class State:
    """Everything that a checkpoint restores.

    Attributes:
        manifest: positions, counters, curve and so on.
        settings: `section.name` to value.
        tensors: towers, optimizer moments, baselines and generators, as `file:name`.
        rows: all embedding rows, by table and id.
        users: histories, by partition.
        ledgers: by partition.
        tables: the catalogue and the partitions' admission state, by file.
    """

    manifest: Mapping[str, Any]
    settings: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]
    rows: pa.Table
    users: Mapping[int, pa.Table]
    ledgers: Mapping[int, PartitionLedger]
    tables: Mapping[str, pa.Table]


def read_state(checkpoint: Checkpoint) -> State:
    """The state of a verified checkpoint, all of it in memory."""
    own = [str(entry["name"]) for entry in checkpoint.manifest["files"]]
    whole = [name for name in own if not name.startswith(_READ_THROUGH_THE_CHAIN)]
    tensor_files = [name for name in whole if name.endswith(".safetensors")]
    table_files = [name for name in whole if name.endswith(".arrow")]
    partitions = partitions_in(checkpoint)
    return State(
        _of_state(checkpoint.manifest),
        _flat(checkpoint.manifest.get("config", {})),
        {
            f"{file}:{name}": tensor
            for file in tensor_files
            for name, tensor in read_tensors(checkpoint.file(file)).items()
        }
        | {f"{BASELINES}:{name}": tensor for name, tensor in merged_pairs(checkpoint).items()},
        merged_rows(checkpoint.files(ROWS)),
        {p: merged_users(checkpoint, p) for p in partitions},
        {p: merged_ledger(checkpoint, p) for p in partitions},
        merged_catalogue(checkpoint) | {file: read_table(checkpoint.file(file)) for file in table_files},
    )


def _of_state(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a manifest that are state; ids of topics are not, because two topics may hold the same messages."""
    state = {k: v for k, v in manifest.items() if k not in _NOT_STATE}
    if "stream" in state:
        state["stream"] = {k: v for k, v in state["stream"].items() if k not in _IDENTITIES}
    return state


def digest(state: State) -> str:
    """SHA-256 of everything except the settings: equal digests mean bit-identical states."""
    whole = hashlib.sha256()
    for name, content in contents(state):
        whole.update(name.encode() + b"\0" + content + b"\0")
    return whole.hexdigest()


def difference(old: State, new: State) -> dict[str, Any]:
    """How the second state differs from the first, for people and machines.

    Returns:
        `identical`; `counters` and `settings` (name to [old, new]); `positions` (partition to [old, new]); `towers`
        (parameter to the largest change, or a description); `rows` by table (added, removed, changed,
        largest_change); `users` (added, removed, changed).
    """
    return {
        "identical": digest(old) == digest(new),
        "counters": _changed(_scalars(old.manifest), _scalars(new.manifest)),
        "positions": _changed(old.manifest["positions"], new.manifest["positions"]),
        "settings": _changed(old.settings, new.settings),
        "towers": _tensor_changes(old.tensors, new.tensors),
        "rows": _row_changes(old.rows, new.rows),
        "users": _user_changes(old.users, new.users),
    }


def contents(state: State) -> Iterator[tuple[str, bytes]]:
    """Each part of a state by name, as bytes in a canonical form."""
    yield "manifest", json.dumps(state.manifest, sort_keys=True).encode()
    for name, tensor in sorted(state.tensors.items()):
        yield name, f"{tensor.dtype}{tuple(tensor.shape)}".encode() + tensor.contiguous().numpy().tobytes()
    yield "rows", _bytes(state.rows)
    for partition, users in sorted(state.users.items()):
        yield f"users {partition}", _bytes(users)
    for partition, ledger in sorted(state.ledgers.items()):
        table = ledger.to_table()
        yield f"ledger {partition}", repr(sorted(table.schema.metadata.items())).encode() + _bytes(table)
    for file, table in sorted(state.tables.items()):
        yield file, repr(sorted((table.schema.metadata or {}).items())).encode() + _bytes(table)


def _bytes(table: pa.Table) -> bytes:
    """A table's content in a canonical form: one batch, no offset, no metadata, columns sorted by name."""
    columns = sorted(table.column_names)
    plain = pa.concat_tables([table.select(columns).replace_schema_metadata(None)]).combine_chunks()
    # Taking every row creates new buffers without the bytes that a slice or a filter leaves around its rows.
    fresh = plain.take(pa.array(np.arange(plain.num_rows)))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, fresh.schema) as writer:
        writer.write_table(fresh.combine_chunks())
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _flat(sections: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in sections.items():
        flat |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _scalars(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in manifest.items() if not isinstance(value, dict | list)}


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, list[Any]]:
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return {name: [old.get(name), new.get(name)] for name in names}


def _tensor_changes(
    old: Mapping[str, torch.Tensor], new: Mapping[str, torch.Tensor]
) -> dict[str, float | str]:
    changes: dict[str, float | str] = {}
    for name in sorted({**old, **new}):
        if not name.startswith(f"{TOWERS}:model."):
            continue
        short = name.removeprefix(f"{TOWERS}:model.")
        if name not in old or name not in new:
            changes[short] = "added" if name in new else "removed"
        elif old[name].shape != new[name].shape:
            changes[short] = f"{tuple(old[name].shape)} became {tuple(new[name].shape)}"
        elif not torch.equal(old[name], new[name]):
            changes[short] = float((old[name] - new[name]).abs().max())
    return changes


def _row_changes(old: pa.Table, new: pa.Table) -> dict[str, dict[str, float]]:
    at_new = _places(old, new)
    kept = np.flatnonzero(at_new >= 0)
    before, after = _matrix(old["value"])[kept], _matrix(new["value"])[at_new[kept]]
    same_width = before.shape[1:] == after.shape[1:]
    moved = np.abs(before - after).max(axis=1, initial=0.0) if same_width else np.full(kept.shape[0], np.nan)
    differs = moved != 0
    for name in set(old.column_names) & set(new.column_names) - {"table", "id", "value"}:
        differs |= _differs(old[name], new[name], kept, at_new)
    old_tables, new_tables = old["table"].to_numpy(), new["table"].to_numpy()
    added = np.ones(new.num_rows, np.bool_)
    added[at_new[kept]] = False
    return {
        str(table): {
            "added": int((added & (new_tables == table)).sum()),
            "removed": int(((at_new < 0) & (old_tables == table)).sum()),
            "changed": int(differs[old_tables[kept] == table].sum()),
            "largest_change": float(moved[old_tables[kept] == table].max(initial=0.0)),
        }
        for table in np.union1d(old_tables, new_tables).tolist()
    }


def _places(old: pa.Table, new: pa.Table) -> npt.NDArray[np.int64]:
    """Index of each old row's key in the new table, int64, -1 if it is not there."""
    index = KeyIndex(max(16, new.num_rows))
    index.add(*_keys(new))
    return index.find(*_keys(old))


def _keys(rows: pa.Table) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int64]]:
    tables, ids = rows["table"].to_numpy(), rows["id"].to_numpy()
    return np.ascontiguousarray(tables, np.int16), np.ascontiguousarray(ids, np.int64)


def _matrix(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    flat = column.combine_chunks()
    if isinstance(flat, pa.ChunkedArray):
        flat = pa.concat_arrays(flat.chunks)
    if not pa.types.is_fixed_size_list(flat.type):
        scalars: npt.NDArray[np.float32] = flat.to_numpy()[:, None]
        return scalars
    values: npt.NDArray[np.float32] = flat.flatten().to_numpy().reshape(-1, flat.type.list_size)
    return values


def _differs(
    old: pa.ChunkedArray, new: pa.ChunkedArray, kept: npt.NDArray[np.int64], at_new: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    before, after = _matrix(old)[kept], _matrix(new)[at_new[kept]]
    differs: npt.NDArray[np.bool_] = (before != after).any(axis=1)
    return differs


def _user_changes(old: Mapping[int, pa.Table], new: Mapping[int, pa.Table]) -> dict[str, int]:
    before, after = _by_user(old), _by_user(new)
    return {
        "added": len(after.keys() - before.keys()),
        "removed": len(before.keys() - after.keys()),
        "changed": sum(before[user] != after[user] for user in before.keys() & after.keys()),
    }


def _by_user(users: Mapping[int, pa.Table]) -> dict[int, tuple[Any, ...]]:
    """Total number of events and the last items of each user."""
    return {
        row["user_id"]: (row["events"], row["items"], row.get("negatives"))
        for table in users.values()
        for row in table.to_pylist()
    }
