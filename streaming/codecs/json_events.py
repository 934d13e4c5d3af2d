"""Events in JSON messages: one object per message.

Shapes: N rows (here also messages).
"""

import gc
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from streaming.arrays import Int64Array
from streaming.codecs.json_columns import EventColumns, plain_events
from streaming.codecs.schemas.reader import UnfitMessage
from streaming.events.dead_letter import DeadLetter
from streaming.events.faults import Reason
from streaming.events.ids import INT64_MAX, is_whole, problem_of_id, read_ids
from streaming.events.quoting import quoted
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
from streaming.events.validation import Message, ParsedEvents, Place, with_texts

# Smaller messages are decoded whole, because picking fields would take longer.
_LARGE_BYTES = 4096


def parse(
    messages: Sequence[Message], place: Place, read: Callable[[bytes], Any] | None = None
) -> tuple[ParsedEvents, list[DeadLetter]]:
    """Columns of the messages that hold a well-typed event; the others become dead letters.

    Args:
        messages: of one partition.
        place: of the partition.
        read: decodes a message by its schema and raises `UnfitMessage`; default: they are JSON.
    """
    plain = None if read is not None else plain_events([m.value or b"" for m in messages], place.mapping)
    if plain is None:
        good, events, dead = _judged(messages, place, read)
        return _parsed([messages[n] for n in good], _columns(events)), dead
    place_P, columns = plain
    if len(place_P) == len(messages):
        return _parsed(messages, columns), []
    others = np.delete(np.arange(len(messages)), place_P)
    good, events, dead = _judged([messages[int(n)] for n in others], place, read)
    place_N = np.concatenate([place_P, others[good]])
    order_N = np.argsort(place_N)
    together = _together(columns, _columns(events), order_N)
    return _parsed([messages[int(n)] for n in place_N[order_N]], together), dead


def _judged(
    messages: Sequence[Message], place: Place, read: Callable[[bytes], Any] | None
) -> tuple[list[int], list[dict[str, Any]], list[DeadLetter]]:
    """Messages decoded one by one: places and events of the good ones, and letters of the others."""
    good: list[int] = []
    events: list[dict[str, Any]] = []
    dead: list[DeadLetter] = []
    mapping = place.mapping
    names = EVENT_SCHEMA.names if mapping is None else mapping.names
    for n, message in enumerate(messages):
        value = message.value or b""
        try:
            if read is not None:
                event = read(value)
            else:
                event = orjson.loads(value) if len(value) < _LARGE_BYTES else loads(value, names)
            event = event if mapping is None else mapping.event(event)
            problem = problem_of_event(event)
        except orjson.JSONDecodeError as error:
            problem = (
                Reason("not_json", f"not JSON: {error}") if value else Reason("empty", "the message is empty")
            )
        except UnfitMessage as error:
            problem = Reason("schema", str(error))
        if problem:
            dead.append(place.dead(problem, message.offset, 0, value))
        else:
            good.append(n)
            events.append(event)
    return good, events, dead


def problem_of_event(event: Any) -> str:
    """What is wrong with the types of a decoded JSON event, with its code; empty if nothing is."""
    if type(event) is not dict:
        return Reason("not_an_object", f"an event must be a JSON object, not {type(event).__name__}")
    get = event.get
    # bool is a subclass of int but not a number, so `type() is` instead of isinstance. Written out, because this is the
    # only loop over events.
    user, item, timestamp = get(USER_ID), get(ITEM_ID), get(TIMESTAMP_MS)
    if (type(user) is not str or not user) and (problem := problem_of_id(USER_ID, user)):
        return problem
    if (type(item) is not str or not item) and (problem := problem_of_id(ITEM_ID, item)):
        return problem
    if type(timestamp) is not int or timestamp > INT64_MAX:
        if timestamp is None:
            return Reason("missing_field", f"{TIMESTAMP_MS} is missing")
        if type(timestamp) is not float or not is_whole(timestamp):
            return Reason("bad_time", f"{TIMESTAMP_MS} must be a 64-bit integer, got {quoted(timestamp)}")
    weight, value, action, event_id = get(WEIGHT), get(VALUE), get(ACTION), get(EVENT_ID)
    if weight is not None and type(weight) is not float and type(weight) is not int:
        return Reason("wrong_type", f"{WEIGHT} must be a number, got {quoted(weight)}")
    if value is not None and type(value) is not float and type(value) is not int:
        return Reason("wrong_type", f"{VALUE} must be a number, got {quoted(value)}")
    if action is not None and type(action) is not str:
        return Reason("wrong_type", f"{ACTION} must be a string, got {quoted(action)}")
    if event_id is not None and type(event_id) is not str:
        return Reason("wrong_type", f"{EVENT_ID} must be a string, got {quoted(event_id)}")
    return ""


def loads(value: bytes, names: Iterable[str]) -> Any:
    """Decodes JSON; a long object keeps only the fields that are used, any other long value only its type.

    An unused field may take twenty times its length in memory once decoded. Millions of lists in it would trigger
    Python's garbage collector again and again, which takes 50 times as long as decoding.

    Raises:
        orjson.JSONDecodeError: the value is not JSON.
    """
    if len(value) < _LARGE_BYTES:
        return orjson.loads(value)
    is_enabled = gc.isenabled()
    gc.disable()
    try:
        return _kept(orjson.loads(value), names)
    finally:
        if is_enabled:
            gc.enable()


def _kept(decoded: Any, names: Iterable[str]) -> Any:
    if type(decoded) is dict:
        return {name: decoded[name] for name in names if name in decoded}
    return None if decoded is None else type(decoded)()


def _columns(events: list[dict[str, Any]]) -> EventColumns:
    users = read_ids([event[USER_ID] for event in events])
    items = read_ids([event[ITEM_ID] for event in events])
    columns = [
        pa.array(users.ids_N),
        pa.array(items.ids_N),
        # NumPy also accepts integral floats among them.
        pa.array(np.array([event[TIMESTAMP_MS] for event in events], np.int64)),
        pa.array([event.get(ACTION) for event in events], pa.string()),
        _floats([event.get(WEIGHT) for event in events]),
        _floats([event.get(VALUE) for event in events]),
        pa.array([event.get(EVENT_ID) for event in events], pa.string()),
    ]
    return EventColumns(
        pa.RecordBatch.from_arrays(columns, schema=EVENT_SCHEMA),
        users.key_hashes(),
        {USER_ID: users.text_column(), ITEM_ID: items.text_column()},
    )


def _together(plain: EventColumns, others: EventColumns, order_N: Int64Array) -> EventColumns:
    """Both, in the order of their messages."""
    order = pa.array(order_N)
    texts: dict[str, pa.Array | None] = {}
    for name in plain.texts:
        pair = plain.texts[name], others.texts[name]
        sides = zip(pair, (plain.events, others.events), strict=True)
        columns = [pa.nulls(rows.num_rows, pa.string()) if side is None else side for side, rows in sides]
        texts[name] = None if pair == (None, None) else pa.concat_arrays(columns).take(order)
    events = pa.concat_batches([plain.events, others.events]).take(order)
    return EventColumns(events, np.concatenate([plain.key_N, others.key_N])[order_N], texts)


def _parsed(messages: Sequence[Message], columns: EventColumns) -> ParsedEvents:
    return ParsedEvents(
        columns.events,
        np.array([message.offset for message in messages], np.int64),
        np.zeros(len(messages), np.int32),
        np.array([message.timestamp for message in messages], np.int64),
        columns.key_N,
        lambda n: messages[n].value or b"",
        texts=with_texts(columns.texts),
    )


def _floats(numbers: list[float | None]) -> pa.Array:
    # Through float64, because pyarrow refuses integers that a float32 cannot hold exactly.
    doubles = pa.array([None if n is None else float(n) for n in numbers], pa.float64())
    return doubles.cast(pa.float32(), safe=False)
