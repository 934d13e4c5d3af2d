"""Samples users of a checkpoint from its mapped files, so that only their histories are kept in memory.

The sample has the users with the lowest hashes, so it does not depend on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.checkpoints.arrays import map_table
from cluster.checkpoints.part import Saved
from cluster.checkpoints.parts.users import USERS, known_users, last_of_each, partitions_in
from cluster.collectives import Collectives
from model.features import USER
from model.key_index import hash_keys
from retrieval.ranks import gather_results
from streaming.arrays import Int64Array
from streaming.events.schema import USER_ID

_REMOVED_AT_MOST = 0.5
"""Of the users that are looked at first; if more have been removed since, there are fewer users than asked for."""


def sampled_users(saved: Saved, comm: Collectives, count: int) -> pa.Table | None:
    """Collective. At most `count` users as `UserStore.load` takes them, by user id; None without any.

    Args:
        saved: a checkpoint.
        comm: the ranks; each reads some partitions.
        count: maximum number of users.
    """
    mine = partitions_in(saved.checkpoint)[comm.rank :: comm.world]
    most = int(count / _REMOVED_AT_MOST)
    lowest = gather_results(comm, lambda: _lowest((_ids(saved, partition) for partition in mine), most))
    chosen = _lowest([lowest], most)
    tables = gather_results(comm, lambda: [_to_bytes(_histories(saved, p, chosen)) for p in mine])
    found = [pa.ipc.open_stream(content).read_all() for of_rank in tables for content in of_rank]
    if not sum(table.num_rows for table in found):
        return None
    users = pa.concat_tables(found, promote_options="default").combine_chunks()
    kept = _lowest([[users[USER_ID].to_numpy()]], count)
    return users.filter(pc.is_in(users[USER_ID], value_set=pa.array(kept))).sort_by(USER_ID)


def _ids(saved: Saved, partition: int) -> Iterable[Int64Array]:
    for file in saved.here(f"{USERS}{partition:05d}"):
        for batch in map_table(file.path).to_batches():
            yield batch.column(USER_ID).to_numpy()


def _lowest(parts: Iterable[Iterable[Int64Array]], count: int) -> Int64Array:
    """The distinct ids with the lowest hashes, int64, ascending."""
    kept = np.zeros(0, np.int64)
    for part in parts:
        for ids in part:
            kept = np.union1d(kept, ids)
            if kept.shape[0] > count:
                hashes = hash_keys(np.full(kept.shape[0], USER, np.int16), kept)
                kept = np.sort(kept[np.argpartition(hashes, count)[:count]])
    return kept


def _histories(saved: Saved, partition: int, chosen: Int64Array) -> pa.Table:
    wanted = pa.array(chosen)
    newest_first = reversed(saved.here(f"{USERS}{partition:05d}"))
    tables = (map_table(file.path) for file in newest_first)
    return known_users(last_of_each(t.filter(pc.is_in(t[USER_ID], value_set=wanted)) for t in tables))


def _to_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())
