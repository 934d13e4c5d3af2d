"""Keys that are counted before they get a row: `waiting-LLLL-HHHH.arrow`, complete in every checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa

from cluster.checkpoints.arrays import StoredContent, read_table
from cluster.checkpoints.part import Copies, Part, Saved
from cluster.tables.buckets import bucket_range, buckets_of
from cluster.tables.sharded_embedding import ShardedEmbedding

PREFIX = "waiting-"


class WaitingPart(Part):
    """The waiting keys of one rank, if `table.admit_after` makes keys wait."""

    names = (PREFIX,)
    learnt = True

    def __init__(self, table: ShardedEmbedding, rank: int, world: int) -> None:
        self._table, self._rank, self._world = table, rank, world

    def copies(self) -> Copies:
        """See Part."""
        return Copies(waiting_tables(self._table, self._rank, self._world))

    def restore(self, saved: Saved) -> None:
        """See Part."""
        load_waiting(saved.own_files(PREFIX), self._table, self._rank, self._world)


def waiting_tables(table: ShardedEmbedding, rank: int, world: int) -> dict[str, pa.Table]:
    """The file of this rank's keys without a row, if `table.admit_after` makes keys wait."""
    if not table.limits.has_shared_rows:
        return {}
    low, high = bucket_range(rank, world)
    return {f"{PREFIX}{low:04d}-{high:04d}.arrow": table.waiting.to_table()}


def load_waiting(
    files: Iterable[Path | StoredContent], table: ShardedEmbedding, rank: int, world: int
) -> None:
    """Read the keys whose buckets this rank owns, from files written by any number of ranks.

    Args:
        files: of one checkpoint; each checkpoint of a chain has all keys.
        table: gets the keys, unless it creates all rows at once.
        rank: this rank.
        world: number of ranks.
    """
    if not table.limits.has_shared_rows:
        return
    low, high = bucket_range(rank, world)
    for file in files:
        waiting = read_table(file)
        tables = np.ascontiguousarray(waiting["table"].to_numpy(), np.int16)
        ids = np.ascontiguousarray(waiting["id"].to_numpy(), np.int64)
        buckets = buckets_of(tables, ids)
        table.waiting.load(waiting.filter(pa.array((buckets >= low) & (buckets < high))))
