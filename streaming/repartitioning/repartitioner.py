"""Reads a topic of any key and partitioner, and writes each message once, by user, in Kafka transactions.

A transaction holds the messages written and the offsets read, so after a crash both are there or neither. A second
repartitioner of the same topic fences the first. Broker times are kept, so that freshness counts from the original.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import InvalidProducerEpochError, KafkaError, ProducerFencedError
from kafka.structs import OffsetAndMetadata

from streaming.codecs.schemas.reader import reader_of
from streaming.config import StreamConfig
from streaming.events.validation import Place
from streaming.kafka.consumer import known_partitions, open_consumer, partitions_of, unavailable
from streaming.kafka.outage import patiently
from streaming.kafka.topics import BrokerUnavailable, admin_client, create_copy, is_permanent, refused
from streaming.kafka.transactions import transactional_producer
from streaming.repartitioning.routing import Routed, route_all

_RECORDS_AT_ONCE = 2000
_POLL_MS = 200
_RETRY_S = 0.5
_TRANSACTION_TIMEOUT_MS = 30_000
_log = logging.getLogger(__name__)


class AnotherRepartitioner(RuntimeError):
    """Another repartitioner writes to the topic; the newer one continues."""


def create_own_topic(config: StreamConfig) -> int:
    """Create `stream.interactions_topic` like `stream.repartition_from`, unless it exists.

    Returns:
        How many partitions it has.
    Raises:
        BrokerUnavailable: no broker answered.
        TopicMissing: there is no topic to read.
        TopicError: it cannot be created.
    """
    partitions_of(config, config.repartition_from)
    return create_copy(config, config.interactions_topic, config.repartition_from)


class Repartitioner:
    """Copies `stream.repartition_from` into `stream.interactions_topic`, from a thread or to the present end.

    Args:
        config: the stream; both topics exist.
    """

    def __init__(self, config: StreamConfig) -> None:
        self._config = config
        self._group = f"{config.consumer_group}.repartition.{config.interactions_topic}"
        self._place = replace(
            Place.of(config, config.repartition_from, 0, 1),
            max_future_ms=0,
            max_late_ms=0,
            max_weight=math.inf,
            read=reader_of(config),
        )
        self._partitions = len(partitions_of(config, config.interactions_topic))
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._opened: tuple[KafkaConsumer, KafkaProducer] | None = None
        self.copied = 0
        """Messages read and written by this object."""

    def run_to_end(self) -> None:
        """Copy everything that is there now.

        Raises:
            BrokerUnavailable: no broker answered for `stream.broker_patience_s`.
            BrokerRefused: a broker refused permanently.
            AnotherRepartitioner: another one of the same topic has started since.
        """
        ends = patiently(self._config, self._ends)
        self._copy_until(lambda: all(self._read_to(at) >= end for at, end in ends.items()))

    def start(self) -> None:
        """Follow the topic from a thread."""
        self._thread = threading.Thread(target=self._follow, name="freshet-repartition", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise the error that ended the thread, if one did."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Stop the thread and close the clients; a transaction that is open is given up."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._shut()

    def _follow(self) -> None:
        try:
            self._copy_until(self._stop.is_set)
        except Exception as error:
            self._error = error

    def _copy_until(self, done: Callable[[], bool]) -> None:
        heard_s = time.monotonic()
        while True:
            try:
                consumer, producer = self._opened or self._open()
                if done() or self._stop.is_set():
                    return
                self._copy_some(consumer, producer)
                heard_s = time.monotonic()
            except (KafkaError, BrokerUnavailable) as error:
                self._shut()
                if _is_fenced(error):
                    raise AnotherRepartitioner(
                        f"another run copies {self._config.repartition_from} into {self._config.interactions_topic}: "
                        "stop it, or give this one a topic of its own (setting: stream.interactions_topic)"
                    ) from error
                if isinstance(error, KafkaError) and is_permanent(error):
                    raise refused(self._config, error) from error
                if time.monotonic() - heard_s > self._config.broker_patience_s:
                    raise (
                        unavailable(self._config, error) if isinstance(error, KafkaError) else error
                    ) from error
                _log.warning("repartitioning waits: %s", error)
                self._stop.wait(_RETRY_S)

    def _copy_some(self, consumer: KafkaConsumer, producer: KafkaProducer) -> None:
        polled = consumer.poll(timeout_ms=_POLL_MS, max_records=_RECORDS_AT_ONCE)
        if not polled:
            return
        # In the order of time across partitions, as far as one poll shows it.
        records = sorted((r for some in polled.values() for r in some), key=lambda r: r.timestamp)
        producer.begin_transaction()
        routed = route_all(records, self._place, self._partitions)
        for record, messages in zip(records, routed, strict=True):
            self._send(producer, record, messages)
        offsets = {at: OffsetAndMetadata(some[-1].offset + 1, "", -1) for at, some in polled.items()}
        producer.send_offsets_to_transaction(offsets, self._group)
        producer.commit_transaction()
        self.copied += len(records)

    def _send(self, producer: KafkaProducer, record: Any, messages: Sequence[Routed]) -> None:
        for message in messages:
            producer.send(
                self._config.interactions_topic,
                message.value,
                key=message.key,
                headers=message.headers,
                partition=message.partition,
                timestamp_ms=max(record.timestamp, 0),
            )

    def _open(self) -> tuple[KafkaConsumer, KafkaProducer]:
        consumer = open_consumer(self._config)
        try:
            producer = transactional_producer(
                self._config,
                f"freshet.repartition.{self._config.interactions_topic}",
                timeout_ms=_TRANSACTION_TIMEOUT_MS,
                linger_ms=5,
            )
            producer.init_transactions()  # the earlier one's transaction has ended: its offsets are final
            topic = self._config.repartition_from
            places = [TopicPartition(topic, p) for p in known_partitions(self._config, consumer, topic)]
            consumer.assign(places)
            first, done = consumer.beginning_offsets(places), self._committed(places)
            for at in places:
                consumer.seek(at, max(first[at], done.get(at, 0)))
        except BaseException:
            consumer.close(autocommit=False, timeout_ms=1000)
            raise
        self._opened = consumer, producer
        return self._opened

    def _committed(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        with admin_client(self._config) as admin:
            found = admin.list_group_offsets({self._group: places})[self._group]
        return {at: int(offset.offset) for at, offset in found.items() if offset.offset >= 0}

    def _ends(self) -> Mapping[TopicPartition, int]:
        consumer = open_consumer(self._config)
        try:
            topic = self._config.repartition_from
            places = [TopicPartition(topic, p) for p in known_partitions(self._config, consumer, topic)]
            ends: Mapping[TopicPartition, int] = consumer.end_offsets(places)
            return ends
        except KafkaError as error:
            raise unavailable(self._config, error) from error
        finally:
            consumer.close(autocommit=False, timeout_ms=1000)

    def _read_to(self, at: TopicPartition) -> int:
        assert self._opened is not None
        return int(self._opened[0].position(at, timeout_ms=5000) or 0)

    def _shut(self) -> None:
        if self._opened is not None:
            consumer, producer = self._opened
            self._opened = None
            consumer.close(autocommit=False, timeout_ms=1000)
            producer.close(timeout=1)


def _is_fenced(error: BaseException) -> bool:
    """Whether a newer producer has this one's transactional id; the client may wrap the error in another one."""
    kinds = (ProducerFencedError, InvalidProducerEpochError)
    return any(isinstance(one, kinds) for one in (error, error.__cause__, *error.args))
