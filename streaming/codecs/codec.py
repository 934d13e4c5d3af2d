"""The two wire forms of events, and their decoding into columns.

A message has the header `freshet-encoding`: `arrow` (one Arrow IPC stream with many events, all of users of this
partition) or `json` (one event; the default without the header). Unusable rows become dead letters at their positions;
the others keep their order.
"""

import logging
from collections.abc import Iterable, Sequence
from itertools import groupby

import pyarrow as pa

from streaming.codecs import arrow_events, json_events
from streaming.codecs.arrow_limits import ArrowLimitError, Extent, require_declared
from streaming.codecs.schemas.registry import RegistryUnavailable
from streaming.config import StreamSettingError
from streaming.events.dead_letter import DeadLetter
from streaming.events.faults import Reason
from streaming.events.quoting import described, quoted
from streaming.events.unreadable import Unreadable
from streaming.events.validation import Decoded, Message, Place, judge

ENCODING_HEADER = "freshet-encoding"
ARROW = b"arrow"
JSON = b"json"
_SCHEMA = b"of a schema"

_log = logging.getLogger(__name__)


def encode_events(events: pa.RecordBatch) -> bytes:
    """The value of an Arrow message; send it with the header (ENCODING_HEADER, ARROW).

    Args:
        events: EVENT_SCHEMA, or ids as strings; optional columns may be absent. All rows must be of
            users of the partition that the message is sent to.
    """
    return arrow_events.encode(events)


def decode_messages(messages: Iterable[Message], place: Place, watermark_ms: int = 0) -> Decoded:
    """Decodes consecutive messages of one partition.

    Args:
        messages: in order.
        place: where they were read, and the limits that apply.
        watermark_ms: latest time of a usable event before them.
    Returns:
        Usable rows and dead letters; together every row of every message, each side in (offset, row) order.
    """
    pieces = []
    limit = place.max_message_bytes
    form = _SCHEMA if place.read is not None else JSON
    messages = list(messages)
    if messages and all(_is_usual(message, limit) for message in messages):
        return _decode(form, messages, place, watermark_ms)
    for (is_refused, encoding), group in groupby(
        messages, lambda m: (_is_refused(m, limit), encoding_of(m, form))
    ):
        together = list(group)
        if is_refused:
            pieces.append(Decoded(dead=[_refused(message, place) for message in together]))
        else:
            pieces.append(_decode(encoding, together, place, watermark_ms))
        watermark_ms = max(watermark_ms, pieces[-1].latest_ms)
    if len(pieces) == 1:
        return pieces[0]
    return concatenate(pieces)


def extent_of(message: Message, place: Place) -> Extent:
    """The rows and bytes that a message will decode to; cheap, because nothing is decoded.

    A message that will be refused counts as one row of its own length.
    """
    value = message.value or b""
    if encoding_of(message) != ARROW:
        return Extent(1, len(value))
    refused = Extent(1, len(value), is_refused=True)
    if _is_refused(message, place.max_message_bytes):
        return refused
    try:
        return require_declared(value, place.max_message_rows, place.max_decoded_bytes)
    except ArrowLimitError:
        return refused


def concatenate(pieces: Sequence[Decoded]) -> Decoded:
    """Several decoded ranges as one, in the given order."""
    batches = [piece.rows for piece in pieces if piece.rows.num_rows]
    dead = [letter for piece in pieces for letter in piece.dead]
    strays = sum(piece.strays for piece in pieces)
    if not batches:
        return Decoded(dead=dead, strays=strays)
    return Decoded(batches[0] if len(batches) == 1 else pa.concat_batches(batches), dead, strays)


def encoding_of(message: Message, without: bytes = JSON) -> bytes:
    """The message's wire form; `without` a header, by default JSON."""
    headers = message.headers
    if not headers:
        return without
    for name, value in headers:
        if name == ENCODING_HEADER:
            return bytes(value or b"")
    return without


def _is_usual(message: Message, limit: int) -> bool:
    """Whether a message has no headers and is not refused; as a long topic has millions of them, asked first."""
    value = message.value
    return not message.headers and type(value) is bytes and (len(value) <= limit or not limit)


def _is_refused(message: Message, limit: int) -> bool:
    value = message.value
    return isinstance(value, Unreadable) or 0 < limit < len(value or b"")


def _refused(message: Message, place: Place) -> DeadLetter:
    value = b"" if message.value is None else message.value
    if isinstance(value, Unreadable):
        return place.dead(value.reason, message.offset, 0, value)
    limit = f"stream.max_message_bytes={place.max_message_bytes}"
    reason = Reason("too_large", f"the message has {len(value)} bytes, more than {limit}")
    return place.dead(reason, message.offset, 0, value)


def _decode(encoding: bytes, messages: list[Message], place: Place, watermark_ms: int) -> Decoded:
    """Decodes messages of one form; an exception costs only the message that raised it."""
    try:
        return _decode_together(encoding, messages, place, watermark_ms)
    except (RegistryUnavailable, StreamSettingError):
        raise  # no fault of the messages
    except Exception as error:
        if len(messages) == 1:
            (message,) = messages
            _log.warning(
                "a message of %s, partition %d, offset %d cannot be decoded and becomes a dead letter: %s",
                *(place.topic, place.partition, message.offset, described(error)),
            )
            reason = Reason("undecodable", f"cannot be decoded: {described(error)}")
            return Decoded(dead=[place.dead(reason, message.offset, 0, message.value or b"")])
    pieces = []
    for message in messages:
        pieces.append(_decode(encoding, [message], place, watermark_ms))
        watermark_ms = max(watermark_ms, pieces[-1].latest_ms)
    return concatenate(pieces)


def _decode_together(encoding: bytes, messages: list[Message], place: Place, watermark_ms: int) -> Decoded:
    if encoding == ARROW:
        parsed, dead = arrow_events.parse(messages, place)
    elif encoding == JSON:
        parsed, dead = json_events.parse(messages, place)
    elif encoding == _SCHEMA and place.read is not None:
        parsed, dead = json_events.parse(messages, place, place.read)
    else:
        said = f"{ENCODING_HEADER} must be json or arrow, got {quoted(encoding)}"
        reason = Reason("unknown_encoding", said)
        return Decoded(dead=[place.dead(reason, m.offset, 0, m.value or b"") for m in messages])
    decoded = judge(parsed, place, watermark_ms)
    if dead:
        decoded.dead = sorted(decoded.dead + dead, key=lambda letter: (letter.offset, letter.row))
    return decoded
