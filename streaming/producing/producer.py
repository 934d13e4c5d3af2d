"""Sends columns of events to Kafka: one Arrow message per partition, or one JSON message per event.

Shapes: N events of one batch, P partitions.
"""

from collections.abc import Iterator
from types import TracebackType
from typing import Literal, Self

import numpy as np
import orjson
import pyarrow as pa

from streaming.arrays import Int32Array
from streaming.codecs.codec import ARROW, ENCODING_HEADER, JSON, encode_events
from streaming.config import StreamConfig
from streaming.events.partitioner import partition_of_texts, partition_of_users
from streaming.events.schema import USER_ID
from streaming.kafka.consumer import partitions_of
from streaming.kafka.delivery import Delivery, Headers, Pending

Wire = Literal["arrow", "json"]
ROWS_PER_MESSAGE = 4096


class EventProducer:
    """Sends events to the interactions topic; a context manager that flushes and closes at the end."""

    def __init__(
        self,
        config: StreamConfig,
        *,
        wire: Wire = "arrow",
        delivery_timeout_s: float = 30.0,
        reopen_timeout_s: float = 120.0,
    ) -> None:
        """Opens a producer.

        Args:
            config: the cluster and its topics.
            wire: "arrow" for one message per partition and `send`, "json" for one message per event.
            delivery_timeout_s: time without acknowledgement after which the producer is replaced.
            reopen_timeout_s: time to try this before giving up.
        Raises:
            BrokerUnavailable: no broker answers.
            TopicMissing: the interactions topic does not exist.
        """
        if wire not in ("arrow", "json"):
            raise ValueError(f"wire must be arrow or json, got {wire!r}")
        self.wire = wire
        self.partitions = len(partitions_of(config, config.interactions_topic))
        self._max_message_bytes = config.max_message_bytes
        self._delivery = Delivery(
            config,
            config.interactions_topic,
            self.partitions,
            delivery_timeout_s=delivery_timeout_s,
            reopen_timeout_s=reopen_timeout_s,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._delivery.abandon()

    @property
    def acknowledged(self) -> int:
        """Events that the brokers have acknowledged, as of the last `send`, `settle` or `flush`."""
        return self._delivery.rows_acknowledged

    @property
    def messages(self) -> int:
        """Messages that the brokers have acknowledged."""
        return self._delivery.messages_acknowledged

    @property
    def reopened(self) -> int:
        """How often the producer was replaced because the brokers were unreachable."""
        return self._delivery.reopened

    def send(self, events: pa.RecordBatch) -> None:
        """Hands events over; their order within a user is kept. Returns before they are acknowledged.

        New partitions of the topic are used within about ten seconds.

        Args:
            events: EVENT_SCHEMA's columns (the optional ones may be absent); ids int64 or string.
        Raises:
            DeliveryError: the brokers stayed away for too long.
        """
        encode = _arrow_messages if self.wire == "arrow" else _json_messages
        self.partitions = self._delivery.follow_growth()
        for partition, rows in _by_partition(events, self.partitions):
            for message in encode(rows, self._max_message_bytes):
                self._delivery.send(partition, message)

    def settle(self) -> None:
        """Processes the acknowledgements that have arrived, without waiting for others."""
        self._delivery.settle()

    def flush(self) -> int:
        """Waits until every event is acknowledged; returns their number since the start.

        Raises:
            DeliveryError: the brokers stayed away for too long; names the topic.
        """
        self._delivery.flush()
        return self.acknowledged

    def close(self) -> None:
        """Flushes and closes."""
        self._delivery.flush()
        self._delivery.close()


def _by_partition(events: pa.RecordBatch, partitions: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    partition_N = _partition_of(events.column(USER_ID), partitions)
    # Stable, so that a user's events stay in order.
    ordered = events.take(pa.array(np.argsort(partition_N, kind="stable")))
    ends_P = np.cumsum(np.bincount(partition_N, minlength=partitions))
    start = 0
    for partition, end in enumerate(ends_P.tolist()):
        if end > start:
            yield partition, ordered.slice(start, end - start)
        start = end


def _partition_of(ids: pa.Array, partitions: int) -> Int32Array:
    if pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type):
        return partition_of_texts(ids, partitions)
    return partition_of_users(ids.to_numpy(zero_copy_only=False), partitions)


def _arrow_messages(rows: pa.RecordBatch, max_bytes: int) -> Iterator[Pending]:
    headers = [(ENCODING_HEADER, ARROW)]
    for start in range(0, rows.num_rows, ROWS_PER_MESSAGE):
        piece = rows.slice(start, ROWS_PER_MESSAGE)
        value = encode_events(piece)
        # Half of the limit: Kafka counts a frame too, and compression may not make the message smaller.
        if len(value) > max_bytes // 2 and piece.num_rows > 1:
            middle = piece.num_rows // 2
            yield from _arrow_messages(piece.slice(0, middle), max_bytes)
            yield from _arrow_messages(piece.slice(middle), max_bytes)
        else:
            yield Pending(None, value, headers, piece.num_rows)


def _json_messages(rows: pa.RecordBatch, max_bytes: int) -> Iterator[Pending]:
    headers: Headers = [(ENCODING_HEADER, JSON)]
    for event in rows.to_pylist():
        value = orjson.dumps({name: field for name, field in event.items() if field is not None})
        yield Pending(str(event[USER_ID]).encode(), value, headers, 1)
