"""Separates usable events from unusable ones, and says what is wrong with those.

Shapes: N rows.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streaming.arrays import BoolArray, Float32Array, Int8Array, Int32Array, Int64Array
from streaming.config import StreamConfig
from streaming.events.dead_letter import DeadLetter
from streaming.events.faults import Reason
from streaming.events.mapping import FieldMapping
from streaming.events.quoting import quoted
from streaming.events.schema import (
    ACTION,
    DECODED_SCHEMA,
    EVENT_ID,
    EVENT_SCHEMA,
    ITEM_ID,
    TIMESTAMP_MS,
    USER_ID,
    VALUE,
    WEIGHT,
    empty_batch,
)
from streaming.events.signals import action_factors
from streaming.events.unreadable import Unreadable

LATEST_MS = 253_402_300_799_999
"""The end of the year 9999: a later time is in the wrong unit, and no calendar can show it."""

_NULLS = {1: USER_ID, 2: ITEM_ID, 3: TIMESTAMP_MS}
_WRONG_TIME, _WRONG_WEIGHT, _WRONG_VALUE, _WRONG_PARTITION, _FUTURE, _LATE, _UNFIT = 4, 5, 6, 7, 8, 9, 10
_CLASHES = {11: USER_ID, 12: ITEM_ID}
_CODES = dict.fromkeys(_NULLS, "missing_field") | {
    _WRONG_TIME: "bad_time",
    _WRONG_WEIGHT: "bad_weight",
    _WRONG_VALUE: "bad_value",
    _WRONG_PARTITION: "wrong_partition",
    _FUTURE: "future",
    _LATE: "late",
}


class TextIds(Protocol):
    """What is known about the texts of text ids; see `streaming.histories.id_texts`."""

    def clashes(self, id_N: Int64Array, text_at_Q: Int64Array, texts: pa.Array) -> BoolArray | None:
        """Remember texts, and find rows whose id belongs to another text; None if there are none."""

    def differs(self, id_Q: Int64Array, texts: pa.Array) -> BoolArray:
        """bool (q,): whether each id belongs to another text; nothing is remembered."""

    def texts(self, id_Q: Int64Array) -> list[str | None]:
        """The text of each id."""


class KnownTextIds(Protocol):
    """Those of users and of items."""

    @property
    def users(self) -> TextIds:
        """Of users."""

    @property
    def items(self) -> TextIds:
        """Of items."""


class Message(Protocol):
    """The part of a Kafka record that is read: kafka-python's ConsumerRecord, or a test's stand-in."""

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
    """The partition that messages were read from, and the limits that they must meet.

    Attributes:
        topic: its topic.
        partition: its number.
        partitions: number of the topic's partitions.
        max_future_ms: maximum time of an event ahead of the broker's time; 0: no limit.
        max_late_ms: maximum time of an event behind the latest earlier one in the partition; 0: no limit.
        max_message_bytes: longer messages are not decoded; 0: no limit.
        max_decoded_bytes: messages that decode to more are not decoded, and at most this many bytes of the originals of
            unusable rows are kept; 0: no limit.
        max_message_rows: messages with more rows are not decoded; 0: no limit.
        extents_known: whether `extent_of` has already accepted the messages.
        topic_id: of the topic; empty if the broker provides none.
        max_weight: maximum of an event's weight, before and after multiplication by its action's.
        max_value: maximum absolute value of its value.
        weight_of_action: factors of the weights, by action.
        mapping: where the fields of an event are; None: under their own names.
        texts: where the texts of text ids are remembered; None: nowhere.
        read: decodes messages without an encoding's header, by a schema; None: they are JSON.
    """

    topic: str
    partition: int
    partitions: int
    max_future_ms: int = 0
    max_late_ms: int = 0
    max_message_bytes: int = 0
    max_decoded_bytes: int = 0
    max_message_rows: int = 0
    extents_known: bool = False
    topic_id: str = ""
    max_weight: float = math.inf
    max_value: float = math.inf
    weight_of_action: Mapping[str, float] = field(default_factory=dict)
    mapping: FieldMapping | None = None
    texts: KnownTextIds | None = field(default=None, compare=False)
    read: Callable[[bytes], Any] | None = field(default=None, compare=False)

    @classmethod
    def of(cls, config: StreamConfig, topic: str, partition: int, partitions: int) -> Self:
        """A partition with the limits of the stream's settings."""
        return cls(
            topic,
            partition,
            partitions,
            max_future_ms=int(config.max_future_s * 1000),
            max_late_ms=int(config.max_late_s * 1000),
            max_message_bytes=config.max_message_bytes,
            max_decoded_bytes=config.max_decoded_bytes,
            max_message_rows=config.max_message_rows,
            max_weight=config.max_weight,
            max_value=config.max_value,
            weight_of_action=config.weight_of_action,
            mapping=FieldMapping.of_events(config),
        )

    def dead(self, reason: str, offset: int, row: int, value: bytes) -> DeadLetter:
        """A dead letter of this partition."""
        reason = self.mapping.explained(reason) if self.mapping else reason
        return DeadLetter(reason, self.topic, self.partition, offset, row, value, self.topic_id)


@dataclass
class ParsedEvents:
    """Events in columns, not yet validated.

    Attributes:
        events: EVENT_SCHEMA, N rows; may hold nulls anywhere.
        offset_N: offset of each row's message.
        row_N: row inside that message.
        append_N: broker time of that message, ms.
        key_N: Kafka's hash of each row's user, which determines the partition (undefined if the user is null).
        original: returns the original of row n, as stored in a dead letter.
        unfit_N: not 0 if the row has a value that its column cannot hold; None if there are no such rows.
        why_unfit: returns the reason for such a row, with its code.
        texts: Arrow strings (n,) by column, the ids that came as texts; null or empty where they did not.
    """

    events: pa.RecordBatch
    offset_N: Int64Array
    row_N: Int32Array
    append_N: Int64Array
    key_N: Int32Array
    original: Callable[[int], bytes]
    unfit_N: Int8Array | None = None
    why_unfit: Callable[[int], str] = str
    texts: Mapping[str, pa.Array] = field(default_factory=dict)


@dataclass
class Decoded:
    """Rows that were read: usable ones and dead letters, both in (offset, row) order.

    Attributes:
        rows: DECODED_SCHEMA, the usable ones.
        dead: the others.
        strays: number of dead letters whose users belong to another partition.
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
    """Separates usable events from the others; everything that passes can be trained on.

    Unusable: a value does not fit its column, a required field is missing, the timestamp is not positive, beyond the
    year 9999, too far in the future or too late, the weight (also times that of the action) is not above 0 or above
    `place.max_weight`, the value is not finite or beyond `place.max_value`, or the user belongs to another partition.
    A missing weight becomes 1, and empty texts count as missing.

    Args:
        parsed: consecutive rows.
        place: where they were read.
        watermark_ms: latest time of a usable event before them.
    """
    events = parsed.events
    weight_N = pc.fill_null(events[WEIGHT], np.float32(1.0))
    texts = {name: without_empty(events[name]) for name in (ACTION, EVENT_ID)}
    time_N = pc.fill_null(events[TIMESTAMP_MS], 0).to_numpy(zero_copy_only=False)
    problem_N = _problems(parsed, _effective_weights(weight_N, texts[ACTION], place), time_N, place)
    if place.max_late_ms:
        usable_N = np.where(problem_N == 0, time_N, 0)
        # The latest time before each row; late rows do not change it.
        before_N = np.maximum.accumulate(np.concatenate([[watermark_ms], usable_N]))[:-1]
        problem_N[(problem_N == 0) & (time_N < before_N - place.max_late_ms)] = _LATE
    if place.texts is not None:
        _refuse_clashes(parsed, place.texts, problem_N)
    at_N = np.full(len(problem_N), place.partition, np.int32)
    known = {WEIGHT: weight_N, **texts}
    columns = [known.get(name, events[name]) for name in EVENT_SCHEMA.names]
    columns += [pa.array(x) for x in (at_N, parsed.offset_N, parsed.row_N, parsed.append_N, parsed.key_N)]
    rows = pa.RecordBatch.from_arrays(columns, schema=DECODED_SCHEMA)
    if not problem_N.any():
        return Decoded(rows, [])
    dead = _dead_letters(parsed, place, problem_N)
    strays = int((problem_N == _WRONG_PARTITION).sum())
    return Decoded(rows.filter(pa.array(problem_N == 0)), dead, strays)


def with_texts(texts: Mapping[str, pa.Array | None]) -> dict[str, pa.Array]:
    """The columns that have texts."""
    return {name: column for name, column in texts.items() if column is not None}


def _refuse_clashes(parsed: ParsedEvents, known: KnownTextIds, problem_N: Int8Array) -> None:
    """Mark usable rows whose id belongs to another text, and remember the texts of the others."""
    for code, name in _CLASHES.items():
        place_U = np.flatnonzero(problem_N == 0)
        id_U = pc.fill_null(parsed.events[name], 0).to_numpy(zero_copy_only=False)[place_U]
        texts, text_at_Q = pa.array([], pa.string()), np.zeros(0, np.int64)
        if name in parsed.texts:
            column = parsed.texts[name].take(pa.array(place_U))
            text_at_Q = np.flatnonzero(pc.fill_null(pc.not_equal(column, ""), False))
            texts = column.take(pa.array(text_at_Q))
        clash_U = _of(known, name).clashes(id_U, text_at_Q, texts)
        if clash_U is not None:
            problem_N[place_U[clash_U]] = code


def _of(known: KnownTextIds, name: str) -> TextIds:
    return known.users if name == USER_ID else known.items


def clash_reason(name: str, given: int | str, first: str) -> str:
    """Why an id cannot be used whose hash is that of another text."""
    if isinstance(given, int):
        said = f"{name} {given} is also the 64-bit hash of the text {quoted(first)}, which came first"
    else:
        both = f"{quoted(given)} has the same 64-bit hash as {quoted(first)}"
        said = f"{name} {both}, which came first: rename one of them"
    return Reason("id_clash", said)


def without_empty(texts: pa.Array) -> pa.Array:
    """Replace empty texts by null."""
    if texts.null_count == len(texts):
        return texts
    is_empty = pc.equal(texts, "")
    return pc.if_else(is_empty, pa.scalar(None, pa.string()), texts) if pc.any(is_empty).as_py() else texts


def _effective_weights(weight_N: pa.Array, actions: pa.Array, place: Place) -> Float32Array:
    """float32 (n,): the weight of each row in the loss."""
    weights: Float32Array = weight_N.to_numpy(zero_copy_only=False)
    if place.weight_of_action:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            weights = weights * action_factors(actions, place.weight_of_action)
    return weights


def _problems(parsed: ParsedEvents, effective_N: Float32Array, time_N: Int64Array, place: Place) -> Int8Array:
    """A code per row: 0 if it is usable, else the first rule that it violates."""
    problem_N = np.zeros(parsed.events.num_rows, np.int8)
    problem_N[parsed.key_N % place.partitions != place.partition] = _WRONG_PARTITION
    values = parsed.events[VALUE]
    if values.null_count < len(values):
        value_N = pc.fill_null(values, np.float32(0.0)).to_numpy(zero_copy_only=False)
        problem_N[~(np.isfinite(value_N) & (np.abs(value_N) <= place.max_value))] = _WRONG_VALUE
    # Comparisons with NaN are false.
    is_weight_N = (effective_N > 0) & (effective_N <= place.max_weight) & np.isfinite(effective_N)
    problem_N[~is_weight_N] = _WRONG_WEIGHT
    if place.max_future_ms:
        problem_N[time_N - np.clip(parsed.append_N, 0, LATEST_MS) > place.max_future_ms] = _FUTURE
    problem_N[(time_N <= 0) | (time_N > LATEST_MS)] = _WRONG_TIME
    for code, name in reversed(_NULLS.items()):
        if parsed.events[name].null_count:
            problem_N[parsed.events[name].is_null().to_numpy(zero_copy_only=False)] = code
    if parsed.unfit_N is not None:
        problem_N[parsed.unfit_N != 0] = _UNFIT
    return problem_N


def _dead_letters(parsed: ParsedEvents, place: Place, problem_N: Int8Array) -> list[DeadLetter]:
    """A dead letter for each row with a problem; originals are kept up to the limit of their total size."""
    letters: list[DeadLetter] = []
    room = place.max_decoded_bytes or math.inf
    for n in np.flatnonzero(problem_N).tolist():
        original = parsed.original(n) if room > 0 else Unreadable(b"", "left out", 0)
        room -= len(original)
        reason = _reason(parsed, place, n, int(problem_N[n]))
        letters.append(place.dead(reason, int(parsed.offset_N[n]), int(parsed.row_N[n]), original))
    return letters


def _reason(parsed: ParsedEvents, place: Place, n: int, problem: int) -> str:
    """What is wrong with row n, with its code."""
    if problem == _UNFIT:
        return parsed.why_unfit(n)
    if problem in _CLASHES:
        return _reason_of_clash(parsed, place, n, _CLASHES[problem])
    said = _in_words(parsed, place, n, problem)
    return Reason(_CODES[problem], said)


def _in_words(parsed: ParsedEvents, place: Place, n: int, problem: int) -> str:
    if problem in _NULLS:
        return f"{_NULLS[problem]} is missing"
    time_ms = parsed.events[TIMESTAMP_MS][n].as_py()
    if problem == _WRONG_TIME:
        rule = "must be positive" if time_ms <= 0 else "must be before the year 10000"
        return f"{TIMESTAMP_MS} {rule}, got {time_ms}"
    if problem == _WRONG_WEIGHT:
        return _reason_of_weight(parsed.events, place, n)
    if problem == _WRONG_VALUE:
        value = parsed.events[VALUE][n].as_py()
        if not math.isfinite(value):
            return f"{VALUE} must be finite, got {value}"
        limit = place.max_value
        return f"{VALUE} must be from {-limit:g} to {limit:g} (stream.max_value), got {value:g}"
    if problem == _FUTURE:
        ahead_s = (time_ms - int(parsed.append_N[n])) / 1000
        limit_s = place.max_future_ms / 1000
        return (
            f"{TIMESTAMP_MS} is {ahead_s:.0f} s ahead of the broker's time (stream.max_future_s={limit_s:g})"
        )
    if problem == _LATE:
        limit_s = place.max_late_ms / 1000
        return f"{TIMESTAMP_MS} is behind the partition's latest by more than stream.max_late_s={limit_s:g}"
    home = int(parsed.key_N[n]) % place.partitions
    return (
        f"the user belongs to partition {home} of {place.partitions}, "
        f"but the row was read from partition {place.partition}: key messages by the user id, "
        "with partitioner=murmur2_random in producers of librdkafka"
    )


def _reason_of_clash(parsed: ParsedEvents, place: Place, n: int, name: str) -> str:
    identifier = parsed.events[name][n].as_py()
    given = parsed.texts[name][n].as_py() if name in parsed.texts else None
    assert place.texts is not None
    (first,) = _of(place.texts, name).texts(np.array([identifier], np.int64))
    return clash_reason(name, given or identifier, first or "")


def _reason_of_weight(events: pa.RecordBatch, place: Place, n: int) -> str:
    weight, action = events[WEIGHT][n].as_py(), events[ACTION][n].as_py()
    weight = 1.0 if weight is None else weight
    if not math.isfinite(weight):
        return f"{WEIGHT} must be finite, got {weight}"
    rule = f"must be above 0 and at most {place.max_weight:g} (stream.max_weight)"
    if 0 < weight <= place.max_weight:
        factor = place.weight_of_action.get(action, 1.0)
        return f"{WEIGHT} times the {factor:g} of its action (stream.action_weights) {rule}, got {weight:g}"
    return f"{WEIGHT} {rule}, got {weight:g}"
