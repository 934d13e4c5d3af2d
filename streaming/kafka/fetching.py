"""Fetches of bounded size: data that cannot be read become one record that says why, and reading continues after it.

kafka-python decompresses a batch of records as a whole, raises if it cannot parse a record, and limits the number of
records in a poll but not their bytes. It has no hooks for this; everything that depends on its internals is here.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from kafka import KafkaConsumer
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecord, DefaultRecordBatch
from kafka.record.legacy_records import LegacyRecord, LegacyRecordBatch
from kafka.record.util import decode_varint

from streaming.config import StreamConfig
from streaming.events.faults import Reason
from streaming.events.unreadable import Unreadable
from streaming.kafka.decompression import TooLarge, codec_name, decompress

# Besides its value, a record has a key, headers and a frame.
_FRAME_BYTES = 65_536
# A header is at least three bytes in a batch, and two objects in a tuple in memory.
_HEADER_COST = 160


@dataclass(frozen=True)
class _Limits:
    """Limits in bytes: of a decompressed batch, of a record's value, and of all records of a poll."""

    batch: int
    message: int
    poll: int


def bound_fetches(consumer: KafkaConsumer, config: StreamConfig, codecs: Counter[str] | None = None) -> None:
    """Applies the stream's limits to what a consumer decompresses and returns at once.

    A batch that decompresses to more than `stream.max_decoded_bytes` becomes one record at its last offset. A record
    that is longer than `stream.max_message_bytes`, or cannot be parsed, is cut. The values of both are `Unreadable`. A
    poll returns at most `stream.fetch_max_bytes`, plus the last record. `codecs` counts the fetched batches by codec.
    """
    limits = _Limits(config.max_decoded_bytes, config.max_message_bytes, config.fetch_max_bytes)
    fetcher = consumer._fetcher
    append = fetcher._append
    fetcher.PartitionRecords = lambda *arguments, **named: _Records(limits, codecs, *arguments, **named)
    fetcher._append = _bounded(append, limits)


def _bounded(append: Callable[..., int], limits: _Limits) -> Callable[..., int]:
    """Ends a poll by reporting that all requested records are there."""
    cost = 0

    def bounded(drained: dict[Any, Any], part: Any, max_records: int, update_offsets: bool) -> int:
        nonlocal cost
        if not drained:  # the first of a poll
            cost = 0
        before = part.cost if part else 0
        count = append(drained, part, max_records, update_offsets)
        cost += part.cost - before if part is not None else 0
        return max_records if drained and cost >= limits.poll else count

    return bounded


class _Records(Fetcher.PartitionRecords):  # type: ignore[misc]
    """Records of one partition's fetch.

    Attributes:
        cost: approximate memory of the records taken so far, in bytes.
    """

    def __init__(self, limits: _Limits, codecs: Counter[str] | None, *arguments: Any, **named: Any) -> None:
        self._limits, self._codecs = limits, codecs
        self.cost = 0
        super().__init__(*arguments, **named)

    def take(self, n: int | None = None) -> list[Any]:
        """Up to n records; fewer if they are long."""
        self._maybe_raise_next_inline_exception()
        records: list[Any] = []
        before, read = self.cost, self.bytes_read
        headers = 0
        try:
            for record in islice(self.record_iterator, n):
                records.append(record)
                headers += len(record.headers)
                self.cost = before + self.bytes_read - read + _HEADER_COST * headers
                if self.cost - before >= self._limits.poll:
                    break
        except Exception as error:
            if not records:
                raise
            self._next_inline_exception = error
        return records

    def _unpack_records(self, tp: Any, records: Any, *deserializers: Any) -> Iterator[Any]:
        return super()._unpack_records(tp, _Batches(records, self._limits, self._codecs), *deserializers)  # type: ignore[no-any-return]


class _Batches:
    """The batches of a fetch, each of bounded size."""

    def __init__(self, records: Any, limits: _Limits, codecs: Counter[str] | None) -> None:
        self._records, self._limits, self._codecs = records, limits, codecs

    def next_batch(self) -> Any:
        """The next one; None at the end."""
        batch = self._records.next_batch()
        if batch is None:
            return None
        if self._codecs is not None:
            self._codecs[codec_name(batch.compression_type)] += 1
        kind = _Batch if batch.magic == 2 else _LegacyBatch
        return kind(batch, self._limits)


class _Batch(DefaultRecordBatch):  # type: ignore[misc]
    """A batch in Kafka's current format."""

    _buffer: bytearray
    _pos: int
    _next_record_index: int
    _decompressed: bool

    def __init__(self, batch: DefaultRecordBatch, limits: _Limits) -> None:
        super().__init__(batch._buffer)
        self._limits = limits
        self._unreadable: Unreadable | None = None

    def _maybe_uncompress(self) -> None:
        if self._decompressed or not self.compression_type:
            self._decompressed = True
            return
        compressed = bytes(memoryview(self._buffer)[self._pos :])
        try:
            self._buffer = decompress(self.compression_type, compressed, self._limits.batch)
            self._pos = 0
        except ValueError as error:
            self._give_up(_whole_batch(self.base_offset, self.last_offset, error, self._limits), compressed)
        self._decompressed = True

    def _give_up(self, reason: str, original: bytes) -> None:
        """The rest of the batch as one record, at its last offset."""
        self._unreadable = Unreadable(original[: self._limits.message], reason, len(original))
        self._buffer, self._pos, self._next_record_index = bytearray(), 0, self._num_records

    def __next__(self) -> Any:
        if self._unreadable is not None:
            value, self._unreadable = self._unreadable, None
            return self._record(self.last_offset, value)
        try:
            return super().__next__()
        except CorruptRecordError as error:
            if self._next_record_index >= self._num_records:
                raise
            said = f"messages up to offset {self.last_offset} cannot be separated: {error}"
            reason = Reason("undecodable", said)
            self._give_up(reason, bytes(memoryview(self._buffer)[self._pos :]))
            return next(self)

    next = __next__

    def _record(self, offset: int, value: Unreadable) -> DefaultRecord:
        return DefaultRecord(len(value), offset, self.max_timestamp, self.timestamp_type, None, value, [])

    def _read_msg(self, decode_varint: Callable[..., tuple[int, int]] = decode_varint) -> Any:
        start = self._pos
        # A length of at most two bytes is within any limit; most records are that short.
        is_short = self._buffer[start + 1 : start + 2] < b"\x80"
        if is_short or decode_varint(self._buffer, start)[0] <= self._limits.message + _FRAME_BYTES:
            try:
                return super()._read_msg()
            except (ValueError, IndexError, CorruptRecordError) as error:
                reason = Reason("undecodable", f"the message cannot be parsed: {error}")
                length, body = decode_varint(self._buffer, start)
        else:
            length, body = decode_varint(self._buffer, start)
            limit = f"stream.max_message_bytes={self._limits.message}"
            reason = Reason("too_large", f"the message has {length} bytes, more than {limit}")
        offset, value = self._skeleton(body, reason)
        self._pos = body + length
        if not 0 < length <= len(self._buffer) - body:
            raise CorruptRecordError(f"a record of {length} bytes in the batch at offset {self.base_offset}")
        return self._record(offset, value)

    def _skeleton(self, at: int, reason: str) -> tuple[int, Unreadable]:
        """Offset and beginning of the value of a record that is not parsed any further."""
        buffer = self._buffer
        _, at = decode_varint(buffer, at)  # attributes
        _, at = decode_varint(buffer, at)  # time
        delta, at = decode_varint(buffer, at)
        key, at = decode_varint(buffer, at)
        length, at = decode_varint(buffer, at + max(key, 0))
        beginning = bytes(buffer[at : at + min(max(length, 0), self._limits.message)])
        return self.base_offset + delta, Unreadable(beginning, reason, max(length, 0))


class _LegacyBatch(LegacyRecordBatch):  # type: ignore[misc]
    """A batch or a single record in the format of logs written before Kafka 0.11."""

    def __init__(self, batch: LegacyRecordBatch, limits: _Limits) -> None:
        super().__init__(batch._buffer, batch.magic)
        self._limits = limits

    def __iter__(self) -> Iterator[Any]:
        if not self.compression_type:
            yield from super().__iter__()
            return
        key_offset = self.KEY_OFFSET_V1 if self.magic == 1 else self.KEY_OFFSET_V0
        _, compressed = self._read_key_value(key_offset)
        try:
            inner = decompress(self.compression_type, compressed or b"", self._limits.batch)
        except ValueError as error:
            reason = _whole_batch(None, self.base_offset, error, self._limits)
            beginning = (compressed or b"")[: self._limits.message]
            value = Unreadable(beginning, reason, len(compressed or b""))
            # A record that wraps a batch has the offset of the last record inside.
            yield LegacyRecord(
                self.magic, self.base_offset, self._timestamp, self.timestamp_type, None, value, 0, b""
            )
            return
        self._buffer, self._decompressed = memoryview(inner), True
        yield from super().__iter__()


def _whole_batch(first: int | None, last: int, error: ValueError, limits: _Limits) -> Reason:
    which = f"offsets {first} to {last}" if first is not None else f"offsets up to {last}"
    what = f"the compressed batch of messages ({which}) cannot be read: {error}"
    if isinstance(error, TooLarge):
        return Reason("too_large", f"{what}, stream.max_decoded_bytes={limits.batch}")
    return Reason("undecodable", what)
