"""Rows that cannot be used, and the topic that they go to."""

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kafka import KafkaProducer
from kafka.errors import KafkaError

from streaming.config import StreamConfig, client_arguments
from streaming.topics import BrokerUnavailable, admin_client, partition_counts

# Room for the key, the headers and the framing of a record beside its value.
_OVERHEAD_BYTES = 4096
_TOPIC_TIMEOUT_S = 15.0


class DeadLettersLost(RuntimeError):
    """Dead letters were sent, but not all were acknowledged."""


@dataclass(frozen=True)
class DeadLetter:
    """A row that cannot be used.

    Attributes:
        reason: what is wrong with it, for people.
        topic: the topic that it was read from.
        partition: its partition there.
        offset: offset of its message.
        row: its row inside the message; 0 if the message as a whole cannot be used.
        value: the original: the message's bytes, or the JSON of one row of an Arrow message.
    """

    reason: str
    topic: str
    partition: int
    offset: int
    row: int
    value: bytes

    @property
    def key(self) -> bytes:
        """Where it was read: the same after a crash, so that a repeat overwrites."""
        return f"{self.topic}/{self.partition}/{self.offset}/{self.row}".encode()

    @property
    def headers(self) -> list[tuple[str, bytes]]:
        """Reason and position, as text."""
        names = ("reason", "topic", "partition", "offset", "row")
        return [(name, str(getattr(self, name)).encode()[:1024]) for name in names]


class DeadLetterWriter:
    """Writes dead letters to their topic; touches no network before the first one.

    The topic is created (compacted, one partition) if it is missing. A value that no message can hold is cut;
    the header `truncated` then says how long it was.
    """

    def __init__(self, config: StreamConfig) -> None:
        self._config = config
        self._producer: KafkaProducer | None = None
        self._pending: deque[Any] = deque()

    def send(self, letters: Iterable[DeadLetter]) -> None:
        """Hands letters to the producer; only `flush` tells whether they arrived.

        Raises:
            BrokerUnavailable: no broker answered within `stream.connect_timeout_s`.
            DeadLettersLost: the producer's buffer stayed full for `stream.request_timeout_s`.
        """
        for letter in letters:
            if self._producer is None:
                self._producer = self._open()
            longest = self._config.max_message_bytes - _OVERHEAD_BYTES
            headers = letter.headers
            if len(letter.value) > longest:
                headers.append(("truncated", str(len(letter.value)).encode()))
            self._pending.append(self._send(self._producer, letter, letter.value[: max(longest, 0)], headers))
            while self._pending and self._pending[0].succeeded():
                self._pending.popleft()

    def flush(self) -> None:
        """Waits until every letter is acknowledged.

        Raises:
            DeadLettersLost: one was not within `stream.request_timeout_s`; names the topic.
        """
        if self._producer is None:
            return
        error: Exception | None = None
        try:
            self._producer.flush(timeout=self._config.request_timeout_s)
        except KafkaError as flush_error:
            error = flush_error
        lost = [future for future in self._pending if not future.succeeded()]
        self._pending.clear()
        if lost:
            raise self._lost(len(lost), lost[0].exception or error)

    def close(self) -> None:
        """Closes the producer without waiting for letters: call `flush` first."""
        if self._producer is not None:
            self._producer.close(timeout=1)
            self._producer = None

    def _send(
        self, producer: KafkaProducer, letter: DeadLetter, value: bytes, headers: list[tuple[str, bytes]]
    ) -> Any:
        try:
            return producer.send(self._config.dead_letters, key=letter.key, value=value, headers=headers)
        except KafkaError as error:
            raise self._lost(1, error) from error

    def _lost(self, count: int, error: Exception | None) -> DeadLettersLost:
        return DeadLettersLost(
            f"{count} dead letters did not reach the topic {self._config.dead_letters!r} at "
            f"{self._config.bootstrap_servers} (stream.bootstrap_servers): {error or 'no acknowledgement'}"
        )

    def _open(self) -> KafkaProducer:
        self._create_topic()
        timeout_ms = int(self._config.request_timeout_s * 1000)
        try:
            return KafkaProducer(
                **client_arguments(self._config),
                acks="all",
                compression_type="lz4",
                allow_auto_create_topics=False,
                max_request_size=self._config.max_message_bytes,
                max_block_ms=timeout_ms,
                delivery_timeout_ms=timeout_ms + 1000,
                linger_ms=20,
            )
        except KafkaError as error:
            raise BrokerUnavailable(
                f"No Kafka broker answers at {self._config.bootstrap_servers} ({type(error).__name__}): "
                "start one, or set stream.bootstrap_servers."
            ) from error

    def _create_topic(self) -> None:
        name = self._config.dead_letters
        limits = {"cleanup.policy": "compact", "max.message.bytes": str(self._config.max_message_bytes)}
        settings = {"num_partitions": 1, "replication_factor": -1, "configs": limits}
        deadline = time.monotonic() + _TOPIC_TIMEOUT_S
        with admin_client(self._config) as admin:
            if partition_counts(admin, [name]):
                return
            try:
                admin.create_topics({name: settings})
            except KafkaError as error:
                # Another worker may have been quicker; whatever else it was shows below.
                reason = str(error)
            else:
                reason = "created, but without a leader"
            while not partition_counts(admin, [name]):
                if time.monotonic() > deadline:
                    raise DeadLettersLost(f"The dead-letter topic {name!r} cannot be used: {reason}")
                time.sleep(0.05)
