"""Messages that nobody can use, of every kind that was seen to do harm; all for partition 0."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from tests.chaos.black_box.counting import ALL, ENCODING

_ARROW = [(ENCODING, b"arrow")]


@dataclass(frozen=True)
class Hostile:
    """One message.

    Attributes:
        kind: what it is.
        value: its bytes.
        bad_rows: which of its rows come to a dead letter: numbers with commas between them, or ALL.
        headers: of the message.
    """

    kind: str
    value: bytes
    bad_rows: bytes = ALL
    headers: Sequence[tuple[str, bytes]] = field(default=())


def hostile_messages(
    home: Sequence[int], *, other_home: Sequence[int], event: Callable[[int], dict[str, Any]]
) -> list[Hostile]:
    """One of each kind.

    Args:
        home: users of partition 0.
        other_home: users of another partition.
        event: a usable event of a user.
    """
    user = home[0]

    def with_(**fields: Any) -> bytes:
        return json.dumps(event(user) | fields).encode()

    def without(name: str) -> bytes:
        return json.dumps({key: value for key, value in event(user).items() if key != name}).encode()

    return [
        Hostile("no JSON", b"nonsense"),
        Hostile("nothing", b""),
        Hostile("a list", b"[1, 2]"),
        Hostile("no item", without("item_id")),
        Hostile("no user", without("user_id")),
        Hostile("a weight that is text", with_(weight="heavy")),
        Hostile("an infinite weight", with_(weight=0).replace(b'"weight": 0', b'"weight": 1e999')),
        Hostile("a time in the far future", with_(timestamp_ms=4_102_444_800_000)),
        Hostile("a time before all times", with_(timestamp_ms=-1)),
        Hostile("a user of another partition", json.dumps(event(other_home[0])).encode()),
        Hostile("an unknown wire form", with_(), headers=[(ENCODING, b"avro")]),
        Hostile("no Arrow", b"\xff\xff\xff\xff\x10\x00\x00\x00nonsense", headers=_ARROW),
        Hostile("Arrow that is cut off", _arrow([event(u) for u in home[:9]])[:-40], headers=_ARROW),
        Hostile("an Arrow row without a user", *_one_bad_row([event(u) for u in home[:9]])),
    ]


def _one_bad_row(events: list[dict[str, Any]]) -> tuple[bytes, bytes, list[tuple[str, bytes]]]:
    events[4]["user_id"] = None
    return _arrow(events), b"4", _ARROW


def _arrow(events: list[dict[str, Any]]) -> bytes:
    return encoded(pa.RecordBatch.from_pylist(events))


def encoded(batch: pa.RecordBatch) -> bytes:
    """An Arrow message of one batch."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()
