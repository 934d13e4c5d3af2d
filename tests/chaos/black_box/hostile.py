"""Unusable messages of every kind that has caused harm; all for partition 0."""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tests.chaos.black_box.counting import ALL, ENCODING

_Headers = Sequence[tuple[str, bytes]]
_ARROW: _Headers = [(ENCODING, b"arrow")]
_DEEP = b"[" * 1000 + b"]" * 1000


@dataclass(frozen=True)
class Hostile:
    """One message.

    Attributes:
        kind: what it is.
        value: its bytes.
        bad_rows: rows that become dead letters: numbers separated by commas, or ALL.
        headers: of the message.
    """

    kind: str
    value: bytes
    bad_rows: bytes = ALL
    headers: _Headers = ()


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

    def some() -> list[dict[str, Any]]:
        return [event(of) for of in home[:9]]

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
        Hostile("Arrow that is cut off", _arrow(some())[:-40], headers=_ARROW),
        Hostile("a negative weight on a new item", with_(weight=-1, item_id=10**9)),
        Hostile("a very large weight", with_(weight=1e30)),
        Hostile("a number beyond 64 bits", with_(item_id=2**70)),
        Hostile("JSON 1,000 deep", with_(action=0).replace(b'"action": 0', b'"action": ' + _DEEP)),
        Hostile("an Arrow row without a user", *_bad_row(some(), "user_id", None)),
        Hostile("an Arrow row of the far future", *_bad_row(some(), "timestamp_ms", 4_102_444_800_000)),
        Hostile("an Arrow row beyond int64", *_beyond_int64(some())),
        Hostile("a bad row beside the year 10000", *_year_10000(some())),
        Hostile("a million rows in 400 bytes", _many_nulls(), headers=_ARROW),
        Hostile("gigabytes of text in 2 kB", _long_texts(user), headers=_ARROW),
    ]


def _bad_row(events: list[dict[str, Any]], name: str, value: Any) -> tuple[bytes, bytes, _Headers]:
    events[4][name] = value
    return _arrow(events), b"4", _ARROW


def _beyond_int64(events: list[dict[str, Any]]) -> tuple[bytes, bytes, _Headers]:
    batch = pa.RecordBatch.from_pylist(events)
    items = [2**64 - 1 if row == 4 else event["item_id"] for row, event in enumerate(events)]
    at = batch.schema.get_field_index("item_id")
    return encoded(batch.set_column(at, "item_id", pa.array(items, pa.uint64()))), b"4", _ARROW


def _year_10000(events: list[dict[str, Any]]) -> tuple[bytes, bytes, _Headers]:
    """An unread column with a time for which Python has no date."""
    events[4]["user_id"] = None
    batch = pa.RecordBatch.from_pylist(events)
    times = pa.array([253_402_300_800_000] * len(events), pa.timestamp("ms"))
    return encoded(batch.append_column("seen_at", times)), b"4", _ARROW


@functools.cache
def _many_nulls() -> bytes:
    nulls = pa.nulls(1_000_000)
    return encoded(pa.record_batch([nulls] * 3, names=["user_id", "item_id", "timestamp_ms"]))


@functools.cache
def _long_texts(user: int) -> bytes:
    """A dictionary of one text of a megabyte, which 2,000 rows refer to."""
    ones = pa.array([user] * 2000, pa.int64())
    actions = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), ["x" * 1_000_000])
    names = ["user_id", "item_id", "timestamp_ms", "action"]
    return encoded(pa.record_batch([ones, ones, ones, actions], names=names), compression="zstd")


def _arrow(events: list[dict[str, Any]]) -> bytes:
    return encoded(pa.RecordBatch.from_pylist(events))


def encoded(batch: pa.RecordBatch, compression: str | None = None) -> bytes:
    """An Arrow message of one batch."""
    sink, options = pa.BufferOutputStream(), pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()
