"""Events in JSON messages: one object per message.

Shapes: N rows (here also messages).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from streaming.dead_letter import DeadLetter
from streaming.hashing import hash_texts
from streaming.partitioner import Int64s, key_hashes_of_texts
from streaming.schema import (
    ACTION,
    EVENT_ID,
    EVENT_SCHEMA,
    ITEM_ID,
    TIMESTAMP_MS,
    USER_ID,
    VALUE,
    WEIGHT,
)
from streaming.validation import Message, ParsedEvents, Place

_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


def parse(messages: Sequence[Message], place: Place) -> tuple[ParsedEvents, list[DeadLetter]]:
    """Columns of the messages that hold a well-typed event; the others become dead letters."""
    good: list[Message] = []
    events: list[dict[str, Any]] = []
    dead: list[DeadLetter] = []
    for message in messages:
        value = message.value or b""
        try:
            event = orjson.loads(value)
            problem = problem_of_event(event)
        except orjson.JSONDecodeError as error:
            problem = f"not JSON: {error}" if value else "the message is empty"
        if problem:
            dead.append(place.dead(problem, message.offset, 0, value))
        else:
            good.append(message)
            events.append(event)
    return _columns(good, events), dead


def problem_of_event(event: Any) -> str:
    """What is wrong with the types of a decoded JSON event; empty if nothing is."""
    if type(event) is not dict:
        return f"an event must be a JSON object, not {type(event).__name__}"
    user, item, timestamp = event.get(USER_ID), event.get(ITEM_ID), event.get(TIMESTAMP_MS)
    for name, identifier in ((USER_ID, user), (ITEM_ID, item)):
        problem = problem_of_id(name, identifier)
        if problem:
            return problem
    if timestamp is None:
        return f"{TIMESTAMP_MS} is missing"
    # bool is a subclass of int, and no number: hence `type() is`, not isinstance.
    if type(timestamp) is not int or timestamp > _INT64_MAX:
        return f"{TIMESTAMP_MS} must be a 64-bit integer, got {timestamp!r}"
    for name in (WEIGHT, VALUE):
        number = event.get(name)
        if number is not None and type(number) not in (int, float):
            return f"{name} must be a number, got {number!r}"
    for name in (ACTION, EVENT_ID):
        text = event.get(name)
        if text is not None and type(text) is not str:
            return f"{name} must be a string, got {text!r}"
    return ""


def problem_of_id(name: str, identifier: Any) -> str:
    """What keeps a decoded JSON value from being an id; empty if nothing does."""
    if identifier is None or identifier == "":
        return f"{name} is missing"
    if type(identifier) is str:
        return ""
    if type(identifier) is not int:
        return f"{name} must be an integer or a string, got {identifier!r}"
    if not _INT64_MIN <= identifier <= _INT64_MAX:
        return f"{name} must fit in 64 bits, got {identifier}"
    return ""


def _columns(messages: list[Message], events: list[dict[str, Any]]) -> ParsedEvents:
    user_N = [event[USER_ID] for event in events]
    texts_N = pa.array([str(user) for user in user_N], pa.string())
    columns = [
        pa.array(integer_ids(user_N)),
        pa.array(integer_ids([event[ITEM_ID] for event in events])),
        pa.array([event[TIMESTAMP_MS] for event in events], pa.int64()),
        pa.array([event.get(ACTION) for event in events], pa.string()),
        _floats([event.get(WEIGHT) for event in events]),
        _floats([event.get(VALUE) for event in events]),
        pa.array([event.get(EVENT_ID) for event in events], pa.string()),
    ]
    return ParsedEvents(
        pa.RecordBatch.from_arrays(columns, schema=EVENT_SCHEMA),
        np.array([message.offset for message in messages], np.int64),
        np.zeros(len(messages), np.int32),
        np.array([message.timestamp for message in messages], np.int64),
        key_hashes_of_texts(texts_N),
        lambda n: messages[n].value or b"",
    )


def integer_ids(ids: list[int | str]) -> Int64s:
    """Ids as int64: integers as they are, strings hashed by xxh64; ids must have passed `problem_of_id`."""
    ids_N = np.array([0 if type(i) is str else i for i in ids], np.int64)
    text_at = [n for n, identifier in enumerate(ids) if type(identifier) is str]
    if text_at:
        ids_N[text_at] = hash_texts(pa.array([ids[n] for n in text_at], pa.string()))
    return ids_N


def _floats(numbers: list[float | None]) -> pa.Array:
    # By way of float64: pyarrow refuses integers that a float32 cannot hold exactly.
    doubles = pa.array([None if n is None else float(n) for n in numbers], pa.float64())
    return doubles.cast(pa.float32(), safe=False)
