"""Writes rows that cannot be used to the dead-letter topic."""

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError, MessageSizeTooLargeError, RecordListTooLargeError

from streaming.config import StreamConfig, client_arguments
from streaming.events.dead_letter import DeadLetter
from streaming.events.quoting import header_value
from streaming.kafka.topics import (
    BrokerRefused,
    BrokerUnavailable,
    admin_client,
    is_permanent,
    partition_counts,
    unavailable,
)

# Room for the key, the headers and the framing of a record beside its value.
_OVERHEAD_BYTES = 4096
_TOPIC_TIMEOUT_S = 15.0
# Letters kept while brokers are unreachable; beyond that a run must wait for them.
_MOST_KEPT_BYTES = 64 << 20


class DeadLettersLost(RuntimeError):
    """Dead letters were sent, but not all were acknowledged."""


class DeadLettersDelayed(DeadLettersLost):
    """The brokers are unreachable; the letters are kept, and the next `flush` tries again."""


class DeadLetterWriter:
    """Writes dead letters to their topic; does not use the network before the first one.

    A letter is kept until it is acknowledged, so brokers may be unreachable between two flushes. A letter that is sent
    again overwrites itself. The topic is created (compacted, one partition) if it is missing. A value that is too long
    for a message is cut; the header `truncated` then holds its length.
    """

    def __init__(self, config: StreamConfig) -> None:
        self._config = config
        self._producer: KafkaProducer | None = None
        self._kept: deque[tuple[DeadLetter, Any]] = deque()
        self._kept_bytes = 0

    def send(self, letters: Iterable[DeadLetter]) -> None:
        """Takes letters; only `flush` reports whether they arrived.

        Raises:
            DeadLettersLost: a letter was refused, or too many bytes wait for unreachable brokers.
        """
        for letter in letters:
            self._kept.append((letter, self._hand_over(letter) if self._producer is not None else None))
            self._kept_bytes += letter.size
            while self._kept and self._kept[0][1] is not None and self._kept[0][1].succeeded():
                self._kept_bytes -= self._kept.popleft()[0].size
            if self._kept_bytes > _MOST_KEPT_BYTES:
                self.flush()

    def flush(self, timeout_s: float | None = None) -> None:
        """Waits until every letter is acknowledged.

        Args:
            timeout_s: maximum wait, if less than the timeouts of `stream`.
        Raises:
            DeadLettersDelayed: the brokers did not answer within `stream.request_timeout_s`; the letters are kept.
            DeadLettersLost: the brokers refused one; names the topic.
        """
        if not self._kept:
            return
        try:
            self._flush(_hurried(self._config, timeout_s))
        except (KafkaError, BrokerUnavailable, BrokerRefused) as error:
            # A producer that lost its brokers for long does not recover: the next flush opens another one.
            self.close()
            self._kept = deque((letter, None) for letter, _ in self._kept)
            if isinstance(error, BrokerRefused) or (isinstance(error, KafkaError) and not error.retriable):
                raise self._lost(DeadLettersLost, error) from error
            raise self._lost(DeadLettersDelayed, error) from error

    def close(self) -> None:
        """Closes the producer without waiting for letters: call `flush` first."""
        if self._producer is not None:
            self._producer.close(timeout=1)
            self._producer = None

    def _flush(self, config: StreamConfig) -> None:
        if self._producer is None:
            self._producer = self._open(config)
        handed = [(letter, future or self._hand_over(letter)) for letter, future in self._kept]
        self._kept = deque(handed)
        self._producer.flush(timeout=config.request_timeout_s)
        # Removed one by one: if one fails, it and those behind it stay.
        while self._kept:
            self._await(*self._kept[0], config.request_timeout_s)
            self._kept_bytes -= self._kept.popleft()[0].size

    def _await(self, letter: DeadLetter, future: Any, timeout_s: float) -> None:
        """Waits for one acknowledgement; a letter too long for the topic is sent again alone, and cut until it fits.

        Raises:
            KafkaError: it was not acknowledged, was refused for another reason, or was refused even without a value.
        """
        assert self._producer is not None
        longest = self._longest
        while True:
            try:
                if future is None:
                    raise KafkaTimeoutError("the producer did not accept it")
                future.get(timeout=timeout_s)
                return
            except (MessageSizeTooLargeError, RecordListTooLargeError):
                # The topic may have a lower limit than stream.max_message_bytes.
                if longest == 0:
                    raise
                future = self._hand_over(letter, longest)
                self._producer.flush(timeout=timeout_s)
                longest = min(longest, len(letter.value)) // 2

    @property
    def _longest(self) -> int:
        return max(self._config.max_message_bytes - _OVERHEAD_BYTES, 0)

    def _hand_over(self, letter: DeadLetter, longest: int | None = None) -> Any:
        assert self._producer is not None
        longest = self._longest if longest is None else longest
        room = self._config.max_message_bytes // 8
        headers = [(name, header_value(value.decode(), room)) for name, value in letter.headers]
        if letter.length > min(longest, len(letter.value)):
            headers.append(("truncated", str(letter.length).encode()))
        try:
            return self._producer.send(
                self._config.dead_letters, key=letter.key, value=letter.value[:longest], headers=headers
            )
        except KafkaError:
            return None  # the buffer is full or the topic not known yet: flush tries again and reports

    def _lost(self, kind: type[DeadLettersLost], error: Exception) -> DeadLettersLost:
        return kind(
            f"{len(self._kept)} dead letters did not reach the topic {self._config.dead_letters!r} at "
            f"{self._config.bootstrap_servers} (stream.bootstrap_servers): {error}"
        )

    def _open(self, config: StreamConfig) -> KafkaProducer:
        self._create_topic(config)
        timeout_ms = int(config.request_timeout_s * 1000)
        try:
            return KafkaProducer(
                **client_arguments(config),
                acks="all",
                # A letter sent twice overwrites itself, and an idempotent producer would not survive a refusal.
                enable_idempotence=False,
                max_in_flight_requests_per_connection=1,
                compression_type="lz4",
                allow_auto_create_topics=False,
                max_request_size=self._config.max_message_bytes,
                max_block_ms=timeout_ms,
                delivery_timeout_ms=timeout_ms + 1000,
                linger_ms=20,
            )
        except KafkaError as error:
            raise unavailable(self._config, error) from error

    def _create_topic(self, config: StreamConfig) -> None:
        name = config.dead_letters
        limits = {"cleanup.policy": "compact", "max.message.bytes": str(config.max_message_bytes)}
        settings = {"num_partitions": 1, "replication_factor": -1, "configs": limits}
        deadline = time.monotonic() + min(_TOPIC_TIMEOUT_S, config.request_timeout_s)
        with admin_client(config) as admin:
            if partition_counts(admin, [name]):
                return
            try:
                admin.create_topics({name: settings})
            except KafkaError as error:
                if is_permanent(error):
                    raise
                # Another worker may have created it; any other problem shows below.
                reason = str(error)
            else:
                reason = "created, but has no leader"
            while not partition_counts(admin, [name]):
                if time.monotonic() > deadline:
                    raise DeadLettersLost(f"The dead-letter topic {name!r} cannot be used: {reason}")
                time.sleep(0.05)


def _hurried(config: StreamConfig, timeout_s: float | None) -> StreamConfig:
    """The settings, with no timeout longer than this."""
    if timeout_s is None:
        return config
    return replace(
        config,
        request_timeout_s=min(config.request_timeout_s, timeout_s),
        connect_timeout_s=min(config.connect_timeout_s, timeout_s),
    )
