"""Where the events of a message belong: the message itself for one partition, or an Arrow message for each.

Shapes: N rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from streaming.codecs.arrow_events import original_rows
from streaming.codecs.codec import ARROW, ENCODING_HEADER, decode_messages, encode_events, encoding_of
from streaming.events.schema import KEY_HASH, OFFSET, ROW, USER_ID
from streaming.events.validation import Place
from streaming.histories.id_texts import KnownTexts


@dataclass(frozen=True)
class Routed:
    """A message for one partition.

    Attributes:
        partition: of the topic that is written.
        key: the user id as text, if the message is of one user.
        value: the original, or some rows of it.
        headers: the original's.
    """

    partition: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]


class _Numbered(NamedTuple):
    """A record's message under its number among the records; offsets of several partitions may be the same."""

    offset: int
    timestamp: int
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] | None


def route_all(records: Sequence[Any], place: Place, partitions: int) -> list[list[Routed]]:
    """Where the rows of each record go. Messages of one event are decoded together.

    Args:
        records: of the topic that is read, of any partitions.
        place: see `route`.
        partitions: of the topic that is written.
    """
    single = [n for n, record in enumerate(records) if encoding_of(record) != ARROW]
    texts = KnownTexts()
    messages = [_Numbered(n, records[n].timestamp, records[n].value, records[n].headers) for n in single]
    rows = decode_messages(messages, replace(place, texts=texts)).rows
    at = rows[OFFSET].to_pylist()
    homes = (rows[KEY_HASH].to_numpy() % partitions).tolist()
    keys = texts.users.as_given(rows[USER_ID].to_numpy())
    routed: dict[int, list[Routed]] = {}
    for n, home, key in zip(at, homes, keys, strict=True):
        routed[n] = [Routed(home, str(key).encode(), records[n].value, _headers(records[n]))]
    # Arrow messages, and events that cannot be used or whose id clashes with another's of these records.
    return [routed.get(n) or list(route(record, place, partitions)) for n, record in enumerate(records)]


def route(record: Any, place: Place, partitions: int) -> Iterator[Routed]:
    """Where the rows of a record go; rows without a usable user keep their partition as far as it exists.

    Args:
        record: of the topic that is read.
        place: where it was read, as the only partition of its topic, and without limits of time.
        partitions: of the topic that is written.
    """
    headers = _headers(record)
    texts = KnownTexts()
    place = replace(place, texts=texts)
    rows = decode_messages([record], place).rows
    stays = record.partition % partitions
    if encoding_of(record) != ARROW or not rows.num_rows:
        home = int(rows[KEY_HASH][0].as_py()) % partitions if rows.num_rows else stays
        key = str(texts.users.as_given(rows[USER_ID].to_numpy())[0]).encode() if rows.num_rows else record.key
        yield Routed(home, key, record.value, headers)
        return
    batch = original_rows(record.value, place)
    home_N = np.full(batch.num_rows, stays, np.int64)
    home_N[rows[ROW].to_numpy()] = rows[KEY_HASH].to_numpy() % partitions
    for home in np.unique(home_N).tolist():
        some = batch.take(pa.array(np.flatnonzero(home_N == home)))
        yield Routed(home, None, encode_events(some), [(ENCODING_HEADER, ARROW)])


def _headers(record: Any) -> list[tuple[str, bytes]]:
    return [(name, bytes(value or b"")) for name, value in record.headers or ()]
