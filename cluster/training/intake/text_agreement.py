"""Ranks compare the texts of ids that they have read: two texts with one hash are never mixed in a checkpoint.

A rank refuses an event by itself if it knows another text of the id. If two ranks read the two, neither does. Then one
text is chosen, the choice is written beside the run, and every rank fails: the run restarts from its last checkpoint,
which has neither mixed, and events of the other text are dead letters from there on, on every rank.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa

from cluster.collectives import Collectives
from retrieval.storage.durable import replace_durably
from streaming.events.ids import ids_of_texts
from streaming.histories.id_texts import ID, KnownTexts

OWNERS = "id-owners.json"
"""In the run's storage: texts of users and items that keep their ids against others with the same hash."""


class IdClash(RuntimeError):
    """Two ids that are texts have the same hash; names both. A restart refuses one of them."""

    def __init__(self, said: str) -> None:
        super().__init__(said)


def agree_on_texts(texts: KnownTexts, comm: Collectives, topic: str, storage: Path) -> None:
    """Collective. Compare the texts that are new since the last call.

    Of two texts with one hash, the one that an earlier call has seen keeps the id; if both are new, the one whose UTF-8
    is smaller.

    Args:
        texts: of this rank.
        comm: of all ranks.
        topic: for the message.
        storage: of the run; rank 0 writes the choice there.
    Raises:
        IdClash: on every rank.
    """
    mine = {"users": texts.users.unchecked(), "items": texts.items.unchecked()}
    if comm.world == 1:
        return
    sent = comm.gather_objects({kind: _bytes(table) for kind, table in mine.items() if table.num_rows})
    found = []
    for rank, tables in enumerate(sent):
        for kind, data in tables.items() if rank != comm.rank else ():
            theirs = pa.ipc.open_stream(data).read_all()
            new = set(mine[kind][ID].to_pylist())
            own = texts.users if kind == "users" else texts.items
            found += [
                (kind, identifier, identifier in new, *pair) for identifier, *pair in own.clashes_with(theirs)
            ]
    clashes = [clash for some in comm.gather_objects(found) for clash in some]
    if not clashes:
        return
    owners, (kind, first, second) = _choose(clashes)
    if comm.rank == 0:
        _write(storage, owners)
    comm.gather_objects(None)  # no rank fails before the choice is written
    raise IdClash(
        f"the {kind} {first!r} and {second!r} have the same 64-bit hash: the run restarts from its last checkpoint, "
        f"which has neither mixed, and events of {second!r} are dead letters (id_clash). To keep both, rename one "
        f"where {topic!r} is produced (setting: stream.interactions_topic)"
    )


def keep_owners(texts: KnownTexts, storage: Path) -> None:
    """Make known the texts that were chosen before, so that events of the others are refused."""
    for kind, owners in _read(storage).items():
        chosen = pa.array(owners, pa.string())
        of = texts.users if kind == "users" else texts.items
        of.clashes(ids_of_texts(chosen), np.arange(len(chosen)), chosen)


def _choose(
    clashes: Iterable[tuple[str, int, bool, str, str]],
) -> tuple[dict[str, list[str]], tuple[str, str, str]]:
    """The texts that keep their ids, and kind, chosen and refused text of the first clash."""
    claims: dict[tuple[str, int], set[tuple[bool, bytes]]] = {}
    for kind, identifier, is_new, own, other in clashes:
        claim = claims.setdefault((kind, identifier), set())
        claim |= {(is_new, own.encode()), (True, other.encode())}
    owners: dict[str, list[str]] = {}
    said = []
    for (kind, _), texts in sorted(claims.items()):
        (_, chosen), *others = sorted(texts)
        owners.setdefault(kind, []).append(chosen.decode())
        refused = next(text for _, text in others if text != chosen)
        said.append((kind, chosen.decode(), refused.decode()))
    return owners, said[0]


def _read(storage: Path) -> dict[str, list[str]]:
    file = storage / OWNERS
    found: dict[str, list[str]] = orjson.loads(file.read_bytes()) if file.is_file() else {}
    return found


def _write(storage: Path, owners: dict[str, list[str]]) -> None:
    known = _read(storage)
    merged = {kind: [*known.get(kind, []), *owners.get(kind, [])] for kind in ("users", "items")}
    replace_durably(storage / OWNERS, orjson.dumps(merged))


def _bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())
