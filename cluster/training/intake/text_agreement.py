"""Ranks compare the texts of ids that they have read: two texts with one hash, read by two ranks, stop the run.

A rank refuses such an event by itself if it knows the other text. If two ranks read the two, neither does, and their
events would be mixed; so no checkpoint may have them.
"""

from __future__ import annotations

import pyarrow as pa

from cluster.collectives import Collectives
from streaming.histories.id_texts import KnownTexts


class IdClash(RuntimeError):
    """Two ids that are texts have the same hash; names both."""

    def __init__(self, said: str) -> None:
        super().__init__(said)


def agree_on_texts(texts: KnownTexts, comm: Collectives, topic: str) -> None:
    """Collective. Compare the texts that are new since the last call.

    Raises:
        IdClash: on every rank.
    """
    mine = {"user": texts.users.unchecked(), "item": texts.items.unchecked()}
    if comm.world == 1:
        return
    sent = comm.gather_objects({kind: _bytes(table) for kind, table in mine.items() if table.num_rows})
    found = ""
    for rank, tables in enumerate(sent):
        for kind, data in tables.items() if rank != comm.rank else ():
            own = texts.users if kind == "user" else texts.items
            clash = own.clash_with(pa.ipc.open_stream(data).read_all())
            found = found or (clash and f"the {kind} ids {clash}")
    clashes = [said for said in comm.gather_objects(found) if said]
    if clashes:
        raise IdClash(
            f"{clashes[0]} have the same 64-bit hash, and their events cannot be told apart: rename one of them where "
            f"{topic!r} is produced (setting: stream.interactions_topic); the last checkpoint has neither mixed"
        )


def _bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())
