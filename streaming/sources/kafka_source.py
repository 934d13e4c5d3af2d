"""Events from Kafka: a thread reads and decodes ahead, the caller takes rows and knows its position."""

import logging
import math
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from kafka import TopicPartition
from kafka.errors import KafkaError, OffsetOutOfRangeError

from streaming.codecs.codec import concatenate
from streaming.codecs.schemas.reader import reader_of
from streaming.config import StreamConfig
from streaming.events.position import EventSource, Gap, Position, RowPlace
from streaming.events.validation import Decoded, KnownTextIds, Place
from streaming.kafka.consumer import (
    BrokerUnavailable,
    PositionLost,
    TopicMissing,
    by_partition,
    current_topic_id,
    end_offsets,
    first_offsets,
    known_partitions,
    open_consumer,
    partitions_of,
    release_parked,
    seek,
    unavailable,
)
from streaming.kafka.outage import Outage
from streaming.kafka.topic_identity import TopicIdentity
from streaming.kafka.topics import BrokerRefused, partition_count, refused
from streaming.sources.originals import read_originals
from streaming.sources.partition_reader import PartitionReader, Stretch
from streaming.sources.row_queue import RowQueue

__all__ = [
    "BrokerRefused",
    "BrokerUnavailable",
    "EventSource",
    "KafkaSource",
    "Position",
    "PositionLost",
    "TopicMissing",
    "end_offsets",
    "first_offsets",
    "partitions_of",
]

_POLL_MS = 100
# Messages per poll: few at first, because one Arrow message may hold thousands of rows.
_FIRST_POLL, _LARGEST_POLL = 16, 4000
_PROBE_S = 1.0

_log = logging.getLogger(__name__)


class KafkaSource:
    """Reads partitions of the interactions topic by manual assignment, outside any consumer group.

    Waits for unreachable brokers for up to `stream.broker_patience_s`.

    Args:
        config: the stream.
        partitions: those to read.
        start: where to begin; a partition that is missing begins at the start of its log.
        end_offsets: where to end, exclusive, by partition; None: never.
        watermark_ms: latest event time before the start, by partition, if known.
        topic_ids: ids of the topics that the start positions refer to, by partition, if known. If the topic has another
            id now, the position is lost, whatever the log holds.
        spread_over: number of partitions over which the users of these events are spread; by default the topic's. With
            fewer, a partition is held at the first message of a producer that uses more.
        texts: where the texts of text ids are remembered.
    Raises:
        BrokerUnavailable: no broker answered within `stream.connect_timeout_s`; also raised later, by any method
            that takes, if none did for `stream.broker_patience_s`.
        BrokerRefused: a broker or the client refused permanently; also raised later.
        TopicMissing: the topic does not exist, or lacks one of the partitions.
        PositionLost: the log no longer holds a start position and `stream.lost_position` is "fail"; also raised later,
            by any method that takes, if the log is trimmed while a partition waits.
    """

    def __init__(
        self,
        config: StreamConfig,
        partitions: Iterable[int],
        start: Mapping[int, Position],
        end_offsets: Mapping[int, int] | None = None,
        *,
        watermark_ms: Mapping[int, int] | None = None,
        topic_ids: Mapping[int, str] | None = None,
        spread_over: int | None = None,
        texts: KnownTextIds | None = None,
    ) -> None:
        self._config, self._texts = config, texts
        self._topic = config.interactions_topic
        self._partitions = sorted(partitions)
        self._changed = threading.Condition()
        self._bound, self._needed = config.buffered_rows_per_partition, 1
        self._error: Exception | None = None
        self._stop, self._room = threading.Event(), threading.Event()
        self._poll_records = _FIRST_POLL
        self._outage = Outage(config)
        self._consumer = open_consumer(config)
        try:
            self._open(start, end_offsets, watermark_ms or {}, topic_ids or {}, spread_over)
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
            return len(self._ended()) == len(self._readers) and not self._any_ready()

    @property
    def gaps(self) -> dict[int, list[Gap]]:
        """Gaps in the log that the positions have passed, by partition."""
        with self._changed:
            passed = {p: reader.passed_gaps() for p, reader in self._readers.items()}
        return {p: gaps for p, gaps in passed.items() if gaps}

    @property
    def topic_ids(self) -> dict[int, str]:
        """The id of the topic that each position refers to, by partition; empty if the broker has no ids."""
        with self._changed:
            return {p: reader.topic_id for p, reader in self._readers.items() if reader.topic_id}

    def bound(self, end_offsets: Mapping[int, int]) -> None:
        """Make reading end at these offsets, exclusive, by partition; rows already decoded beyond them still count."""
        with self._changed:
            for p, reader in self._readers.items():
                reader.bound(end_offsets[p])
            self._changed.notify_all()

    def ready_rows(self) -> dict[int, int]:
        """Rows that `take` could return now, by partition.

        Positions move into a recreated topic only here, so that the rows of one `take` are of one topic.
        """
        with self._changed:
            self._raise_error()
            self._turn_over()
            return {p: reader.queue.ready for p, reader in self._readers.items()}

    def ended(self) -> frozenset[int]:
        """Partitions whose rows are all taken or ready, and held ones; otherwise empty on an unbounded source."""
        with self._changed:
            return self._ended()

    def take(self, quota: Mapping[int, int]) -> Decoded:
        """At most quota[p] rows of partition p, without waiting; unusable rows count.

        Returns:
            Rows in partition, then position order.
        """
        with self._changed:
            self._raise_error()
            pieces = [
                piece for p, reader in self._readers.items() for piece in reader.queue.take(quota.get(p, 0))
            ]
            for reader in self._readers.values():
                reader.skip_gap()
        self._room.set()
        return concatenate(pieces)

    def positions(self) -> dict[int, Position]:
        """The next row of each partition, after everything that was taken."""
        with self._changed:
            return {p: reader.queue.position for p, reader in self._readers.items()}

    def lag(self) -> dict[int, int]:
        """Messages between the position and the partition's end, as of its last fetch."""
        with self._changed:
            return {p: max(0, r.highwater - r.queue.next_offset()) for p, r in self._readers.items()}

    def lag_events(self) -> float:
        """Events that wait: decoded ones are counted, others estimated by messages times events per decoded message.

        Offsets also count entries without events (gaps of a compacted log, transaction markers). NaN while there are
        messages but none has been decoded yet.
        """
        with self._changed:
            queues = [reader.queue for reader in self._readers.values()]
            ahead = sum(max(0, r.highwater - r.queue.decoded_to) for r in self._readers.values())
        ready, messages = sum(q.ready for q in queues), sum(q.messages_put for q in queues)
        if not ahead:
            return ready
        return ready + ahead * (sum(q.rows_put for q in queues) / messages) if messages else math.nan

    def wait(self, timeout_s: float) -> bool:
        """Waits until a row is ready, no more can come, or time is up; returns whether a row is ready."""
        with self._changed:
            self._wait(lambda: self._any_ready() or len(self._ended()) == len(self._readers), timeout_s)
            return self._any_ready()

    def wait_full(self, quota: int, timeout_s: float) -> bool:
        """Waits until every partition has `quota` rows ready or has ended, or time is up; returns which of the two."""
        with self._changed:
            # A quota above the read-ahead limit would never fill, so the limit follows the quota.
            self._bound, self._needed = max(self._bound, 2 * quota), quota
            self._room.set()
            self._wait(lambda: self._is_full(quota), timeout_s)
            return self._is_full(quota)

    def came_from(self, place: RowPlace) -> tuple[str, str]:
        """The topic that was read, and its id; empty if the broker has none."""
        return self._topic, self.topic_ids.get(place.partition, "")

    def originals(self, places: Iterable[RowPlace]) -> dict[RowPlace, bytes]:
        """The originals at these positions, as stored in dead letters; those no longer in the topic are left out."""
        try:
            now = current_topic_id(self._config, self._topic)
        except (BrokerUnavailable, BrokerRefused, TopicMissing):
            return {}
        ours = {p for p, topic in self.topic_ids.items() if topic == now} if now else set(self._partitions)
        return read_originals(self._config, self._topic, [at for at in places if at.partition in ours])

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

    def _open(
        self,
        start: Mapping[int, Position],
        end: Mapping[int, int] | None,
        watermark_ms: Mapping[int, int],
        topic_ids: Mapping[int, str],
        spread_over: int | None,
    ) -> None:
        try:
            known = known_partitions(self._config, self._consumer, self._topic)
            missing = sorted(set(self._partitions) - set(known))
            if missing:
                raise self._too_few(known, missing)
            wanted = {p: start[p].offset if p in start else None for p in self._partitions}
            at = {TopicPartition(self._topic, p): offset for p, offset in wanted.items()}
            self._consumer.assign(list(at))
            self._identity = TopicIdentity(self._consumer, self._topic, self._config.metadata_every_s)
            now = self._identity.current
            # If nothing had been read yet, nothing of the earlier topic is missed.
            anew = {
                p for p in self._partitions if now and topic_ids.get(p, now) != now and any(start.get(p, ()))
            }
            begin, lost, highwater = self._seek(at, anew) if at else ({}, set(), {})
        except KafkaError as error:
            raise unavailable(self._config, error) from error
        read = reader_of(self._config)
        self._readers: dict[int, PartitionReader] = {}
        for p in self._partitions:
            goes_on = p in start and start[p].offset == begin[p] and p not in anew
            place = Place.of(self._config, self._topic, p, spread_over or len(known))
            self._readers[p] = PartitionReader(
                replace(place, topic_id=now or topic_ids.get(p, ""), texts=self._texts, read=read),
                RowQueue(start[p] if goes_on else Position(begin[p], 0)),
                end.get(p, 0) if end is not None else None,
                watermark_ms.get(p, 0),
            )
            self._readers[p].highwater = highwater[p]
            if p in anew:
                self._readers[p].begin_anew(begin[p], now)
                self._readers[p].turn_over()
            elif p in lost:
                self._readers[p].jump(start[p].offset, begin[p])

    def _seek(
        self, at: Mapping[TopicPartition, int | None], anew: Collection[int] = ()
    ) -> tuple[dict[int, int], set[int], dict[int, int]]:
        """The offsets to read from, the partitions that cannot continue where they should, and the ends."""
        places = {TopicPartition(self._topic, p) for p in anew}
        offsets, elsewhere = seek(self._consumer, at, self._config.lost_position, places)
        ends = self._consumer.end_offsets(list(at))
        return by_partition(offsets), {place.partition for place in elsewhere}, by_partition(ends)

    def _ended(self) -> frozenset[int]:
        return frozenset(p for p, reader in self._readers.items() if reader.ended)

    def _any_ready(self) -> bool:
        return any(reader.queue.ready for reader in self._readers.values())

    def _is_full(self, quota: int) -> bool:
        return all(reader.queue.ready >= quota or reader.ended for reader in self._readers.values())

    def _turn_over(self) -> None:
        """Move positions into a recreated topic, once no rows of the earlier one are left."""
        for reader in self._readers.values():
            if reader.turn_over():
                self._room.set()

    def _wait(self, condition: Callable[[], bool], timeout_s: float) -> None:
        self._changed.wait_for(lambda: self._error is not None or condition(), timeout_s)
        self._raise_error()

    def _raise_error(self) -> None:
        if self._error:
            raise self._error

    # Everything below runs in the thread.

    def _run(self) -> None:
        try:
            while not self._stop.is_set() and len(self.ended()) < len(self._readers):
                self._decode_ahead()
                if self._throttle():
                    self._read()
                else:
                    # A poll with everything paused would sleep through the next `take`.
                    self._room.wait(_POLL_MS / 1000)
                    self._room.clear()
        except KafkaError as error:
            # Errors that may pass were waited for where they occurred.
            self._fail(refused(self._config, error))
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def _throttle(self) -> bool:
        """Pauses partitions with enough rows and resumes those that run low; returns whether any is left to read."""
        with self._changed:
            rows, size = self._bound, self._config.buffered_bytes_per_partition
            full = {p for p, r in self._readers.items() if r.waiting or r.ended or r.queue.ready >= rows}
            low = {p for p, r in self._readers.items() if r.queue.ready <= rows // 2 and r.queue.size < size}
        paused = {at.partition for at in self._consumer.paused()}
        for p in self._partitions:
            at = TopicPartition(self._topic, p)
            if p not in paused and p in full:
                self._consumer.pause(at)
            elif p in paused and p in low - full:
                self._consumer.resume(at)
                # Nothing was fetched meanwhile, so a deletion of the topic would not have been noticed.
                self._identity.doubt()
        return len(self._consumer.paused()) < len(self._readers)

    def _read(self) -> None:
        release_parked(self._consumer)
        try:
            polled = self._consumer.poll(timeout_ms=_POLL_MS, max_records=self._poll_records)
        except OffsetOutOfRangeError as error:
            self._go_on_behind(error)
            return
        except KafkaError as error:
            if not error.retriable:
                raise
            polled = {}
        anew = self._identity.renewed()
        if anew:
            self._begin_anew(anew)
            return
        if polled:
            self._outage.answered()
        elif self._outage.silent_s > _PROBE_S:
            self._outage.probe(lambda: self._consumer.end_offsets(self._assigned(), timeout_ms=1000))
        reached = {at.partition: messages[-1].offset + 1 for at, messages in polled.items()}
        if not polled:
            # No records, but positions may have moved past control records and compacted messages.
            reached = {p: self._position(p) for p in self._partitions}
        for at, messages in polled.items():
            self._readers[at.partition].receive(messages, reached[at.partition])
        with self._changed:
            for p, reader in self._readers.items():
                highwater = self._consumer.highwater(TopicPartition(self._topic, p))
                reader.highwater = reader.highwater if highwater is None else highwater
                if not polled:
                    reader.receive([], reached[p])

    def _decode_ahead(self) -> None:
        with self._changed:
            rows, needed = self._bound, self._needed
        for reader in self._readers.values():
            self._decode(reader, rows, self._config.buffered_bytes_per_partition, needed)

    def _decode(self, reader: PartitionReader, rows: float, size: float, needed: int) -> None:
        """See PartitionReader.decode; the rows go into the queue."""
        stretch = reader.decode(rows, size, needed, self._partitions_now)
        if stretch.decoded.row_count:
            self._adapt(stretch)
        with self._changed:
            before = reader.ended
            reader.queue.put(stretch.decoded, stretch.fetched, stretch.size)
            reader.skip_gap()
            if stretch.decoded.row_count or reader.ended != before:
                self._changed.notify_all()

    def _adapt(self, stretch: Stretch) -> None:
        """Sets the number of messages per poll to about a quarter of the read-ahead limit."""
        rows_per_message = max(1, stretch.decoded.row_count // max(1, stretch.messages))
        quarter = self._config.buffered_rows_per_partition // (4 * rows_per_message)
        self._poll_records = min(_LARGEST_POLL, max(_FIRST_POLL, quarter))

    def _go_on_behind(self, error: OffsetOutOfRangeError) -> None:
        """Handle a log that was trimmed beyond the position of a partition."""
        self._identity.doubt()
        anew = self._identity.renewed()
        if anew:
            self._begin_anew(anew)
            return
        lost = {at: int(offset) for at, offset in error.args[0].items()}
        offsets, elsewhere, _ = self._seek(lost)
        for at, start in lost.items():
            p, reader = at.partition, self._readers[at.partition]
            # Rows fetched before the gap must still be taken, whatever the limit.
            self._decode(reader, math.inf, math.inf, 1)
            with self._changed:
                if offsets[p] < reader.queue.fetched:
                    raise PositionLost(
                        f"{self._topic} partition {p} would continue at {offsets[p]}, before rows that were already "
                        "read: the topic was recreated; start from an empty storage_path."
                    )
                if p in elsewhere:
                    reader.jump(start, offsets[p])

    def _begin_anew(self, anew: str) -> None:
        """Handle a topic that was deleted and recreated; rows fetched from the earlier one must still be taken."""
        ends = [p for p, reader in self._readers.items() if reader.is_bounded]
        if ends:
            raise PositionLost(
                f"{self._topic} was deleted and recreated while a range of it was being read (partitions {ends}): "
                "restart the run with stream.lost_position=earliest or an empty storage_path"
            )
        places = {TopicPartition(self._topic, p): r.queue.fetched for p, r in self._readers.items()}
        try:
            known = known_partitions(self._config, self._consumer, self._topic)
            missing = sorted(set(self._partitions) - set(known))
            if missing:
                raise self._too_few(known, missing)
            begin, _, _ = self._seek(places, self._readers)
        except KafkaError as error:
            if not error.retriable:
                raise
            return  # it has no leaders yet; the next poll tries again
        for p, reader in self._readers.items():
            self._decode(reader, math.inf, math.inf, 1)
            with self._changed:
                reader.begin_anew(begin[p], anew)
        with self._changed:
            self._identity.current = anew
            self._changed.notify_all()

    def _too_few(self, known: Sequence[int], missing: Sequence[int]) -> TopicMissing:
        """Raise if the topic has lost partitions, which only happens if it is recreated."""
        return TopicMissing(
            f"The topic {self._topic!r} has {len(known)} partitions, without {', '.join(map(str, missing))}, from "
            "which this run has read: it was recreated with fewer. Create it with as many or more, or start from an "
            "empty storage_path (--init-from keeps what was learned)"
        )

    def _assigned(self) -> list[TopicPartition]:
        return [TopicPartition(self._topic, p) for p in self._partitions]

    def _partitions_now(self) -> int:
        while not self._stop.is_set():
            try:
                return partition_count(self._config, self._topic)
            except BrokerUnavailable:
                self._outage.probe(lambda: self._consumer.end_offsets(self._assigned(), timeout_ms=1000))
        return 0

    def _position(self, partition: int) -> int:
        offset = self._consumer.position(TopicPartition(self._topic, partition), timeout_ms=1000)
        return self._readers[partition].queue.fetched if offset is None else int(offset)
