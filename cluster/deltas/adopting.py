"""After a resume: which deltas of an earlier process a run continues, and the rows that it must send again.

An earlier process trained beyond the checkpoint that was restored. Readers of its last delta have the rows of that
moment. If it came after the checkpoint, the run differs from what they have in rows of these deltas only, and in what
it changes from now on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cluster.config import FreshetConfig
from cluster.queries.changes import read_changes
from cluster.queries.query_side import is_described
from cluster.tables.buckets import bucket_range, in_range
from model.features import ITEM
from retrieval.deltas.delta import Delta
from retrieval.versions.store import Version
from streaming.arrays import Int16Array, Int64Array

_MOST_BYTES = 256 << 20
"""Of the deltas; reading more would take longer than a full refresh that nothing waits for."""


@dataclass(frozen=True)
class Restored:
    """The checkpoint that a run was resumed from.

    Attributes:
        location: of the checkpoint.
        step: of the run.
    """

    location: str
    step: int


@dataclass(frozen=True)
class Adopted:
    """What deltas of an earlier process have brought.

    Attributes:
        tables: int16 (n,), of the rows that readers may have from them.
        ids: int64 (n,).
        item_ids: int64 (m,), encoded items of one rank.
    """

    tables: Int16Array
    ids: Int64Array
    item_ids: Int64Array


def why_not(version: Version, deltas: Sequence[Delta], restored: Restored, config: FreshetConfig) -> str:
    """Why the deltas of a version are not continued; empty if they are.

    Args:
        version: live.
        deltas: all of it, oldest first.
        restored: the run's state before its first step.
        config: the run's.
    """
    checkpoint, name = str(version.manifest.get("checkpoint", "")), version.name
    if os.path.dirname(checkpoint) != os.path.dirname(restored.location) or not is_described(version, config):
        return f"{name} is of another run, or of other settings"
    if sum(entry["size"] for delta in deltas for entry in delta.entries) > _MOST_BYTES:
        return f"{name} has more than {_MOST_BYTES >> 20} MiB of deltas"
    if checkpoint == restored.location:
        return ""
    if not deltas:
        return f"{name} is of {checkpoint}, and this run was resumed from {restored.location}"
    newest = deltas[-1].manifest
    if int(newest.get("step", 0)) <= restored.step or int(newest.get("rows_left", 1)) > 0:
        return f"the deltas of {name} do not reach step {restored.step}, from which this run was resumed"
    return ""


def adopt(deltas: Sequence[Delta], rank: int, world: int) -> Adopted:
    """Read the keys of verified deltas, and the items of a rank."""
    tables, ids, items = [np.zeros(0, np.int16)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for delta in deltas:
        changes = read_changes(delta)
        if changes is not None:
            tables += [changes.rows.tables, changes.rows.removed_tables]
            ids += [changes.rows.ids, changes.rows.removed_ids]
        items.append(delta.items()[0])
    item_ids = np.unique(np.concatenate(items))
    mine = in_range(np.full(item_ids.shape[0], ITEM, np.int16), item_ids, bucket_range(rank, world))
    return Adopted(np.concatenate(tables), np.concatenate(ids), item_ids[mine])
