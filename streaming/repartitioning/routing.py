"""Where the events of a message belong: the message itself for one partition, or an Arrow message for each.

Shapes: N rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from streaming.codecs.arrow_events import original_rows
from streaming.codecs.codec import ARROW, ENCODING_HEADER, decode_messages, encode_events, encoding_of
from streaming.events.schema import KEY_HASH, ROW, USER_ID
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


def route(record: Any, place: Place, partitions: int) -> Iterator[Routed]:
    """Where the rows of a record go; rows without a usable user keep their partition as far as it exists.

    Args:
        record: of the topic that is read.
        place: where it was read, as the only partition of its topic, and without limits of time.
        partitions: of the topic that is written.
    """
    headers = [(name, bytes(value or b"")) for name, value in record.headers or ()]
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
