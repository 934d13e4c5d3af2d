"""Events from Kafka: a thread reads and decodes ahead, the caller takes rows and knows its position."""

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kafka import TopicPartition
from kafka.errors import KafkaError, OffsetOutOfRangeError

from streaming.codec import concatenate, decode_messages
from streaming.config import StreamConfig
from streaming.consumer import (
    BrokerUnavailable,
    PositionLost,
    TopicMissing,
    by_partition,
    end_offsets,
    known_partitions,
    open_consumer,
    partitions_of,
    release_parked,
    seek,
    unavailable,
)
from streaming.originals import read_originals
from streaming.position import EventSource, Position, RowPlace
from streaming.row_queue import RowQueue
from streaming.validation import Decoded, Message, Place

__all__ = [
    "BrokerUnavailable",
    "EventSource",
    "KafkaSource",
    "Position",
    "PositionLost",
    "TopicMissing",
    "end_offsets",
    "partitions_of",
]

_POLL_MS = 100
# Messages per poll: few at first, because one Arrow message may hold thousands of rows.
_FIRST_POLL, _LARGEST_POLL = 16, 4000


class KafkaSource:
    """Reads partitions of the interactions topic by manual assignment, outside any consumer group.

    Args:
        config: the stream.
        partitions: those to read.
        start: where to begin; a partition that is missing begins at the start of its log.
        end_offsets: where to end, exclusive, by partition; None reads on for ever.
        watermark_ms: latest event time before the start, by partition, where it is known.
    Raises:
        BrokerUnavailable: no broker answered within `stream.connect_timeout_s`.
        TopicMissing: the topic does not exist, or lacks one of the partitions.
        PositionLost: the log does not hold a start position any more; also raised later, by any method that
            takes, if the log is trimmed while a partition waits.
    """

    def __init__(
        self,
        config: StreamConfig,
        partitions: Iterable[int],
        start: Mapping[int, Position],
        end_offsets: Mapping[int, int] | None = None,
        *,
        watermark_ms: Mapping[int, int] | None = None,
    ) -> None:
        self._config = config
        self._topic = config.interactions_topic
        self._partitions = sorted(partitions)
        self._end = dict(end_offsets) if end_offsets is not None else None
        self._watermark_ms = dict(watermark_ms or {})
        self._changed = threading.Condition()
        self._bound = config.buffered_rows_per_partition
        self._error: Exception | None = None
        self._stop, self._room = threading.Event(), threading.Event()
        self._poll_records = _FIRST_POLL
        self._consumer = open_consumer(config)
        try:
            self._open(start)
        except BaseException:
            self._consumer.close(autocommit=False, timeout_ms=1000)
            raise
        self._thread = threading.Thread(target=self._run, name="freshet-kafka-source", daemon=True)
        self._thread.start()

    @property
    def partitions(self) -> list[int]:
        """The partitions that this source reads, ascending."""
        return list(self._partitions)

    @property
    def finished(self) -> bool:
        """Whether every row before the end offsets has been taken; never on an unbounded source."""
        with self._changed:
            self._raise_error()
            return len(self._ended()) == len(self._queues) and not self._any_ready()

    def ready_rows(self) -> dict[int, int]:
        """Rows that `take` could return now, by partition."""
        with self._changed:
            self._raise_error()
            return {p: queue.ready for p, queue in self._queues.items()}

    def ended(self) -> frozenset[int]:
        """Partitions whose rows are all taken or ready; empty on an unbounded source."""
        with self._changed:
            return self._ended()

    def take(self, quota: Mapping[int, int]) -> Decoded:
        """At most quota[p] rows of partition p, without waiting; unusable rows count.

        Returns:
            Rows in partition, then position order.
        """
        with self._changed:
            self._raise_error()
            pieces = [piece for p, queue in self._queues.items() for piece in queue.take(quota.get(p, 0))]
            for p, queue in self._queues.items():
                if self._end is not None:
                    queue.skip_gap(self._end.get(p, 0))
        self._room.set()
        return concatenate(pieces)

    def positions(self) -> dict[int, Position]:
        """The next row of each partition, after everything that was taken."""
        with self._changed:
            return {p: queue.position for p, queue in self._queues.items()}

    def lag(self) -> dict[int, int]:
        """Messages between the position and the partition's end, as of its last fetch."""
        with self._changed:
            return {p: max(0, self._highwater[p] - queue.next_offset()) for p, queue in self._queues.items()}

    def wait(self, timeout_s: float) -> bool:
        """Waits until any row is ready, nothing more will come, or time is up; whether any row is ready."""
        with self._changed:
            self._wait(lambda: self._any_ready() or len(self._ended()) == len(self._queues), timeout_s)
            return self._any_ready()

    def wait_full(self, quota: int, timeout_s: float) -> bool:
        """Waits until every partition has `quota` rows ready or its end, or time is up; whether they have."""
        with self._changed:
            # A quota beyond the bound of reading ahead would never fill: the bound follows the quota.
            self._bound = max(self._bound, 2 * quota)
            self._room.set()
            self._wait(lambda: self._is_full(quota), timeout_s)
            return self._is_full(quota)

    def originals(self, places: Iterable[RowPlace]) -> dict[RowPlace, bytes]:
        """What stands at these places of the topic, as a dead letter carries it; without what is not there any more."""
        return read_originals(self._config, self._topic, places)

    def close(self) -> None:
        """Stops the thread and closes the consumer; harmless if repeated."""
        self._stop.set()
        self._room.set()
        self._thread.join()
        self._consumer.close(autocommit=False, timeout_ms=1000)

    def __enter__(self) -> "KafkaSource":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, start: Mapping[int, Position]) -> None:
        try:
            known = known_partitions(self._config, self._consumer, self._topic)
            missing = sorted(set(self._partitions) - set(known))
            if missing:
                raise TopicMissing(f"The topic {self._topic!r} has partitions {known}, but not {missing}")
            wanted = {p: start[p].offset if p in start else None for p in self._partitions}
            at = {TopicPartition(self._topic, p): offset for p, offset in wanted.items()}
            begin = by_partition(seek(self._consumer, at)) if at else {}
            self._highwater = by_partition(self._consumer.end_offsets(list(at))) if at else {}
        except KafkaError as error:
            raise unavailable(self._config, error) from error
        self._places = {p: self._place(p, len(known)) for p in self._partitions}
        self._queues = {p: RowQueue(start.get(p, Position(begin[p], 0))) for p in self._partitions}
        for p, queue in self._queues.items():
            if self._end is not None:
                queue.skip_gap(self._end.get(p, 0))

    def _place(self, partition: int, partitions: int) -> Place:
        stream = self._config
        return Place(
            self._topic,
            partition,
            partitions,
            max_future_ms=int(stream.max_future_s * 1000),
            max_late_ms=int(stream.max_late_s * 1000),
            max_message_bytes=stream.max_message_bytes,
        )

    def _ended(self) -> frozenset[int]:
        if self._end is None:
            return frozenset()
        return frozenset(p for p, queue in self._queues.items() if queue.fetched >= self._end.get(p, 0))

    def _any_ready(self) -> bool:
        return any(queue.ready for queue in self._queues.values())

    def _is_full(self, quota: int) -> bool:
        ended = self._ended()
        return all(queue.ready >= quota or p in ended for p, queue in self._queues.items())

    def _wait(self, condition: Callable[[], bool], timeout_s: float) -> None:
        self._changed.wait_for(lambda: self._error is not None or condition(), timeout_s)
        self._raise_error()

    def _raise_error(self) -> None:
        if self._error:
            raise self._error

    # From here on: the thread.

    def _run(self) -> None:
        try:
            while not self._stop.is_set() and self._queues and len(self.ended()) < len(self._queues):
                if self._throttle():
                    self._read()
                else:
                    # A poll with everything paused would sleep through the next `take`.
                    self._room.wait(_POLL_MS / 1000)
                    self._room.clear()
        except OffsetOutOfRangeError as error:
            self._fail(PositionLost(f"The log was trimmed before it was read: {self._topic}, {error}"))
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def _throttle(self) -> bool:
        """Pauses partitions with enough rows, resumes those that run low; whether any is left to read."""
        with self._changed:
            bound = self._bound
            ready = {p: queue.ready for p, queue in self._queues.items()}
            ended = self._ended()
        paused = {at.partition for at in self._consumer.paused()}
        for p, rows in ready.items():
            at = TopicPartition(self._topic, p)
            if p not in paused and (rows >= bound or p in ended):
                self._consumer.pause(at)
            elif p in paused and rows <= bound // 2 and p not in ended:
                self._consumer.resume(at)
        return len(self._consumer.paused()) < len(self._queues)

    def _read(self) -> None:
        release_parked(self._consumer)
        polled = self._consumer.poll(timeout_ms=_POLL_MS, max_records=self._poll_records)
        decoded = {at.partition: self._decode(at.partition, messages) for at, messages in polled.items()}
        fetched = {at.partition: messages[-1].offset + 1 for at, messages in polled.items()}
        if not polled:
            # Nothing came: positions may still have moved, past control records and compacted messages.
            fetched = {p: self._position(p) for p in self._partitions}
        highwater = {p: self._consumer.highwater(TopicPartition(self._topic, p)) for p in self._partitions}
        with self._changed:
            self._highwater |= {p: offset for p, offset in highwater.items() if offset is not None}
            for p, offset in fetched.items():
                self._queues[p].put(decoded.get(p, Decoded()), offset)
                if self._end is not None:
                    self._queues[p].skip_gap(self._end.get(p, 0))
            if polled or len(self._ended()) == len(self._queues):
                self._changed.notify_all()

    def _decode(self, partition: int, messages: list[Any]) -> Decoded:
        end = None if self._end is None else self._end.get(partition, 0)
        wanted: list[Message] = [m for m in messages if end is None or m.offset < end]
        known_ms = self._watermark_ms.get(partition, 0)
        decoded = decode_messages(wanted, self._places[partition], known_ms)
        self._watermark_ms[partition] = max(known_ms, decoded.latest_ms)
        rows_per_message = max(1, decoded.row_count // max(1, len(wanted)))
        quarter = self._config.buffered_rows_per_partition // (4 * rows_per_message)
        self._poll_records = min(_LARGEST_POLL, max(_FIRST_POLL, quarter))
        return decoded

    def _position(self, partition: int) -> int:
        queue = self._queues[partition]
        offset = self._consumer.position(TopicPartition(self._topic, partition), timeout_ms=1000)
        return queue.fetched if offset is None else int(offset)
