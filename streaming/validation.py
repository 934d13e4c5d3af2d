"""Which parsed events can be used, and what is wrong with the others.

Shapes: N rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from streaming.dead_letter import DeadLetter
from streaming.partitioner import Int32s, Int64s
from streaming.schema import DECODED_SCHEMA, EVENT_SCHEMA, ITEM_ID, TIMESTAMP_MS, USER_ID, WEIGHT, empty_batch

Int8s = npt.NDArray[np.int8]

_NULLS = {1: USER_ID, 2: ITEM_ID, 3: TIMESTAMP_MS}
_NOT_POSITIVE, _NOT_FINITE, _WRONG_PARTITION, _FUTURE, _LATE = 4, 5, 6, 7, 8
# No sum of a broker time and a limit in milliseconds overflows below this.
_LATEST_MS = 2**62


class Message(Protocol):
    """What is read of a Kafka record: kafka-python's ConsumerRecord, or a test's stand-in."""

    @property
    def offset(self) -> int:
        """Offset in the partition."""

    @property
    def timestamp(self) -> int:
        """Broker time (or the producer's, if the topic says so), ms."""

    @property
    def value(self) -> bytes | None:
        """Payload; None in a tombstone."""

    @property
    def headers(self) -> Sequence[tuple[str, bytes]] | None:
        """Header names and values."""


@dataclass(frozen=True)
class Place:
    """The partition that messages were read from, and what is asked of them.

    Attributes:
        topic: its topic.
        partition: its number.
        partitions: how many partitions the topic has.
        max_future_ms: how far an event's time may be ahead of the broker's; 0 for any.
        max_late_ms: how far it may be behind the latest one before it in the partition; 0 for any.
        max_message_bytes: longer messages are not decoded; 0 for any length.
    """

    topic: str
    partition: int
    partitions: int
    max_future_ms: int = 0
    max_late_ms: int = 0
    max_message_bytes: int = 0

    def dead(self, reason: str, offset: int, row: int, value: bytes) -> DeadLetter:
        """A dead letter of this partition."""
        return DeadLetter(reason, self.topic, self.partition, offset, row, value)


@dataclass
class ParsedEvents:
    """Events in columns, not yet judged.

    Attributes:
        events: EVENT_SCHEMA, N rows; may hold nulls anywhere.
        offset_N: offset of each row's message.
        row_N: row inside that message.
        append_N: broker time of that message, ms.
        key_N: Kafka's hash of each row's user, from which the partition follows (anything where the user is null).
        original: the original of row n, as a dead letter carries it.
    """

    events: pa.RecordBatch
    offset_N: Int64s
    row_N: Int32s
    append_N: Int64s
    key_N: Int32s
    original: Callable[[int], bytes]


@dataclass
class Decoded:
    """Rows that were read, each in one of two places, both in (offset, row) order.

    Attributes:
        rows: DECODED_SCHEMA, the usable ones.
        dead: the others.
        strays: how many of these are of users of another partition.
    """

    rows: pa.RecordBatch = field(default_factory=lambda: empty_batch(DECODED_SCHEMA))
    dead: list[DeadLetter] = field(default_factory=list)
    strays: int = 0

    @property
    def row_count(self) -> int:
        """Rows read, usable or not."""
        return int(self.rows.num_rows) + len(self.dead)

    @property
    def latest_ms(self) -> int:
        """Latest event time of the usable rows; 0 without any."""
        return int(self.rows[TIMESTAMP_MS].to_numpy().max(initial=0))


def judge(parsed: ParsedEvents, place: Place, watermark_ms: int = 0) -> Decoded:
    """Separates usable events from the others.

    Unusable: a required field is null, the timestamp is not positive, too far in the future or too late, the weight
    is not finite, or the user belongs to another partition. A null weight becomes 1.

    Args:
        parsed: consecutive rows.
        place: where they were read.
        watermark_ms: latest time of a usable event before them.
    """
    events = parsed.events
    weight_N = pc.fill_null(events[WEIGHT], np.float32(1.0))
    time_N = pc.fill_null(events[TIMESTAMP_MS], 0).to_numpy(zero_copy_only=False)
    problem_N = _problems(parsed, weight_N, time_N, place)
    if place.max_late_ms:
        usable_N = np.where(problem_N == 0, time_N, 0)
        # The latest before each row; one that is late itself never moves it.
        before_N = np.maximum.accumulate(np.concatenate([[watermark_ms], usable_N]))[:-1]
        problem_N[(problem_N == 0) & (time_N < before_N - place.max_late_ms)] = _LATE
    at_N = np.full(len(problem_N), place.partition, np.int32)
    columns = [weight_N if name == WEIGHT else events[name] for name in EVENT_SCHEMA.names]
    columns += [pa.array(x) for x in (at_N, parsed.offset_N, parsed.row_N, parsed.append_N, parsed.key_N)]
    rows = pa.RecordBatch.from_arrays(columns, schema=DECODED_SCHEMA)
    if not problem_N.any():
        return Decoded(rows, [])
    dead = [_dead_letter(parsed, place, int(n), int(problem_N[n])) for n in np.flatnonzero(problem_N)]
    strays = int((problem_N == _WRONG_PARTITION).sum())
    return Decoded(rows.filter(pa.array(problem_N == 0)), dead, strays)


def _problems(parsed: ParsedEvents, weight_N: pa.Array, time_N: Int64s, place: Place) -> Int8s:
    """A code per row: 0 where it is usable; the first rule that is broken wins."""
    problem_N = np.zeros(parsed.events.num_rows, np.int8)
    problem_N[parsed.key_N % place.partitions != place.partition] = _WRONG_PARTITION
    problem_N[~np.isfinite(weight_N.to_numpy(zero_copy_only=False))] = _NOT_FINITE
    if place.max_future_ms:
        problem_N[time_N > np.minimum(parsed.append_N, _LATEST_MS) + place.max_future_ms] = _FUTURE
    problem_N[time_N <= 0] = _NOT_POSITIVE
    for code, name in reversed(_NULLS.items()):
        if parsed.events[name].null_count:
            problem_N[parsed.events[name].is_null().to_numpy(zero_copy_only=False)] = code
    return problem_N


def _dead_letter(parsed: ParsedEvents, place: Place, n: int, problem: int) -> DeadLetter:
    if problem in _NULLS:
        reason = f"{_NULLS[problem]} is missing"
    elif problem == _NOT_POSITIVE:
        reason = f"{TIMESTAMP_MS} must be positive, got {parsed.events[TIMESTAMP_MS][n].as_py()}"
    elif problem == _NOT_FINITE:
        reason = f"{WEIGHT} must be finite, got {parsed.events[WEIGHT][n].as_py()}"
    elif problem == _FUTURE:
        ahead_s = (parsed.events[TIMESTAMP_MS][n].as_py() - int(parsed.append_N[n])) / 1000
        limit_s = place.max_future_ms / 1000
        reason = (
            f"{TIMESTAMP_MS} is {ahead_s:.0f} s ahead of the broker's time (stream.max_future_s={limit_s:g})"
        )
    elif problem == _LATE:
        limit_s = place.max_late_ms / 1000
        reason = f"{TIMESTAMP_MS} is behind the partition's latest by more than stream.max_late_s={limit_s:g}"
    else:
        home = int(parsed.key_N[n]) % place.partitions
        reason = (
            f"the user belongs to partition {home} of {place.partitions}, "
            f"but the row was read from partition {place.partition}"
        )
    return place.dead(reason, int(parsed.offset_N[n]), int(parsed.row_N[n]), parsed.original(n))
