"""The two wire forms of events, and their decoding into columns.

A message carries the header `freshet-encoding`: `arrow` (one Arrow IPC stream with many events, all of
users of this partition) or `json` (one event; also what a message without the header is). Whatever cannot be
used becomes a dead letter at its position; what can be used keeps its order.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby

import pyarrow as pa

from streaming import arrow_events, json_events
from streaming.validation import Decoded, Message, Place, judge

ENCODING_HEADER = "freshet-encoding"
ARROW = b"arrow"
JSON = b"json"


def encode_events(events: pa.RecordBatch) -> bytes:
    """The value of an Arrow message; send it with the header (ENCODING_HEADER, ARROW).

    Args:
        events: EVENT_SCHEMA, or ids as strings; optional columns may be absent. All rows must be of
            users of the partition that the message is sent to.
    """
    return arrow_events.encode(events)


def decode_messages(messages: Iterable[Message], place: Place) -> Decoded:
    """Decodes consecutive messages of one partition.

    Returns:
        Usable rows and dead letters; together every row of every message, each side in (offset, row) order.
    """
    pieces = [_decode(encoding, list(group), place) for encoding, group in groupby(messages, encoding_of)]
    if len(pieces) == 1:
        return pieces[0]
    return concatenate(pieces)


def concatenate(pieces: Sequence[Decoded]) -> Decoded:
    """Several decoded stretches as one, in the given order."""
    batches = [piece.rows for piece in pieces if piece.rows.num_rows]
    dead = [letter for piece in pieces for letter in piece.dead]
    if not batches:
        return Decoded(dead=dead)
    return Decoded(batches[0] if len(batches) == 1 else pa.concat_batches(batches), dead)


def encoding_of(message: Message) -> bytes:
    """The message's wire form; JSON where no header says otherwise."""
    for name, value in message.headers or ():
        if name == ENCODING_HEADER:
            return bytes(value or b"")
    return JSON


def _decode(encoding: bytes, messages: list[Message], place: Place) -> Decoded:
    if encoding == ARROW:
        parsed, dead = arrow_events.parse(messages, place)
    elif encoding == JSON:
        parsed, dead = json_events.parse(messages, place)
    else:
        reason = f"{ENCODING_HEADER} must be json or arrow, got {encoding!r}"
        return Decoded(dead=[place.dead(reason, m.offset, 0, m.value or b"") for m in messages])
    decoded = judge(parsed, place)
    if dead:
        decoded.dead = sorted(decoded.dead + dead, key=lambda letter: (letter.offset, letter.row))
    return decoded
