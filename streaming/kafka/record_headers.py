"""Makes kafka-python accept header keys that are not UTF-8; one such record would otherwise stop every reader.

kafka-python decodes the keys while it parses a fetch. An error there also loses the records behind it, and the same
fetch is repeated after every restart. Kafka's brokers do not check headers.
"""

from typing import Any

from kafka.record.default_records import DefaultRecordBatch
from kafka.record.util import decode_varint

_read_record = DefaultRecordBatch._read_msg


def accept_any_header_key() -> None:
    """Make kafka-python read "?" for every byte of a header key that is not UTF-8. Idempotent."""
    DefaultRecordBatch._read_msg = _read_any_record


def _read_any_record(batch: Any) -> Any:
    try:
        return _read_record(batch)
    except UnicodeDecodeError:
        # The position has not moved yet: it moves at the end of a record.
        batch._buffer = _with_readable_keys(batch._buffer, batch._pos)
        return _read_record(batch)


def _with_readable_keys(buffer: Any, start: int) -> bytearray:
    """The buffer with the header keys of the record that begins at `start` replaced, byte by byte.

    A record consists of length, attributes, time and offset as varints, key, value, the number of headers, then key and
    value of each header. Each key and value is preceded by its length, -1 for none.
    """
    # Copied once per batch; from then on it can be modified.
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
