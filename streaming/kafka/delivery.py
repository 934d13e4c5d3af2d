"""Delivers messages to a topic once and in order, even if the broker is unreachable for a while.

Every message is kept until it is acknowledged. A producer that lost its broker for longer than its delivery timeout
does not recover. It is closed and replaced, the messages that the topic already has are read back, and only the others
are sent again.
"""

import contextlib
import logging
import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError, KafkaTimeoutError

from streaming.config import StreamConfig, client_arguments
from streaming.kafka.clients import open_client
from streaming.kafka.fetching import bound_fetches
from streaming.kafka.record_headers import accept_any_header_key
from streaming.kafka.topics import is_permanent

MAX_PENDING_BYTES = 32 << 20
REOPEN_PAUSE_S = 0.5
CLOSE_TIMEOUT_S = 5.0
METADATA_MAX_AGE_MS = 10_000
# Overhead of a message's Python objects and of the client's record of it.
_OBJECTS_BYTES = 1024

_log = logging.getLogger(__name__)
Headers = list[tuple[str, bytes]]
Content = tuple[bytes | None, bytes | None]


class DeliveryError(RuntimeError):
    """Messages were not acknowledged; the message names the topic."""


@dataclass(slots=True)
class Pending:
    """One message whose acknowledgement has not been seen yet.

    Attributes:
        key: the message's key, if it has one.
        value: the message's value; None is a tombstone.
        headers: the message's headers.
        rows: how many events it carries.
        future: kafka-python's handle of the last attempt to send it.
    """

    key: bytes | None
    value: bytes | None
    headers: Headers
    rows: int
    future: Any = None

    @property
    def content(self) -> Content:
        """The key by which it is recognized in the topic."""
        return self.key, self.value

    @property
    def size(self) -> int:
        """Approximate memory that it takes until it is acknowledged."""
        headers = sum(len(name) + len(value) for name, value in self.headers)
        return _OBJECTS_BYTES + len(self.key or b"") + len(self.value or b"") + headers


class Delivery:
    """Sends messages to one topic (acks=all, idempotent, lz4) and keeps them until they are acknowledged.

    Not for use from several threads.
    """

    def __init__(
        self,
        config: StreamConfig,
        topic: str,
        partitions: int,
        *,
        delivery_timeout_s: float = 30.0,
        reopen_timeout_s: float = 120.0,
    ) -> None:
        """Opens a producer.

        Args:
            config: how to reach the cluster.
            topic: the target; it must exist.
            partitions: number of the topic's partitions.
            delivery_timeout_s: time without acknowledgement after which the producer is replaced.
            reopen_timeout_s: time to try this before giving up.
        Raises:
            DeliveryError: no broker answers.
        """
        self.topic = topic
        self.rows_acknowledged = 0
        self.messages_acknowledged = 0
        self.reopened = 0
        self._config = config
        self._delivery_timeout_s = delivery_timeout_s
        self._reopen_timeout_s = reopen_timeout_s
        self._pending: dict[int, deque[Pending]] = {partition: deque() for partition in range(partitions)}
        self._pending_bytes = 0
        self._progress_mark = -1
        self._stuck_since = 0.0
        try:
            self._next_offset = self._end_offsets()
            self._producer = self._open()
        except KafkaError as error:
            raise self._error(error) from error

    def send(self, partition: int, message: Pending) -> None:
        """Hands a message over; waits while too much is unacknowledged.

        Raises:
            DeliveryError: the brokers were unreachable for longer than `reopen_timeout_s`.
        """
        if self._pending_bytes > MAX_PENDING_BYTES:
            self.flush()
        self._pending[partition].append(message)
        self._pending_bytes += message.size
        try:
            self._hand_over(partition, message)
        except KafkaError as error:
            self._recover(error)

    def follow_growth(self) -> int:
        """The client's number of the topic's partitions, which it refreshes from time to time.

        Messages sent with the old number of partitions are acknowledged before any is sent with the new one.

        Returns:
            The number of partitions that `send` uses from now on; it never decreases.
        """
        try:
            known = len(self._producer.partitions_for(self.topic) or ())
        except KafkaError:
            known = 0  # the next `send` reports the problem
        if known > len(self._pending):
            self.flush()
            fresh = range(len(self._pending), known)
            self._pending |= {partition: deque() for partition in fresh}
            self._next_offset |= dict.fromkeys(fresh, 0)
        return len(self._pending)

    def settle(self) -> None:
        """Processes the acknowledgements that have arrived, without waiting for others.

        Raises:
            DeliveryError: as for `send`.
        """
        try:
            self._note_acknowledged(wait=False)
        except KafkaError as error:
            self._recover(error)

    def flush(self) -> None:
        """Returns when every message has been acknowledged.

        Raises:
            DeliveryError: as for `send`.
        """
        while self._pending_bytes or any(self._pending.values()):
            try:
                self._note_acknowledged(wait=True)
            except KafkaError as error:
                self._recover(error)

    def close(self) -> None:
        """Closes the producer; call `flush` before."""
        self._producer.close(timeout=CLOSE_TIMEOUT_S)

    def abandon(self) -> None:
        """Closes the producer at once; pending messages are not sent."""
        # close() alone waits for pending messages, fails, and leaves a thread that still sends them, which would double
        # them when the broker is back.
        self._producer._sender.force_close()
        self._producer._sender.join(CLOSE_TIMEOUT_S)
        with contextlib.suppress(KafkaError):
            self._producer.close(timeout=CLOSE_TIMEOUT_S)

    def _open(self) -> KafkaProducer:
        timeout_ms = int(1000 * self._delivery_timeout_s)
        arguments = client_arguments(self._config)
        arguments["request_timeout_ms"] = min(arguments["request_timeout_ms"], timeout_ms)
        return KafkaProducer(
            **arguments,
            acks="all",
            enable_idempotence=True,
            compression_type="lz4",
            linger_ms=0,
            batch_size=1 << 18,
            max_request_size=self._config.max_message_bytes,
            delivery_timeout_ms=timeout_ms,
            max_block_ms=timeout_ms,
            allow_auto_create_topics=False,
            metadata_max_age_ms=METADATA_MAX_AGE_MS,
        )

    def _hand_over(self, partition: int, message: Pending) -> None:
        message.future = self._producer.send(
            self.topic, message.value, key=message.key, headers=message.headers, partition=partition
        )

    def _note_acknowledged(self, *, wait: bool) -> None:
        for partition, queue in self._pending.items():
            while queue and (wait or queue[0].future.is_done):
                # A future ends on its own after its delivery timeout; after twice that, the client hangs.
                metadata = queue[0].future.get(timeout=2 * self._delivery_timeout_s)
                self._drop_first(partition, metadata.offset + 1)

    def _drop_first(self, partition: int, next_offset: int) -> None:
        message = self._pending[partition].popleft()
        self._pending_bytes -= message.size
        self._next_offset[partition] = next_offset
        self.rows_acknowledged += message.rows
        self.messages_acknowledged += 1

    def _recover(self, cause: KafkaError) -> None:
        if is_permanent(cause):
            raise self._error(cause) from cause
        self._give_up_if_stuck(cause)
        away_s = time.monotonic()
        _log.warning(
            "the brokers at %s do not take messages to %s (%s): opening another producer, for up to %g s",
            self._config.bootstrap_servers,
            self.topic,
            type(cause).__name__,
            self._reopen_timeout_s,
        )
        while True:
            self.abandon()
            try:
                self._producer = self._open()
                ends = self._end_offsets()
                for partition in self._pending:
                    self._drop_what_is_there(partition, ends[partition])
                for partition, queue in self._pending.items():
                    for message in queue:
                        self._hand_over(partition, message)
                self.reopened += 1
                _log.warning("%s takes messages again after %.0f s", self.topic, time.monotonic() - away_s)
                return
            except KafkaError as error:
                if is_permanent(error) or time.monotonic() > self._stuck_since + self._reopen_timeout_s:
                    raise self._error(error) from cause
                time.sleep(REOPEN_PAUSE_S)

    def _give_up_if_stuck(self, cause: KafkaError) -> None:
        if self.messages_acknowledged != self._progress_mark:
            self._progress_mark = self.messages_acknowledged
            self._stuck_since = time.monotonic()
            return
        # A new producer failed too: only errors that may pass with time are tried again.
        too_long = time.monotonic() > self._stuck_since + self._reopen_timeout_s
        if too_long or not getattr(cause, "retriable", False):
            raise self._error(cause) from cause

    def _drop_what_is_there(self, partition: int, end: int) -> None:
        queue = self._pending[partition]
        held = Counter(self._contents(partition, self._next_offset[partition], end)) if queue else Counter()
        missing: deque[Pending] = deque()
        while queue:
            if held[queue[0].content]:
                held[queue[0].content] -= 1
                self._drop_first(partition, end)
            else:
                missing.append(queue.popleft())
        self._pending[partition] = missing

    def _contents(self, partition: int, start: int, end: int) -> list[Content]:
        where = TopicPartition(self.topic, partition)
        contents: list[Content] = []
        deadline = time.monotonic() + self._config.request_timeout_s
        with contextlib.closing(self._consumer()) as consumer:
            consumer.assign([where])
            consumer.seek(where, min(start, end))
            while consumer.position(where) < end:
                for records in consumer.poll(timeout_ms=500).values():
                    contents += [(record.key, record.value) for record in records]
                    deadline = time.monotonic() + self._config.request_timeout_s
                if time.monotonic() > deadline:
                    raise KafkaTimeoutError(f"{self.topic} could not be read back")
        return contents

    def _end_offsets(self) -> dict[int, int]:
        places = [TopicPartition(self.topic, partition) for partition in self._pending]
        with contextlib.closing(self._consumer()) as consumer:
            return {place.partition: int(end) for place, end in consumer.end_offsets(places).items()}

    def _consumer(self) -> KafkaConsumer:
        accept_any_header_key()
        consumer = open_client(
            KafkaConsumer, **client_arguments(self._config), allow_auto_create_topics=False
        )
        bound_fetches(consumer, self._config)
        return consumer

    def _error(self, cause: Exception) -> DeliveryError:
        lost = sum(len(queue) for queue in self._pending.values())
        return DeliveryError(
            f"{lost} messages to the topic {self.topic} were not acknowledged ({cause}): "
            f"check the brokers at stream.bootstrap_servers={self._config.bootstrap_servers}"
        )
