"""Events in JSON messages as columns, without a Python object for any of them.

Shapes: N messages, P of them plain: flat values of the expected types, which one compiled pass reads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit

from streaming.arrays import BoolArray, Float64Array, Int32Array, Int64Array, UInt8Array
from streaming.codecs.json_scanner import (
    ABSENT,
    INTEGER,
    LONG_REAL,
    REFUSED,
    TEXT,
    UTF8,
    Found,
    fields_of,
    scan,
)
from streaming.events.ids import ids_of_texts
from streaming.events.mapping import FieldMapping
from streaming.events.partitioner import key_hashes_of_texts, key_hashes_of_users
from streaming.events.schema import (
    ACTION,
    EVENT_ID,
    EVENT_SCHEMA,
    ITEM_ID,
    TIMESTAMP_MS,
    USER_ID,
    VALUE,
    WEIGHT,
)

_UNITS_PER_S = {"s": 1, "ms": 1000, "us": 1_000_000, "ns": 1_000_000_000}
_MOST_SECONDS = (2**63 - 1) // 1000
_OWN_PATHS = {name: (name,) for name in EVENT_SCHEMA.names}


class EventColumns(NamedTuple):
    """Well-typed events.

    Attributes:
        events: EVENT_SCHEMA (n,).
        key_N: Kafka's hash of each user.
        texts: Arrow strings (n,) of text ids by column, null for numbers; None if all are numbers.
    """

    events: pa.RecordBatch
    key_N: Int32Array
    texts: Mapping[str, pa.Array | None]


def plain_events(
    values: Sequence[bytes], mapping: FieldMapping | None
) -> tuple[Int64Array, EventColumns] | None:
    """The plain messages, as their places (p,) and columns; None if the mapping needs a message's whole object.

    Args:
        values: JSON, or anything else.
        mapping: where the fields are; None: under their own names.
    """
    unit = mapping.unit if mapping is not None else "ms"
    paths = mapping.paths if mapping is not None else _OWN_PATHS
    fields = fields_of(paths, (USER_ID, ITEM_ID), (TIMESTAMP_MS,), (ACTION, EVENT_ID))
    if fields is None or unit not in _UNITS_PER_S:
        return None
    data = b"".join(values)
    found = scan(data, np.cumsum(np.fromiter(map(len, values), np.int64, len(values))), fields)
    at = {name: f for f, name in enumerate(paths)}
    place_P = np.flatnonzero(_is_plain(data, found, found.start_FN[at[TIMESTAMP_MS]], unit))
    read = _Plain(np.frombuffer(data, np.uint8), found, place_P, at)
    users, user_P, key_P = read.ids(USER_ID)
    items, item_P, _ = read.ids(ITEM_ID)
    actions = read.texts(ACTION)
    if mapping is not None and mapping.default_action:
        actions = pc.if_else(pc.fill_null(pc.equal(actions, ""), True), mapping.default_action, actions)
    columns = [
        pa.array(user_P),
        pa.array(item_P),
        pa.array(_milliseconds(found.start_FN[at[TIMESTAMP_MS]][place_P], unit)),
        actions,
        read.numbers(WEIGHT),
        read.numbers(VALUE),
        read.texts(EVENT_ID),
    ]
    events = pa.RecordBatch.from_arrays(columns, schema=EVENT_SCHEMA)
    return place_P, EventColumns(events, key_P, {USER_ID: users, ITEM_ID: items})


def _is_plain(data: bytes, found: Found, time_N: Int64Array, unit: str) -> BoolArray:
    plain_N: BoolArray = found.status_N != REFUSED
    if (found.status_N == UTF8).any():
        try:
            # An accepted object ends in a brace, so no character can reach from one message into the next.
            data.decode()
        except UnicodeDecodeError:
            plain_N &= found.status_N != UTF8
    if unit == "s":
        plain_N &= np.abs(time_N) <= _MOST_SECONDS
    return plain_N


def _milliseconds(time_P: Int64Array, unit: str) -> Int64Array:
    if unit == "s":
        return time_P * 1000
    return time_P // (_UNITS_PER_S[unit] // 1000)


@dataclass
class _Plain:
    """Columns of the plain messages."""

    data: UInt8Array
    found: Found
    place_P: Int64Array
    at: dict[str, int]

    def ids(self, name: str) -> tuple[pa.Array | None, Int64Array, Int32Array]:
        """The texts, the ids, and Kafka's hashes of a column of ids."""
        id_P = self._start(name)
        is_text_P = self._kind(name) == TEXT
        if not is_text_P.any():
            return None, id_P, key_hashes_of_users(id_P)
        texts = self._cut(name, ~is_text_P)
        id_P[is_text_P] = 0
        key_P = key_hashes_of_users(id_P)
        given = texts.drop_null()
        id_P[is_text_P], key_P[is_text_P] = ids_of_texts(given), key_hashes_of_texts(given)
        return texts, id_P, key_P

    def texts(self, name: str) -> pa.Array:
        """A column of texts."""
        is_absent_P = self._kind(name) == ABSENT
        if is_absent_P.all():
            return pa.nulls(len(is_absent_P), pa.string())
        return self._cut(name, is_absent_P)

    def numbers(self, name: str) -> pa.Array:
        """A column of float32."""
        kind_P = self._kind(name)
        if (kind_P == ABSENT).all():
            return pa.nulls(len(kind_P), pa.float32())
        real_P: Float64Array = self.found.real_FN[self.at[name]][self.place_P]
        is_whole_P, is_long_P = kind_P == INTEGER, kind_P == LONG_REAL
        real_P[is_whole_P] = self._start(name)[is_whole_P]
        if is_long_P.any():
            long = self._cut(name, ~is_long_P).drop_null()
            real_P[is_long_P] = long.cast(pa.float64()).to_numpy()
        return pa.array(real_P, mask=kind_P == ABSENT).cast(pa.float32(), safe=False)

    def _kind(self, name: str) -> UInt8Array:
        kind_P: UInt8Array = self.found.kind_FN[self.at[name]][self.place_P]
        return kind_P

    def _start(self, name: str) -> Int64Array:
        start_P: Int64Array = self.found.start_FN[self.at[name]][self.place_P]
        return start_P

    def _cut(self, name: str, is_null_P: BoolArray) -> pa.Array:
        """The texts of a column; null where they are to be left out."""
        start_P, end_P = self._start(name), self.found.end_FN[self.at[name]][self.place_P]
        length_P = np.where(is_null_P, 0, end_P - start_P)
        offsets = np.concatenate([[0], np.cumsum(length_P)])
        out = np.empty(offsets[-1], np.uint8)
        _copy(self.data, start_P, offsets, out)
        texts = pa.LargeStringArray.from_buffers(len(start_P), pa.py_buffer(offsets), pa.py_buffer(out))
        texts = texts.cast(pa.string())
        return (
            pc.if_else(pa.array(is_null_P), pa.scalar(None, pa.string()), texts) if is_null_P.any() else texts
        )


@njit(cache=True, nogil=True)
def _copy(data: UInt8Array, start_P: Int64Array, offset_P: Int64Array, out: UInt8Array) -> None:
    for p in range(len(start_P)):
        for k in range(offset_P[p + 1] - offset_P[p]):
            out[offset_P[p] + k] = data[start_P[p] + k]
