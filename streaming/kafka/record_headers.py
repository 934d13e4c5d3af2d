"""Header keys of Kafka records that are no UTF-8: one such record would otherwise end every reader of its topic.

kafka-python decodes the keys while it parses a fetch, so that an error there costs the records behind it too, and the
same fetch comes again after every restart. Kafka's brokers check no header.
"""

from typing import Any

from kafka.record.default_records import DefaultRecordBatch
from kafka.record.util import decode_varint

_read_record = DefaultRecordBatch._read_msg


def accept_any_header_key() -> None:
    """From now on kafka-python reads such a key with "?" for every byte that is no UTF-8; harmless if repeated."""
    DefaultRecordBatch._read_msg = _read_any_record


def _read_any_record(batch: Any) -> Any:
    try:
        return _read_record(batch)
    except UnicodeDecodeError:
        # The position has not moved: it does at the end of a record.
        batch._buffer = _with_readable_keys(batch._buffer, batch._pos)
        return _read_record(batch)


def _with_readable_keys(buffer: Any, start: int) -> bytearray:
    """The buffer with the header keys of the record that begins at `start` replaced, byte by byte.

    A record: length, attributes, time and offset as varints; key, value; the number of headers, then key and value of
    each; before each key or value its length, -1 for none.
    """
    # Copied once for a batch: afterwards it is ours.
    readable = buffer if isinstance(buffer, bytearray) else bytearray(buffer)
    at = start
    for _ in range(4):
        _, at = decode_varint(readable, at)
    for _ in range(2):
        length, at = decode_varint(readable, at)
        at += max(length, 0)
    headers, at = decode_varint(readable, at)
    for _ in range(headers):
        length, at = decode_varint(readable, at)
        key = bytes(readable[at : at + length])
        readable[at : at + length] = _readable(key)
        at += length
        length, at = decode_varint(readable, at)
        at += max(length, 0)
    return readable


def _readable(key: bytes) -> bytes:
    try:
        key.decode()
    except UnicodeDecodeError:
        return bytes(byte if byte < 128 else ord("?") for byte in key)
    return key
